"""Every pair of a set of embeddings, counted and forgotten: time grows with N², memory does not.

Similarities fall into equal bins, 2 / 65,536 wide, and counts at the bins' edges are exact: no rounding moves a
similarity over an edge. Rows are sorted by person first, so that the pairs of one person lie in
narrow blocks beside the diagonal.

Axes: N embeddings, E embedding, I identities, T thresholds, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facerec.evaluation.verification import Verification

BINS = 2**16
COARSE = 2**10  # bins per identity: for intervals
MAX_GROUPS = 5000  # of identities that are counted apart
CHUNK = 512  # rows of embeddings at a time
CHUNK_BYTES = 128 * 2**20  # of similarities at a time


@dataclass(frozen=True)
class Mates:
    """What each probe's pairs with its own person do at given thresholds.

    Attributes:
        probe: (N,) row of the embeddings, of those with a mate.
        accepted: (N, T) share of the probe's mates at or above each threshold.
        mates: (N,) how many mates it has.
    """

    probe: np.ndarray
    accepted: np.ndarray
    mates: np.ndarray


def all_pairs(embeddings: Tensor | np.ndarray, labels: np.ndarray) -> Verification:
    """The curve of every pair of two different rows.

    Args:
        embeddings: (N, E) rows of unit length, on any device.
        labels: (N,) identities.

    Raises:
        ValueError: if there are no pairs of one person, or none of two.
    """
    rows, codes, _ = _sorted(embeddings, labels)
    total, genuine = np.zeros((2, BINS), dtype=np.int64)
    for start, stop in _chunks(len(rows)):
        bins = similarity_bins(rows[start:stop] @ rows[start:].T)
        own = bins[:, : stop - start]  # on and below its diagonal: pairs met before
        own.masked_fill_(torch.ones_like(own, dtype=torch.bool).tril(), BINS)
        end = int(np.searchsorted(codes, codes[stop - 1], side="right"))
        mates = torch.from_numpy(codes[start:stop, None] == codes[start:end]).to(rows.device)
        total += _count(bins, BINS)
        genuine += _count(bins[:, : end - start][mates], BINS)
    return binned(genuine, total - genuine)


def identity_pairs(
    embeddings: Tensor | np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of each identity's pictures with all others, for intervals over identities.

    Args:
        embeddings: (N, E) rows of unit length.
        labels: (N,) identities.

    Returns:
        Genuine and impostor counts, (I, 1024) each, in descending bins; identities are sorted, and where
        there are more than 5,000, neighbours in that order are counted together.
        Each pair counts for both of its pictures.
    """
    rows, codes, _ = _sorted(embeddings, labels)
    people = codes[-1] + 1
    groups = codes * min(people, MAX_GROUPS) // people
    total, genuine = np.zeros((2, groups[-1] + 1, COARSE), dtype=np.int32)
    for start, stop in _chunks(len(rows)):
        bins = COARSE - 1 - similarity_bins(rows[start:stop] @ rows.T, COARSE)
        owner = groups[start:stop] - groups[start]
        size = int(owner[-1] + 1) * COARSE
        bins += torch.from_numpy(owner * COARSE).to(bins)[:, None]
        bins[:, start:stop].fill_diagonal_(size)
        first, end = _span(codes, start, stop)
        mates = torch.from_numpy(codes[start:stop, None] == codes[first:end]).to(rows.device)
        counted = slice(groups[start], groups[stop - 1] + 1)
        total[counted] += _count(bins, size).reshape(-1, COARSE).astype(np.int32)
        same = _count(bins[:, first:end][mates], size).reshape(-1, COARSE)
        genuine[counted] += same.astype(np.int32)
    return genuine, total - genuine


def mates_accepted(
    embeddings: Tensor | np.ndarray, labels: np.ndarray, thresholds: np.ndarray
) -> Mates:
    """Per-probe true accept rates: what stands behind a TAR, probe by probe.

    Args:
        embeddings: (N, E) rows of unit length.
        labels: (N,) identities.
        thresholds: (T,) similarities.
    """
    rows, codes, order = _sorted(embeddings, labels)
    limits = torch.as_tensor(np.asarray(thresholds), dtype=torch.float64, device=rows.device)
    accepted = np.empty((len(rows), len(limits)))
    for start, stop in _chunks(len(rows)):
        first, end = _span(codes, start, stop)
        similarity = rows[start:stop] @ rows[first:end].T
        mates = torch.from_numpy(codes[start:stop, None] == codes[first:end]).to(rows.device)
        mates[:, start - first : stop - first].fill_diagonal_(False)
        for i, limit in enumerate(limits):
            hits = (mates & (similarity.double() >= limit)).sum(1)
            accepted[start:stop, i] = hits.cpu().numpy()
    count = np.bincount(codes)[codes] - 1
    back = np.argsort(order[count > 0])
    shares = (accepted[count > 0] / count[count > 0, None])[back]
    return Mates(order[count > 0][back], shares, count[count > 0][back])


def binned(genuine: np.ndarray, impostor: np.ndarray) -> Verification:
    """The curve of counts of pairs in equal bins of similarity from -1 to 1, ascending.

    Raises:
        ValueError: if a kind of pair is missing.
    """
    if genuine.sum() == 0 or impostor.sum() == 0:
        raise ValueError("verification needs pairs of one person and pairs of two")
    used = np.flatnonzero(genuine + impostor)[::-1]
    edges = used * (2 / len(genuine)) - 1
    return Verification(edges, np.cumsum(genuine[used]), np.cumsum(impostor[used]))


def similarity_bins(similarity: Tensor, bins: int = BINS) -> Tensor:
    """Similarities in [-1, 1] → int32 bins; `bins`, a power of two, so that no rounding crosses an edge."""
    half = bins // 2
    return (similarity * half).floor_().clamp_(-half, half - 1).int().add_(half)


def _sorted(
    embeddings: Tensor | np.ndarray, labels: np.ndarray
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """(N, E) rows sorted by person, (N,) person of each as 0, 1, ..., and (N,) where it was."""
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    rows = torch.as_tensor(embeddings).detach().float()
    if len(rows) != len(codes) or len(codes) == 0:
        raise ValueError("embeddings and labels must have one same length, above 0")
    return rows[torch.from_numpy(order).to(rows.device)], codes[order], order


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    step = max(1, min(CHUNK, CHUNK_BYTES // (4 * size)))
    for start in range(0, size, step):
        yield start, min(start + step, size)


def _span(codes: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Rows of all the people who have a row from start to stop."""
    return (
        int(np.searchsorted(codes, codes[start])),
        int(np.searchsorted(codes, codes[stop - 1], side="right")),
    )


def _count(bins: Tensor, size: int) -> np.ndarray:
    """How often each bin below `size` occurs; the bin `size` is for what is not counted."""
    return torch.bincount(bins.flatten(), minlength=size + 1)[:size].cpu().numpy()

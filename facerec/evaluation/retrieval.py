"""Retrieval figures of face embeddings, after Musgrave et al., "A Metric Learning Reality Check" (2020).

Every picture searches for its own person among all the others: the query is left out of its neighbours,
and a person with one picture is a distractor in the gallery, never a probe. Notable: a probe needs only
as many neighbours as its own person has mates, R, so probes are taken in order of R; the R best are found by
reading the best of each block of columns first; similarities are made in chunks, so that memory is bounded;
ties go to the lower gallery index, on every machine.

Axes: P probes, G gallery, E embedding, R mates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facerec.evaluation.pair_counts import all_pairs
from facerec.evaluation.verification import verification

__all__ = ["Retrieval", "all_pairs", "retrieval", "unit", "validation_figures", "verification"]

CHUNK_BYTES = 448 * 2**20  # of similarities, or of their sort keys: the memory bound of a search
MAX_BLOCK = 256
LOW_WORD = 2**32 - 1


@dataclass(frozen=True)
class Retrieval:
    """What each probe found, one entry per probe; probes are in the order of the embeddings.

    Attributes:
        probe: (P,) int64, row of the probe in the embeddings.
        identity: (P,) label of the probe, as given.
        mates: (P,) int64, R: how many gallery entries show the probe's person.
        nearest: (P,) int64, gallery row of the nearest neighbour.
        recall_at_1: (P,) 0 or 1, whether the nearest neighbour is the same person.
        r_precision: (P,) share of the first R neighbours that are the same person.
        average_precision_at_r: (P,) mean of precision@i over the hits i <= R, divided by R.
    """

    probe: np.ndarray
    identity: np.ndarray
    mates: np.ndarray
    nearest: np.ndarray
    recall_at_1: np.ndarray
    r_precision: np.ndarray
    average_precision_at_r: np.ndarray

    def per_probe(self) -> dict[str, np.ndarray]:
        """The (P,) values behind each figure, under the figure's name."""
        return {
            "recall_at_1": self.recall_at_1,
            "r_precision": self.r_precision,
            "map_at_r": self.average_precision_at_r,
        }

    def figures(self) -> dict[str, float]:
        """Means over probes, each in [0, 1]: recall_at_1, r_precision, map_at_r."""
        return {name: float(values.mean()) for name, values in self.per_probe().items()}


def retrieval(
    embeddings: Tensor | np.ndarray,
    labels: np.ndarray,
    *,
    gallery: tuple[Tensor | np.ndarray, np.ndarray] | None = None,
    chunk: int = 1024,
) -> Retrieval:
    """Recall@1, R-Precision and MAP@R of each probe, by cosine similarity.

    Args:
        embeddings: (N, E) float; scaled to unit length here. The search runs where this tensor is.
        labels: (N,) identity of each row: numbers or strings.
        gallery: (G, E) embeddings and (G,) labels to search instead of the other rows of `embeddings`;
            it must not hold the probes themselves.
        chunk: most probes at a time, fewer where their similarities would pass 448 MiB.

    Returns:
        One entry for each row that has a mate in the gallery.

    Raises:
        ValueError: if shapes disagree, an embedding is not finite, or no row has a mate.
    """
    probes, alone = unit(embeddings), gallery is None
    gallery_rows, gallery_labels = probes, labels
    if gallery is not None:
        gallery_rows, gallery_labels = unit(gallery[0]).to(probes.device), gallery[1]
    codes, gallery_codes = _codes(labels, gallery_labels)
    if len(codes) != len(probes) or len(gallery_codes) != len(gallery_rows):
        raise ValueError("embeddings and labels must have the same length")
    mates = np.bincount(gallery_codes, minlength=codes.max() + 1)[codes] - int(alone)
    rows = np.flatnonzero(mates > 0)
    if len(rows) == 0:
        raise ValueError("no picture has another one of the same person: nothing can be retrieved")
    rows = rows[np.argsort(mates[rows], kind="stable")]
    nearest, scores = np.empty(len(codes), dtype=np.int64), np.empty((3, len(codes)))
    for part, found in _search(probes, gallery_rows, rows, mates[rows], chunk, alone):
        same = gallery_codes[found] == codes[part, None]
        nearest[part], scores[:, part] = found[:, 0], _score(same, mates[part])
    rows = np.sort(rows)
    return Retrieval(
        probe=rows,
        identity=np.asarray(labels)[rows],
        mates=mates[rows],
        nearest=nearest[rows],
        recall_at_1=scores[0, rows],
        r_precision=scores[1, rows],
        average_precision_at_r=scores[2, rows],
    )


def validation_figures(embeddings: Tensor | np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The figures that training logs of validation people, in one cheap call.

    Args:
        embeddings: (N, E) float.
        labels: (N,) identities.

    Returns:
        recall_at_1, r_precision, map_at_r of `retrieval`; verification_accuracy over all pairs of pictures
        at the best threshold, genuine and impostor pairs weighing the same; tar_at_far_1e-3, absent
        where there are too few impostor pairs to measure it.

    Raises:
        ValueError: as `retrieval`.
    """
    figures = retrieval(embeddings, labels).figures()
    pairs = all_pairs(unit(embeddings), labels)
    figures["verification_accuracy"] = pairs.balanced_accuracy
    rate = pairs.tar_at_far(1e-3)
    if rate.measurable:
        figures["tar_at_far_1e-3"] = rate.tar
    return figures


def top(similarity: Tensor, width: int) -> Tensor:
    """Columns of the `width` largest entries of each row, largest first, ties by the lower column.

    The best of each block of columns is read first. Blocks are runs of columns, so the `width` best blocks,
    ties by the lower block, hold the `width` best entries, and only those are sorted.

    Args:
        similarity: (P, G) float32, contiguous; G a multiple of MAX_BLOCK.
        width: 1 to G.

    Returns:
        (P, width) int64.
    """
    block = _block(width, similarity.shape[1])
    if block == 1:
        return _first(similarity, width)
    blocks = similarity.unflatten(1, (-1, block))
    best = _first(blocks.amax(2), width).sort(1).values  # in column order, for the ties
    inside = blocks.gather(1, best[:, :, None].expand(-1, -1, block)).flatten(1)
    place = _first(inside, width)
    return best.gather(1, place // block) * block + place % block


def unit(embeddings: Tensor | np.ndarray) -> Tensor:
    """(N, E) embeddings as float32 rows of unit length; ValueError if not finite or not a matrix."""
    rows = torch.as_tensor(embeddings).detach().float()
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"embeddings must be (N, E) with N > 0, not {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("embeddings hold NaN or infinity")
    return torch.nn.functional.normalize(rows, dim=1)


def _codes(labels: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of any kind → small integers, the same in both."""
    probe_labels, gallery_labels = np.asarray(labels), np.asarray(gallery)
    _, codes = np.unique(np.concatenate([probe_labels, gallery_labels]), return_inverse=True)
    return codes[: len(probe_labels)], codes[len(probe_labels) :]


def _search(
    probes: Tensor, gallery: Tensor, rows: np.ndarray, widths: np.ndarray, chunk: int, alone: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Neighbours of the probes in `rows`, chunk by chunk.

    Args:
        probes: (N, E) unit rows.
        gallery: (G, E) unit rows; the probes themselves if `alone`, and then no probe finds itself.
        rows: (P,) probes to search for, in ascending order of `widths`.
        widths: (P,) how many neighbours each needs.
        chunk: most probes at a time.
        alone: whether gallery row i is probe i.

    Yields:
        (C,) rows of a chunk and (C, K) gallery rows, nearest first, K its largest width.
    """
    count = len(gallery)
    gallery = torch.nn.functional.pad(gallery, (0, 0, 0, -count % MAX_BLOCK))
    parts = _parts(widths, len(gallery), chunk)
    room = gallery.new_empty(max(part.stop - part.start for part in parts), len(gallery))
    for part in parts:
        picked = torch.from_numpy(rows[part]).to(probes.device)
        similarity = torch.mm(probes[picked], gallery.T, out=room[: len(picked)])
        similarity[:, count:] = -torch.inf
        if alone:
            similarity.scatter_(1, picked[:, None], -torch.inf)
        yield rows[part], top(similarity, int(widths[part].max())).cpu().numpy()


def _parts(mates: np.ndarray, columns: int, chunk: int) -> list[slice]:
    """Runs of probes, sorted by R, that are searched together, so that no step passes CHUNK_BYTES."""
    parts, start = [], 0
    while start < len(mates):
        stop = min(start + chunk, len(mates))
        while stop - start > 1 and (stop - start) * _bytes(mates[stop - 1], columns) > CHUNK_BYTES:
            stop = start + (stop - start) // 2
        parts.append(slice(start, stop))
        start = stop
    return parts


def _bytes(width: int, columns: int) -> int:
    """Bytes that the largest step of `top` takes for one probe."""
    block = _block(width, columns)
    keys = columns if block == 1 else max(width * block, columns // block)
    return max(4 * columns, 16 * keys)


def _block(width: int, columns: int) -> int:
    """Columns in a block: the power of two near which reading blocks costs as much as reading in them."""
    block = 2 ** max(0, round(float(np.log2(columns / width)) / 2))
    return min(block, MAX_BLOCK) if block >= 4 else 1


def _first(values: Tensor, width: int) -> Tensor:
    """(P, K) float32 → (P, width) positions of the largest, largest first, ties by the lower position."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 and 0.0 one
    bits ^= (bits >> 31) & 0x7FFFFFFF  # now they sort as integers in the order of the floats
    keys = bits.long().bitwise_left_shift_(32)
    keys |= LOW_WORD - torch.arange(values.shape[1], device=values.device)
    return keys.topk(width, dim=1).indices


def _score(same: np.ndarray, mates: np.ndarray) -> np.ndarray:
    """(P, K) hits in order and (P,) R → (3, P): recall at 1, R-Precision, average precision at R."""
    place = np.arange(1, same.shape[1] + 1)
    hits = same & (place <= mates[:, None])
    precision = hits.cumsum(1) / place
    return np.stack([hits[:, 0], hits.sum(1) / mates, (precision * hits).sum(1) / mates])

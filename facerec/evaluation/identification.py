"""Who is this: search of probes in a gallery of known people, closed set and open set.

A person may have several gallery pictures; the best of them is the person's score. A tie counts against the
probe. Rates follow Grother et al., "Face Recognition Vendor Test, Part 2: Identification" (NISTIR 8271).

Axes: P probes, M mated probes, S searches without a mate, G gallery pictures, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from facerec.evaluation.retrieval import unit
from facerec.evaluation.verification import RateAtFar, measurable, power

CHUNK_BYTES = 128 * 2**20  # of similarities at a time


@dataclass(frozen=True)
class Identification:
    """What the search found.

    Attributes:
        mated: (M,) rows of the probes whose person is in the gallery.
        rank: (M,) place of the probe's person among the gallery's people, from 1.
        score: (M,) similarity to the probe's person.
        nearest: (P,) gallery row most similar to each probe.
        unmated: (S,) best similarity of each search that should find nobody: of the probes whose
            person is not in the gallery, or, where there are none (`removed`), of the mated probes
            with their own person taken out of it.
        removed: whether `unmated` comes from the mated probes.
        ranks, fpir: what `figures` reports.
    """

    mated: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    nearest: np.ndarray
    unmated: np.ndarray
    removed: bool
    ranks: tuple[int, ...]
    fpir: tuple[float, ...]

    def rate_at_rank(self, rank: int) -> float:
        """Share of mated probes whose person is among the first `rank` people."""
        return float(np.mean(self.rank <= rank))

    def tpir_at_fpir(self, fpir: float) -> RateAtFar:
        """Share of mated probes found first and above the threshold that `fpir` of unmated searches pass.

        The threshold is the lowest score seen that keeps to `fpir`. NaN where fewer than 10
        false positives would be expected.
        """
        above = np.sort(self.unmated)[::-1]
        seen = np.unique(np.concatenate([self.score, self.unmated]))
        passed = np.searchsorted(-above, -seen, side="right")
        kept = seen[passed <= int(fpir * len(above) + 1e-9)]
        threshold = float(kept[0]) if len(kept) else float(np.nextafter(seen[-1], 2))
        found = int(np.sum((self.rank == 1) & (self.score >= threshold)))
        enough = measurable(fpir, len(above))
        return RateAtFar(
            far=fpir,
            threshold=threshold,
            tar=found / len(self.rank) if enough else float("nan"),
            true_accepts=found,
            false_accepts=int(np.sum(above >= threshold)),
            genuine=len(self.rank),
            impostor=len(above),
            of="unmated searches",
        )

    def figures(self) -> dict[str, float]:
        """rate_at_rank_K and, where measurable, tpir_at_fpir_F, each in [0, 1]."""
        figures = {f"rate_at_rank_{rank}": self.rate_at_rank(rank) for rank in self.ranks}
        open_set = [self.tpir_at_fpir(fpir) for fpir in self.fpir]
        return figures | {f"tpir_at_fpir_{power(r.far)}": r.tar for r in open_set if r.measurable}


def identification(
    probe_embeddings: Tensor | np.ndarray,
    probe_labels: np.ndarray,
    gallery_embeddings: Tensor | np.ndarray,
    gallery_labels: np.ndarray,
    *,
    ranks: tuple[int, ...] = (1, 5, 10),
    fpir: tuple[float, ...] = (1e-1, 1e-2),
) -> Identification:
    """Search each probe among the people of a gallery.

    Args:
        probe_embeddings: (P, E) float.
        probe_labels: (P,) identities; those absent from the gallery are people it must not find.
        gallery_embeddings: (G, E) float, of two or more people, any number of pictures each.
        gallery_labels: (G,) identities.
        ranks, fpir: what `Identification.figures` reports.

    Raises:
        ValueError: if shapes disagree, no probe's person is in the gallery, or it holds one person only.
    """
    probes, gallery = unit(probe_embeddings).cpu(), unit(gallery_embeddings).cpu()
    if len(probes) != len(probe_labels) or len(gallery) != len(gallery_labels):
        raise ValueError("embeddings and labels must have the same length")
    order = np.argsort(np.asarray(gallery_labels), kind="stable")
    people, starts = np.unique(np.asarray(gallery_labels)[order], return_index=True)
    person = _find(people, np.asarray(probe_labels))
    if len(people) < 2 or (person < 0).all():
        raise ValueError("the gallery needs two people or more, and a probe's person among them")
    step = max(1, CHUNK_BYTES // (4 * len(gallery)))
    parts = [
        _search(probes[i : i + step], gallery[order], starts, person[i : i + step])
        for i in range(0, len(probes), step)
    ]
    nearest, rank, score, other = (np.concatenate(column) for column in zip(*parts, strict=True))
    mated = person >= 0
    removed = bool(mated.all())
    return Identification(
        mated=np.flatnonzero(mated),
        rank=rank[mated],
        score=score[mated],
        nearest=order[nearest],
        unmated=other if removed else other[~mated],
        removed=removed,
        ranks=tuple(ranks),
        fpir=tuple(fpir),
    )


def _search(
    probes: Tensor, gallery: Tensor, starts: np.ndarray, person: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One chunk of probes against a gallery sorted by person.

    Args:
        probes: (C, E), gallery: (G, E) unit rows.
        starts: (N,) first gallery row of each person.
        person: (C,) each probe's person among them, -1 where absent.

    Returns:
        (C,) nearest gallery row, rank of the own person, its score, best score of another person.
    """
    similarity = (probes @ gallery.T).numpy()
    scores = np.maximum.reduceat(similarity, starts, axis=1)
    rows = np.arange(len(person))
    own = np.where(person >= 0, scores[rows, person], np.inf)
    scores[rows[person >= 0], person[person >= 0]] = -np.inf
    rank = 1 + np.sum(scores >= own[:, None], axis=1)
    return similarity.argmax(1), rank, own, scores.max(1)


def _find(people: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Places of labels among the sorted people, -1 where absent."""
    place = np.searchsorted(people, labels).clip(max=len(people) - 1)
    return np.where(people[place] == labels, place, -1)

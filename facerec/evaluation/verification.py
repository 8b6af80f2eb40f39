"""Same person or not: verification figures of pairs, as a curve over thresholds.

A pair is accepted when its cosine similarity is at or above the threshold. Two sources give the same curve:
a list of pairs (here: exact, one threshold per distinct similarity) and all pairs of a set of embeddings
(`facerec.evaluation.pair_counts`: counted in bins of similarity). A rate at a false accept rate (FAR) that too few
impostor pairs stand behind is never a number.

Axes: P pairs, T thresholds, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
MIN_FALSE_ACCEPTS = 10  # expected; below it a TAR at FAR is noise


@dataclass(frozen=True)
class RateAtFar:
    """True accept rate at a false accept rate.

    Attributes:
        far: the rate aimed at; the one reached, false_accepts / impostor, is never above it.
        threshold: lowest similarity of the curve that keeps to `far`.
        tar: share of genuine pairs accepted; NaN where not measurable.
        true_accepts, false_accepts: pairs accepted at the threshold.
        genuine, impostor: pairs there are.
        of: what the false accepts are counted in.
    """

    far: float
    threshold: float
    tar: float
    true_accepts: int
    false_accepts: int
    genuine: int
    impostor: int
    of: str = "impostor pairs"

    @property
    def measurable(self) -> bool:
        return measurable(self.far, self.impostor)

    def __str__(self) -> str:
        if not self.measurable:
            return f"not measurable: {self.impostor:,} {self.of}"
        return f"{self.tar:.4f}"


@dataclass(frozen=True)
class Verification:
    """The ROC of a set of pairs: what is accepted at each threshold.

    Attributes:
        thresholds: (T,) similarities, descending; a pair at or above one is accepted.
        true_accepts: (T,) int64, genuine pairs accepted, ascending to `genuine`.
        false_accepts: (T,) int64, impostor pairs accepted, ascending to `impostor`.
    """

    thresholds: np.ndarray
    true_accepts: np.ndarray
    false_accepts: np.ndarray

    @property
    def genuine(self) -> int:
        return int(self.true_accepts[-1])

    @property
    def impostor(self) -> int:
        return int(self.false_accepts[-1])

    @cached_property
    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """(T + 1,) false accept rates and true accept rates, from (0, 0) to (1, 1)."""
        return _from_zero(self.false_accepts), _from_zero(self.true_accepts)

    @property
    def auc(self) -> float:
        """Area under the ROC: chance that a genuine pair beats an impostor pair, a tie counting half."""
        far, tar = self.roc
        return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1])) / 2)

    @property
    def eer(self) -> float:
        """Rate at which false accepts equal false rejects, on straight lines between the ROC's points."""
        far, tar = self.roc
        gap = far - (1 - tar)
        after = int(np.argmax(gap >= 0))
        share = gap[after - 1] / (gap[after - 1] - gap[after])
        return float(far[after - 1] + share * (far[after] - far[after - 1]))

    @property
    def best_threshold(self) -> float:
        """Threshold of the most right decisions, the highest of equal ones."""
        return self._best(self.genuine, self.impostor)[0]

    @property
    def best_accuracy(self) -> float:
        """Share of right decisions at `best_threshold`: optimistic, as it is chosen on these pairs."""
        return self._best(self.genuine, self.impostor)[1] / (self.genuine + self.impostor)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of true accept and true reject rate at the threshold that is best for it."""
        return self._best(1, 1)[1] / 2

    @property
    def balanced_threshold(self) -> float:
        """Threshold of `balanced_accuracy`."""
        return self._best(1, 1)[0]

    def counts(self, threshold: float) -> tuple[int, int]:
        """Genuine and impostor pairs accepted at a threshold (of a binned curve: its next higher edge)."""
        accepted = int(np.searchsorted(-self.thresholds, -threshold, side="right"))
        return self._accepts(accepted)

    def accuracy(self, threshold: float) -> float:
        """Share of pairs decided rightly at a threshold."""
        true_accepts, false_accepts = self.counts(threshold)
        right = true_accepts + self.impostor - false_accepts
        return right / (self.genuine + self.impostor)

    def tar_at_far(self, far: float) -> RateAtFar:
        """True accept rate at the lowest threshold whose false accept rate is not above `far`."""
        allowed = int(far * self.impostor + 1e-9)
        accepted = int(np.searchsorted(self.false_accepts, allowed, side="right"))
        true_accepts, false_accepts = self._accepts(accepted)
        tar = true_accepts / self.genuine if measurable(far, self.impostor) else float("nan")
        return RateAtFar(
            far=far,
            threshold=self._threshold(accepted),
            tar=tar,
            true_accepts=true_accepts,
            false_accepts=false_accepts,
            genuine=self.genuine,
            impostor=self.impostor,
        )

    def _accepts(self, accepted: int) -> tuple[int, int]:
        """Genuine and impostor pairs among the first `accepted` similarities of the curve."""
        if accepted == 0:
            return 0, 0
        return int(self.true_accepts[accepted - 1]), int(self.false_accepts[accepted - 1])

    def _best(self, genuine: float, impostor: float) -> tuple[float, float]:
        """Threshold and score of the best sum of the two right rates under these weights."""
        far, tar = self.roc
        score = tar * genuine + (1 - far) * impostor
        best = int(np.argmax(score))
        return self._threshold(best), float(score[best])

    def _threshold(self, accepted: int) -> float:
        """Lowest similarity among the first `accepted` of the curve; above all of them for 0."""
        if accepted == 0:
            return float(np.nextafter(self.thresholds[0], 2))
        return float(self.thresholds[accepted - 1])


def verification(similarity: np.ndarray | Tensor, same: np.ndarray | Tensor) -> Verification:
    """The curve of a list of pairs.

    Args:
        similarity: (P,) cosine similarity, in [-1, 1].
        same: (P,) bool, True where both pictures show one person.

    Raises:
        ValueError: if shapes disagree, a similarity is not finite, or a kind of pair is missing.
    """
    scores, genuine = _pairs(similarity, same)
    order = np.argsort(-scores, kind="stable")
    scores, genuine = scores[order], genuine[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true_accepts = np.cumsum(genuine, dtype=np.int64)[last]
    return Verification(scores[last], true_accepts, last + 1 - true_accepts)


@dataclass(frozen=True)
class TenFold:
    """LFW View 2: each fold decided with the threshold that is best for the others.

    Attributes:
        accuracy: (F,) share of right decisions in each fold.
        threshold: (F,) threshold used in each fold.
    """

    accuracy: np.ndarray
    threshold: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.accuracy.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean: the folds' standard deviation (F - 1 below) over the root of F."""
        return float(self.accuracy.std(ddof=1) / np.sqrt(len(self.accuracy)))

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


def ten_fold(
    similarity: np.ndarray | Tensor, same: np.ndarray | Tensor, fold: np.ndarray
) -> TenFold:
    """Accuracy in folds, after Huang et al., "Labeled Faces in the Wild" (2007), section V.

    Args:
        similarity: (P,) cosine similarity.
        same: (P,) bool, True for one person.
        fold: (P,) the fold of each pair; LFW has ten of 300 + 300 pairs.

    Raises:
        ValueError: if there are fewer than two folds, or a fold's others lack a kind of pair.
    """
    scores, genuine = _pairs(similarity, same)
    folds = np.unique(fold)
    if len(folds) < 2 or len(fold) != len(scores):
        raise ValueError(f"fold must give each of {len(scores)} pairs one of two or more folds")
    accuracy, threshold = np.empty((2, len(folds)))
    for i, held in enumerate(folds):
        out = np.asarray(fold) == held
        threshold[i] = verification(scores[~out], genuine[~out]).best_threshold
        accuracy[i] = np.mean((scores[out] >= threshold[i]) == genuine[out])
    return TenFold(accuracy, threshold)


def power(far: float) -> str:
    """A rate as it is written in names of figures: 1e-3."""
    return f"{far:.0e}".replace("e-0", "e-")


def measurable(far: float, impostor: int) -> bool:
    """Whether so many impostor pairs are enough for this FAR: at least 10 expected false accepts."""
    return far * impostor >= MIN_FALSE_ACCEPTS - 1e-9


def _pairs(
    similarity: np.ndarray | Tensor, same: np.ndarray | Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Checked (P,) float64 similarities and (P,) bool."""
    scores = np.asarray(torch.as_tensor(similarity).cpu(), dtype=np.float64)
    genuine = np.asarray(torch.as_tensor(same).cpu(), dtype=bool)
    if scores.ndim != 1 or scores.shape != genuine.shape:
        raise ValueError(
            f"similarity {scores.shape} and same {genuine.shape} must both be (pairs,)"
        )
    if not np.isfinite(scores).all():
        raise ValueError("similarities hold NaN or infinity")
    if genuine.all() or not genuine.any():
        raise ValueError("verification needs pairs of one person and pairs of two")
    return scores, genuine


def _from_zero(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], counts]) / counts[-1]

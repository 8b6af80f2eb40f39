"""Thresholds and a probability for similarities, learnt from validation people and kept beside the weights.

`facerec.inference.calibration` applies them. The thresholds are conservative: each keeps to its false accept rate
(FAR) on the pairs it was taken from, and carries how many pairs those were. The probability is a logistic curve after
Platt, "Probabilistic Outputs for Support Vector Machines" (1999), under equal odds of one person and two.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from facerec.evaluation.pair_counts import all_pairs
from facerec.evaluation.retrieval import unit
from facerec.evaluation.verification import FARS, RateAtFar, Verification
from facerec.inference.calibration import Balanced, Calibration, Curve, Threshold


def calibration(
    embeddings: Tensor | np.ndarray, labels: np.ndarray, fars: tuple[float, ...] = FARS
) -> Calibration:
    """What goes into calibration.json, from all pairs of pictures of validation people.

    Args:
        embeddings: (N, E) float.
        labels: (N,) identities.
        fars: false accept rates, each in (0, 1).

    Raises:
        ValueError: if there are no pairs of one person, or none of two.
    """
    pairs = all_pairs(unit(embeddings), labels)
    slope, intercept = platt(pairs)
    return Calibration(
        genuine=pairs.genuine,
        impostor=pairs.impostor,
        thresholds=[_entry(pairs.tar_at_far(far)) for far in fars],
        balanced=Balanced(threshold=pairs.balanced_threshold, accuracy=pairs.balanced_accuracy),
        probability=Curve(slope=slope, intercept=intercept),
    )


def platt(pairs: Verification) -> tuple[float, float]:
    """Slope and intercept of the logistic curve through the pairs, both kinds weighing the same.

    The targets are Platt's (N + 1) / (N + 2), not 1, so that pairs without overlap give a finite slope.
    """
    genuine = np.diff(pairs.true_accepts, prepend=0) / pairs.genuine
    impostor = np.diff(pairs.false_accepts, prepend=0) / pairs.impostor
    sure = (pairs.genuine + 1) / (pairs.genuine + 2), (pairs.impostor + 1) / (pairs.impostor + 2)
    one = genuine * sure[0] + impostor * (1 - sure[1])
    two = genuine * (1 - sure[0]) + impostor * sure[1]
    x = np.tile(pairs.thresholds, 2)[:, None]
    y = np.repeat([1, 0], len(pairs.thresholds))
    weight = (
        np.concatenate([one, two]) * 1e3
    )  # large against the penalty 1 / C, which is not wanted
    fit = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(x, y, sample_weight=weight)
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def _entry(rate: RateAtFar) -> Threshold:
    return Threshold(
        far=rate.far,
        threshold=rate.threshold,
        tar=rate.tar if rate.measurable else None,
        false_accepts=rate.false_accepts,
        measurable=rate.measurable,
    )

"""Thresholds and a probability for similarities, learnt from validation people and kept beside the weights.

The thresholds are conservative: each keeps to its false accept rate (FAR) on the pairs it was taken from, and
carries how many pairs those were. The probability is a logistic curve after Platt, "Probabilistic
Outputs for Support Vector Machines" (1999), under equal odds of one person and two.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from facerec.verification import FARS, Verification


def calibration(pairs: Verification, fars: tuple[float, ...] = FARS) -> dict:
    """What goes into calibration.json.

    Args:
        pairs: the curve of pairs of validation people, as from `all_pairs`.
        fars: false accept rates, each in (0, 1).

    Returns:
        Plain numbers. `genuine`, `impostor`: pairs there were. `thresholds`: for each FAR `far`,
        `threshold`, `tar` (None where not measurable), `false_accepts`, `measurable`.
        `probability`: `slope`, `intercept`, `prior` of the logistic curve.
    """
    rates = [pairs.tar_at_far(far) for far in fars]
    slope, intercept = platt(pairs)
    return {
        "genuine": pairs.genuine,
        "impostor": pairs.impostor,
        "thresholds": [
            {
                "far": rate.far,
                "threshold": rate.threshold,
                "tar": rate.tar if rate.measurable else None,
                "false_accepts": rate.false_accepts,
                "measurable": rate.measurable,
            }
            for rate in rates
        ],
        "probability": {"slope": slope, "intercept": intercept, "prior": 0.5},
    }


def threshold_at(calibrated: dict, far: float) -> float:
    """Similarity at or above which two pictures count as one person, at this false accept rate.

    Raises:
        ValueError: if that rate was not calibrated, or too few pairs stood behind it.
    """
    known = {entry["far"]: entry for entry in calibrated["thresholds"]}
    entry = next((known[key] for key in known if np.isclose(key, far, rtol=1e-6)), None)
    usable = ", ".join(f"{key:g}" for key in known if known[key]["measurable"]) or "none"
    if entry is None:
        raise ValueError(f"no threshold for FAR {far:g}; this model has: {usable}")
    if not entry["measurable"]:
        raise ValueError(
            f"FAR {far:g} is not measurable with the {calibrated['impostor']:,} impostor pairs "
            f"behind this model; measurable: {usable}"
        )
    return entry["threshold"]


def probability(similarity: np.ndarray | float, calibrated: dict) -> np.ndarray:
    """Chance in (0, 1) that a pair shows one person, if half of all pairs did."""
    curve = calibrated["probability"]
    return 1 / (1 + np.exp(-(curve["slope"] * np.asarray(similarity) + curve["intercept"])))


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
    )  # of order 1e3, so that the penalty 1 / C does not count
    model = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(x, y, sample_weight=weight)
    return float(model.coef_[0, 0]), float(model.intercept_[0])

"""Figures with 95 % intervals, and the difference of two models on the same pictures.

Every figure carries its bootstrap draws, which are the same for all features measured, so that the difference of
two models' draws is the paired one.

Axes: N pictures, E features, P pairs, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from facerec.errors import InputError
from facerec.evaluation.confidence import (
    Figure,
    from_draws,
    identity_draws,
    mean_draws,
    pair_draws,
    wilson,
)
from facerec.evaluation.pair_counts import COARSE, all_pairs, identity_pairs, mates_accepted
from facerec.evaluation.retrieval import retrieval, unit
from facerec.evaluation.verification import FARS, RateAtFar, Verification, power, verification

TITLES = {
    "recall_at_1": "Recall@1",
    "r_precision": "R-Precision",
    "map_at_r": "MAP@R",
    "verification_accuracy": "Verification accuracy",
    "auc": "ROC AUC",
    "eer": "EER",
    "pairs_auc": "ROC AUC, listed pairs",
    "pairs_eer": "EER, listed pairs",
    "devtrain_threshold_accuracy": "Accuracy, threshold from DevTrain pairs (maybe known people)",
    "devtest_accuracy": "Accuracy, DevTest people only",
    "rate_at_rank_1": "Identified at rank 1",
    "rate_at_rank_5": "Identified at rank 5",
    "rate_at_rank_10": "Identified at rank 10",
}
NO_THRESHOLD = "no threshold from validation people"


@dataclass
class Measured:
    """Figures of one column of the table.

    Attributes:
        figures: by name, in the order of the table.
        draws: (R,) resampled values of those that can be compared.
        curve: accepted pairs over thresholds, where the protocol has pairs.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    curve: Verification | None = None

    def add(self, name: str, value: float, draws: np.ndarray, figure: Figure | None = None) -> None:
        """A figure with its draws; the interval is theirs unless the figure brings its own."""
        self.figures[name] = figure or from_draws(value, draws)
        self.draws[name] = draws


def differences(first: Measured, second: Measured) -> dict[str, Figure]:
    """First minus second, paired, for every figure that both have."""
    return {
        name: from_draws(first.figures[name].value - second.figures[name].value, draws - other)
        for name, draws in first.draws.items()
        if (other := second.draws.get(name)) is not None and len(other) == len(draws)
    }


def people(
    found: Measured, features: np.ndarray, labels: np.ndarray, threshold: float | None
) -> None:
    """Retrieval and all pairs of people's pictures; intervals by bootstrap over people.

    Raises:
        InputError: nobody has two pictures, or all pictures are of one person.
    """
    rows = unit(features)
    try:
        ranked, curve = retrieval(rows, labels), all_pairs(rows, labels)
    except ValueError as error:
        raise InputError(f"these people cannot be measured: {error}") from None
    for name, values in ranked.per_probe().items():
        found.add(name, float(values.mean()), mean_draws(values, ranked.identity))
    found.curve = curve
    cut = 0 if threshold is None else int(np.clip((1 - threshold) * COARSE / 2, 0, COARSE))
    draws = identity_draws(*identity_pairs(rows, labels), accepted=cut)
    if threshold is None:
        found.figures["verification_accuracy"] = Figure.missing(NO_THRESHOLD)
    else:
        true_accepts, false_accepts = curve.counts(threshold)
        right = true_accepts / curve.genuine + 1 - false_accepts / curve.impostor
        found.add("verification_accuracy", right / 2, draws["accuracy"])
    found.add("auc", curve.auc, draws["auc"])
    found.add("eer", curve.eer, draws["eer"])
    rates = [curve.tar_at_far(far) for far in FARS]
    mates = mates_accepted(rows, labels, np.array([rate.threshold for rate in rates]))
    for i, rate in enumerate(rates):
        _rate(found, rate, "", mates.accepted[:, i], labels[mates.probe], mates.mates)


def listed(found: Measured, similarity: np.ndarray, same: np.ndarray, prefix: str = "") -> None:
    """ROC figures of a list of pairs; Wilson's intervals for rates, bootstrap over pairs for the others."""
    curve = verification(similarity, same)
    found.curve = found.curve or curve
    draws = pair_draws(similarity, same)
    found.add(f"{prefix}auc", curve.auc, draws["auc"])
    found.add(f"{prefix}eer", curve.eer, draws["eer"])
    for far in FARS:
        rate = curve.tar_at_far(far)
        accepted = similarity[same] >= rate.threshold
        figure = wilson(rate.true_accepts, rate.genuine)
        _rate(found, rate, prefix, accepted, np.arange(len(accepted)), None, figure)


def accuracy(
    found: Measured,
    name: str,
    similarity: np.ndarray,
    same: np.ndarray,
    threshold: float | None,
) -> None:
    """Share of listed pairs decided rightly at a threshold learnt elsewhere."""
    if threshold is None:
        found.figures[name] = Figure.missing(NO_THRESHOLD)
        return
    right = (similarity >= threshold) == same
    figure = wilson(int(right.sum()), len(right))
    found.add(name, figure.value, mean_draws(right, np.arange(len(right))), figure)


def _rate(
    found: Measured,
    rate: RateAtFar,
    prefix: str,
    values: np.ndarray,
    identity: np.ndarray,
    weights: np.ndarray | None,
    figure: Figure | None = None,
) -> None:
    """TAR at one FAR, at its threshold as it is."""
    name = f"{prefix}tar_at_far_{power(rate.far)}"
    if not rate.measurable:
        found.figures[name] = Figure.missing(str(rate))
        return
    found.add(name, rate.tar, mean_draws(values, identity, weights=weights), figure)


def title(name: str) -> str:
    """A figure's name for people."""
    if name in TITLES:
        return TITLES[name]
    kind, _, rate = name.removeprefix("pairs_").partition("_at_")
    words = (
        f"{kind.upper()} at {rate.replace('_', ' ').replace('far', 'FAR').replace('fpir', 'FPIR')}"
    )
    return f"{words}, listed pairs" if name.startswith("pairs_") else words

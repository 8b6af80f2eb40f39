"""One person or two: a similarity judged by what calibration.json says.

`Calibration` is what that file holds, and `facerec.evaluation.calibrate` makes one; a file that
holds anything else is refused when the model is read.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from facerec.errors import InputError
from facerec.runtime.untrusted import Record


class Threshold(Record):
    """Lowest similarity accepted at the false accept rate `far`, and what it was on the pairs that it is from.

    Attributes:
        tar: share of genuine pairs accepted; None where not measurable.
        measurable: whether enough impostor pairs stand behind it.
    """

    far: float
    threshold: float
    tar: float | None = None
    false_accepts: int | None = Field(None, ge=0)
    measurable: bool


class Balanced(Record):
    """The threshold at which genuine and impostor pairs, weighing the same, are best told apart, and its accuracy."""

    threshold: float
    accuracy: float | None = None


class Curve(Record):
    """The logistic curve from similarity to the probability that a pair shows one person."""

    slope: float
    intercept: float
    prior: float = 0.5


class Calibration(Record):
    """What calibration.json holds; nothing where there was nobody to validate with.

    Attributes:
        genuine, impostor: pairs there were.
    """

    genuine: int = Field(0, ge=0)
    impostor: int = Field(0, ge=0)
    thresholds: list[Threshold] = Field([], max_length=1000)
    balanced: Balanced | None = None
    probability: Curve | None = None


@dataclass(frozen=True)
class Comparison:
    """Two pictures compared.

    Attributes:
        similarity: cosine, in [-1, 1].
        probability: that both show one person, if half of all pairs did, in [0, 1].
        same_person: whether `similarity` reaches `threshold`.
        threshold: lowest similarity accepted at `far`.
        far: share of the validation pairs of two people that are accepted.
        impostor_pairs: how many such pairs are behind the threshold.
    """

    similarity: float
    probability: float
    same_person: bool
    threshold: float
    far: float
    impostor_pairs: int

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)


def judge(calibration: Calibration, similarity: float, far: float) -> Comparison:
    """The verdict on a similarity.

    Args:
        calibration: a model's.
        similarity: in [-1, 1].
        far: one of the false accept rates that the model was calibrated for.

    Raises:
        InputError: another rate, one that too few validation pairs stand behind, or no calibration.
    """
    threshold = threshold_at(calibration, far)
    chance = probability(calibration, similarity)
    accepted = similarity >= threshold
    return Comparison(similarity, chance, accepted, threshold, far, calibration.impostor)


def threshold_at(calibration: Calibration, far: float) -> float:
    """The threshold for a false accept rate; errors as in `judge`."""
    if not calibration.thresholds:
        raise InputError("the model has no thresholds: its calibration.json does not hold them")
    usable = [entry for entry in calibration.thresholds if entry.measurable]
    for entry in usable:
        if math.isclose(entry.far, far, rel_tol=1e-6):
            return entry.threshold
    known = ", ".join(f"{entry.far:g}" for entry in usable[:20])
    few = any(math.isclose(entry.far, far, rel_tol=1e-6) for entry in calibration.thresholds)
    pairs = f"{calibration.impostor:,}"
    why = f", since too few pairs of two people were there in validation ({pairs})" * few
    instead = "compare similarities, or train with more validation people"
    if known:
        instead = f"give one of those that it has: {known}"
    raise InputError(f"far={far:g}: the model has no threshold for it{why}; {instead}")


def probability(calibration: Calibration, similarity: float) -> float:
    """Chance that a pair shows one person, in [0, 1]; errors as in `judge`."""
    curve = calibration.probability
    if curve is None:
        raise InputError("the model gives no probability: its calibration.json has no curve")
    logit = curve.slope * similarity + curve.intercept
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0

"""One person or two: a similarity judged by what calibration.json says.

The file may come from anywhere, so that every value is looked at before it is used; `facerec.calibration` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from facerec.settings import InputError


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


def judge(calibration: Mapping[str, Any], similarity: float, far: float) -> Comparison:
    """The verdict on a similarity.

    Args:
        calibration: a model's.
        similarity: in [-1, 1].
        far: one of the false accept rates that the model was calibrated for.

    Raises:
        InputError: another rate, one that too few validation pairs stand behind, or no calibration.
    """
    threshold, pairs = threshold_at(calibration, far)
    chance = probability(calibration, similarity)
    return Comparison(similarity, chance, similarity >= threshold, threshold, far, pairs)


def threshold_at(calibration: Mapping[str, Any], far: float) -> tuple[float, int]:
    """(threshold, impostor pairs behind it) for a false accept rate; errors as in `judge`."""
    try:
        entries = {number(e["far"]): e for e in calibration["thresholds"]}
        usable = {f: number(e["threshold"]) for f, e in entries.items() if e["measurable"] is True}
        pairs = int(number(calibration["impostor"]))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            "the model has no thresholds: its calibration.json does not hold them"
        ) from None
    at = next(
        (value for known, value in usable.items() if math.isclose(known, far, rel_tol=1e-6)), None
    )
    if at is None:
        known = ", ".join(f"{value:g}" for value in usable)
        few = any(math.isclose(k, far, rel_tol=1e-6) for k in entries)
        why = f", since too few pairs of two people were there in validation ({pairs:,})" * few
        instead = f"give one of those that it has: {known}" if known else "it has none for another"
        raise InputError(f"far={far:g}: the model has no threshold for it{why}; {instead}")
    return at, pairs


def probability(calibration: Mapping[str, Any], similarity: float) -> float:
    """Chance that a pair shows one person, in [0, 1]; errors as in `judge`."""
    try:
        curve = calibration["probability"]
        logit = number(curve["slope"]) * similarity + number(curve["intercept"])
    except (KeyError, TypeError, ValueError):
        raise InputError(
            "the model gives no probability: its calibration.json has no curve"
        ) from None
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def number(value: Any) -> float:
    """A finite number of JSON, not a truth value.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no number")
    try:
        finite = float(value)
    except OverflowError:
        raise ValueError("a number beyond those of 64 bits") from None
    if not math.isfinite(finite):
        raise ValueError(f"{value!r} is not finite")
    return finite

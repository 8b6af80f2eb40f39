"""95 % intervals around figures.

Rates over a fixed list of pairs: Wilson, "Probable Inference" (1927). Means of per-probe values: bootstrap
over identities with the gallery held fixed, because the pictures of one person are not independent (Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993). Two models are compared on the same draws, so
that what both find hard cancels. Everything is seeded: the same values give the same interval.

Axes: V values, I identities, P pairs, T thresholds, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
Z = 1.959963984540054  # two-sided 95 % of a normal distribution
DRAWS_AT_A_TIME = 2**22


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval.

    Attributes:
        value: NaN where it cannot be measured; `note` then says why.
        low, high: ends of the interval.
        note: a few words to go with it.
    """

    value: float
    low: float
    high: float
    note: str = ""

    @classmethod
    def missing(cls, note: str) -> Figure:
        """A figure that cannot be measured."""
        return cls(float("nan"), float("nan"), float("nan"), note)

    @property
    def measured(self) -> bool:
        return not np.isnan(self.value)

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval: of a difference, whether it is there."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if not self.measured:
            return self.note
        interval = f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"
        return f"{interval} {self.note}".rstrip()


def wilson(hits: int, total: int) -> Figure:
    """A rate over independent trials: score interval, sensible at 0 and 1 too.

    Raises:
        ValueError: unless 0 <= hits <= total and total > 0.
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} hits of {total} is no rate")
    rate, spread = hits / total, Z**2 / total
    middle = (rate + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * np.sqrt(rate * (1 - rate) / total + spread / total / 4)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Figure(rate, float(0.0 if hits == 0 else low), float(1.0 if hits == total else high))


def bootstrap(values: np.ndarray, identity: np.ndarray, **how: Any) -> Figure:
    """Mean of per-probe values, percentile interval over resampled identities; arguments as of `mean_draws`."""
    draws = mean_draws(values, identity, **how)
    return from_draws(float(np.average(values, weights=how.get("weights"))), draws)


def mean_draws(
    values: np.ndarray,
    identity: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Means of per-probe values when identities are drawn again, with replacement.

    The draws hang on the identities, the seed and their number alone: two models on the same probes are drawn
    alike, and the difference of their draws is the paired difference.

    Args:
        values: (V,) one per probe.
        identity: (V,) whose picture it is; all of a person's values are drawn together.
        weights: (V,) weight of each in the mean, such as the number of pairs behind a rate; 1 if not given.
        seed: of the draws.
        resamples: how many draws.

    Returns:
        (R,) means.

    Raises:
        ValueError: if there are no values or the lengths differ.
    """
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    if len(values) == 0 or not len(values) == len(identity) == len(weights):
        raise ValueError("values, identity and weights must have one same length, above 0")
    _, codes = np.unique(np.asarray(identity), return_inverse=True)
    sums = np.bincount(codes, np.asarray(values) * weights)
    totals = np.bincount(codes, weights)
    means = [
        sums[drawn].sum(1) / totals[drawn].sum(1) for drawn in _draws(len(sums), seed, resamples)
    ]
    return np.concatenate(means)


def from_draws(value: float, draws: np.ndarray, note: str = "") -> Figure:
    """Percentile interval; widened to hold the value, which the draws' bins may miss by a hair."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Figure(float(value), float(min(low, value)), float(max(high, value)), note)


def paired_difference(
    first: np.ndarray, second: np.ndarray, identity: np.ndarray, **how: int
) -> Figure:
    """Mean of first - second, per-probe values of two models on the same probes.

    Args:
        first, second: (V,) values of the same probes in the same order.
        identity: (V,) as in `bootstrap`; for a list of pairs, the pairs' own numbers.
        how: seed, resamples.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values are not of the same probes")
    return bootstrap(np.asarray(first, float) - np.asarray(second, float), identity, **how)


def pair_draws(
    similarity: np.ndarray, same: np.ndarray, *, seed: int = 0, resamples: int = 500
) -> dict[str, np.ndarray]:
    """AUC and EER of resampled pairs, genuine and impostor pairs drawn apart.

    Two calls with the same `same`, seed and resamples draw the same pairs, so that the difference of
    their results is the paired difference of two models.

    Args:
        similarity: (P,) cosine similarity.
        same: (P,) bool.

    Returns:
        `auc` and `eer`, (R,) each.
    """
    order = np.argsort(-similarity, kind="stable")
    last = np.append(np.flatnonzero(np.diff(similarity[order])), len(order) - 1)
    kinds = [np.flatnonzero(same), np.flatnonzero(~same)]
    rates = [
        list(_accepted(kind, order, last, seed + i, resamples)) for i, kind in enumerate(kinds)
    ]
    return curve_figures(np.concatenate(rates[1]), np.concatenate(rates[0]))


def identity_draws(
    genuine: np.ndarray,
    impostor: np.ndarray,
    *,
    accepted: int = 0,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, np.ndarray]:
    """Figures of all pairs when the probes' identities are drawn again, the gallery held fixed.

    Args:
        genuine, impostor: (I, T) pairs of each identity's probes in descending bins of similarity.
        accepted: bins above the threshold of `accuracy`.

    Returns:
        `auc`, `eer`, and `accuracy` with both kinds of pair weighing the same, (R,) each.
    """
    found: list[dict[str, np.ndarray]] = []
    counts = [kind.cumsum(1, dtype=np.float32) for kind in (impostor, genuine)]
    for drawn in _draws(len(genuine), seed, resamples):
        times = np.stack([np.bincount(row, minlength=len(genuine)) for row in drawn])
        sums = [times.astype(np.float32) @ kind for kind in counts]
        with np.errstate(invalid="ignore"):  # NaN where a draw has nobody with a mate
            far, tar = (part / part[:, -1:].astype(float) for part in sums)
        cut = [rate[:, accepted - 1] if accepted else np.zeros(len(far)) for rate in (far, tar)]
        found.append(curve_figures(far, tar) | {"accuracy": (cut[1] + 1 - cut[0]) / 2})
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def curve_figures(far: np.ndarray, tar: np.ndarray) -> dict[str, np.ndarray]:
    """Area under, and equal error rate of, many curves at once.

    Args:
        far, tar: (R, T) accept rates at descending thresholds, ending with 1; they start from 0.

    Returns:
        `auc` and `eer`, (R,) each.
    """
    far, tar = (np.pad(rate, ((0, 0), (1, 0))) for rate in (far, tar))
    auc = np.sum(np.diff(far) * (tar[:, 1:] + tar[:, :-1]), axis=1) / 2
    gap = far + tar - 1
    after = np.argmax(gap >= 0, axis=1)[:, None]
    far_after, far_before, gap_after, gap_before = (
        np.take_along_axis(rate, place, 1)[:, 0]
        for rate in (far, gap)
        for place in (after, after - 1)
    )
    share = gap_before / (gap_before - gap_after)
    return {"auc": auc, "eer": far_before + share * (far_after - far_before)}


def _accepted(
    kind: np.ndarray, order: np.ndarray, last: np.ndarray, seed: int, resamples: int
) -> Iterator[np.ndarray]:
    """(r, T) accept rates of one kind of pair when it is resampled.

    Args:
        kind: the pairs of that kind.
        order: (P,) all pairs by descending similarity.
        last: (T,) places in `order` at which a similarity ends.
    """
    size = len(order)
    for drawn in _draws(len(kind), seed, resamples, size):
        times = np.stack([np.bincount(kind[row], minlength=size) for row in drawn])
        yield times[:, order].cumsum(1)[:, last] / len(kind)


def _draws(size: int, seed: int, resamples: int, width: int | None = None) -> Iterator[np.ndarray]:
    """(r, size) resampled numbers below `size`; a batch is bounded by `width` columns, or by `size`."""
    random = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_A_TIME // max(size, width or 0))
    for start in range(0, resamples, step):
        yield random.integers(size, size=(min(step, resamples - start), size))

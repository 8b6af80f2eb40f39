"""A search space: which settings of `train` a study varies, over what, and what it is after.

A parameter is a setting of `train` with a range or choices; it may be switched on by another parameter's value,
never change its choices. space_yaml.py reads one from YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from facerec.errors import InputError

if TYPE_CHECKING:
    from optuna import Trial

# What a trial can be judged by, and which way is better.
METRICS = {
    "val/map_at_r": "maximize",
    "val/r_precision": "maximize",
    "val/recall_at_1": "maximize",
    "val/verification_accuracy": "maximize",
    "val/tar_at_far_1e-3": "maximize",
    "train/images_per_second": "maximize",
    "parameters": "minimize",
}


@dataclass(frozen=True)
class Parameter:
    """One dimension.

    Attributes:
        name: in the study; the setting's own unless several parameters set one setting in turn.
        setting: of `train`.
        kind: float, int or categorical.
        values: (low, high), both included, or the choices.
        log: sampled evenly in the logarithm.
        step: distance between values of a float or int; None for any value (1 for an int).
        when: other parameter → values with which this one exists; empty for always.
    """

    name: str
    setting: str
    kind: str
    values: tuple[Any, ...]
    log: bool = False
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def active(self, chosen: Mapping[str, Any]) -> bool:
        """Whether it exists beside the parameters `chosen` so far."""
        return all(chosen.get(name, ()) in values for name, values in self.when.items())

    def suggest(self, trial: Trial) -> Any:
        """A value from the sampler."""
        if self.kind == "categorical":
            return trial.suggest_categorical(self.name, self.values)
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(self.name, low, high, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, low, high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric: feasible where `excess` is at most 0."""

    metric: str
    bound: str  # at_least or at_most
    limit: float

    def excess(self, value: float) -> float:
        """How far a value is on the wrong side, in the metric's unit."""
        return self.limit - value if self.bound == "at_least" else value - self.limit


@dataclass(frozen=True)
class Space:
    """A validated search space; parameters stand after those that switch them on.

    Attributes:
        fixed: settings of `train` that every trial has, unless a parameter is switched on for them.
        objectives: metric → maximize or minimize; one or two.
        pruner: None leaves it to `pruner_name`.
    """

    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, Any]
    objectives: Mapping[str, str]
    constraints: tuple[Constraint, ...]
    sampler: str
    pruner: str | None

    @property
    def conditional(self) -> bool:
        """Whether a parameter is switched on or off by another."""
        return any(parameter.when for parameter in self.parameters)

    @property
    def always_searched(self) -> set[str]:
        """Settings that every trial varies; a fixed value of theirs would never count."""
        return {p.setting for p in self.parameters if not p.when}

    @property
    def can_prune(self) -> bool:
        """Whether trials can be stopped early: Optuna prunes by one figure, known epoch by epoch."""
        return len(self.objectives) == 1 and next(iter(self.objectives)).startswith("val/")

    def pruner_name(self, asked: str | None) -> str:
        """The pruner: as asked, else as the space says, else median where there can be one.

        Raises:
            InputError: for a pruner where trials cannot be stopped early.
        """
        name = asked or self.pruner or ("median" if self.can_prune else "none")
        if name != "none" and not self.can_prune:
            raise InputError(
                f"pruner {name} needs one objective that is measured every epoch (val/...): set pruner to none"
            )
        return name

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Setting → value of one trial."""
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(chosen):
                chosen[parameter.name] = parameter.suggest(trial)
        return self.settings(chosen)

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Setting → value, from the parameters of a trial by their names in the study."""
        return {p.setting: params[p.name] for p in self.parameters if p.name in params}

    def described(self) -> dict[str, Any]:
        """What must be the same for trials to be of one study, as plain JSON values."""
        parameters = {p.name: {**asdict(p), "when": dict(p.when)} for p in self.parameters}
        bounds = {f"{c.metric} {c.bound}": c.limit for c in self.constraints}
        return {
            "parameters": parameters,
            "objective": dict(self.objectives),
            "constraints": bounds,
        }


def differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> list[str]:
    """What differs between two plain descriptions: `parameters.lr.values [0.1, 1] was [0.1, 2]`, `parameters.depth is
    new`; a part that only one of them has is named as a whole, lists and tuples are alike."""
    told = []
    for key in sorted(before.keys() | now.keys()):
        name = f"{within}{key}"
        old, new = plain(before.get(key)), plain(now.get(key))
        if key not in before:
            told.append(f"{name} is new" if isinstance(new, Mapping) else f"{name} {new} is new")
        elif key not in now:
            told.append(f"{name} is missing")
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            told += differences(old, new, f"{name}.")
        elif old != new:
            told.append(f"{name} {new} was {old}")
    return told


def plain(value: Any) -> Any:
    """A tuple as the list that JSON makes of it."""
    return list(value) if isinstance(value, tuple) else value

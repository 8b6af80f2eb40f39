"""Reads a search space from YAML, by the settings' own rules: a typing mistake is told before the first trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from facerec.config.recipe import read_yaml, validate
from facerec.config.settings import Settings
from facerec.config.values import OCTAL, canonical
from facerec.data.settings import WHICH_DATA
from facerec.errors import InputError
from facerec.runtime.text import brief, nearest
from facerec.sweep.settings import SPACES
from facerec.sweep.space import METRICS, Constraint, Parameter, Space

SAMPLERS = ("tpe", "gp", "random")
PRUNERS = ("median", "hyperband", "none")
KEYS = ("parameters", "fixed", "objective", "constraints", "sampler", "pruner")
KINDS = ("float", "int", "categorical")
OPTIONS = ("log", "step", "when", "setting")
MAX_STEPS = 1_000_000  # between the ends of a range
# Settings that say where things lie or how they are watched: nothing to search, and free to differ between sessions.
NOT_SEARCHED = (
    "resume", "register", "experiment", "run_name", "output", "cache", "rebuild_store", "system_metrics",
    "checkpoint_minutes", "page_faces", "device", "seed", *WHICH_DATA,
)  # fmt: skip


def read_space(path: str, known: type[Settings]) -> Space:
    """The space in a YAML file.

    Args:
        path: of the file.
        known: settings that a trial takes.

    Raises:
        InputError: in one sentence, for whatever is wrong with it.
    """
    content = read_yaml("space", path, SPACES, "; docs/sweeps.md shows how to write one")
    try:
        return parse_space(content, known)
    except InputError as error:
        raise InputError(f"space {path}: {str(error).removeprefix(f'space {path}: ')}") from None


def parse_space(content: Any, known: type[Settings]) -> Space:
    """A space from what YAML says. Raises InputError."""
    content = mapping(content, "it")
    check_names(content, KEYS, "key")
    parameters = {
        str(name): parse_parameter(str(name), value, known)
        for name, value in mapping(content.get("parameters"), "parameters").items()
    }
    if not parameters:
        raise InputError("it has no parameters to search: list some under `parameters`")
    parameters = {n: conditions(p, parameters, known) for n, p in parameters.items()}
    fixed = mapping(content.get("fixed") or {}, "fixed")
    check_names(fixed, known.model_fields, "setting")
    checked = validate(known, fixed, lambda key: "fixed")
    fixed = {name: getattr(checked, name) for name in fixed}
    space = Space(
        parameters=ordered(parameters),
        fixed=fixed,
        objectives=parse_objectives(content.get("objective", "val/map_at_r")),
        constraints=parse_constraints(content.get("constraints") or {}),
        sampler=one_of(content.get("sampler"), SAMPLERS, "sampler") or "tpe",
        pruner=one_of(content.get("pruner"), PRUNERS, "pruner"),
    )
    for name in fixed:
        if name in space.always_searched:
            raise InputError(f"{name} is both searched and fixed: leave one out")
    return space


def mapping(value: Any, what: str) -> dict[str, Any]:
    """`value` if it is a YAML mapping. Raises InputError."""
    if not isinstance(value, Mapping):
        raise InputError(f"{what} must be a list of `key: value` lines")
    return {str(key): item for key, item in value.items()}


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises InputError for a name that is not known; the nearest known one is named."""
    known = list(known)
    for name in names:
        if name not in known:
            name = brief(name)
            near = nearest(name.replace("-", "_"), known, cutoff=0.4)
            hint = f"; did you mean {near!r}?" if near else f"; known: {brief(', '.join(known))}"
            raise InputError(f"there is no {what} {name!r}{hint}")


def one_of(value: Any, known: tuple[str, ...], what: str) -> str | None:
    """A name out of `known`, or nothing. Raises InputError."""
    if value is None:
        return None
    check_names([str(value)], known, what)
    return str(value)


def parse_parameter(name: str, content: Any, known: type[Settings]) -> Parameter:
    """One entry of `parameters`. Raises InputError."""
    content = mapping(content, f"parameter {name}")
    check_names(content, KINDS + OPTIONS, f"key in parameter {name}:")
    setting = str(content.get("setting", name))
    check_names([setting], known.model_fields, "setting")
    if setting in NOT_SEARCHED:
        raise InputError(f"{setting} cannot be searched: it does not change what is learned")
    kinds = [kind for kind in KINDS if kind in content]
    if len(kinds) != 1:
        raise InputError(f"parameter {name} needs exactly one of {', '.join(KINDS)}")
    (kind,) = kinds
    values = content[kind]
    if not isinstance(values, list) or len(values) < (1 if kind == "categorical" else 2):
        wanted = "[choice, choice, ...]" if kind == "categorical" else "[low, high]"
        raise InputError(f"parameter {name}: {kind} takes {wanted}")
    parameter = Parameter(
        name,
        setting,
        kind,
        tuple(check_value(name, setting, kind, value, known) for value in values),
        log=flag(name, content.get("log", False)),
        step=None if content.get("step") is None else number(name, kind, content["step"]),
        when=mapping(content.get("when") or {}, f"parameter {name}: when"),
    )
    check_range(parameter)
    return parameter


def flag(name: str, value: Any) -> bool:
    """`log` of a parameter. Raises InputError."""
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        raise InputError(f"parameter {name}: log={brief(value)} should be true or false") from None


def number(name: str, kind: str, value: Any) -> Any:
    """A number. Raises InputError."""
    text = canonical(value)  # a truth value is none
    if OCTAL.match(text):
        raise InputError(
            f"parameter {name}: {brief(text)} may be octal: leave out the leading zero"
        )
    try:
        result = float(text)
        whole = result == int(result)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"parameter {name}: {brief(value)} is no number") from None
    if kind == "int" and not whole:
        raise InputError(f"parameter {name}: {brief(value)} is no whole number")
    return int(result) if kind == "int" else result


def check_value(name: str, setting: str, kind: str, value: Any, known: type[Settings]) -> Any:
    """A bound or choice in the setting's own type. Raises InputError where the setting cannot have it."""
    if kind != "categorical":
        value = number(name, kind, value)
    checked = getattr(validate(known, {setting: value}, lambda key: "parameters"), setting)
    return value if kind == "float" else checked


def check_range(parameter: Parameter) -> None:
    """Raises InputError for a range that holds nothing, or that has no logarithm."""
    name = parameter.name
    if parameter.kind == "categorical":
        if parameter.log or parameter.step is not None:
            raise InputError(f"parameter {name}: log and step belong to float and int")
        if len(set(parameter.values)) != len(parameter.values):
            raise InputError(f"parameter {name}: a choice is listed twice")
        return
    if len(parameter.values) != 2 or not parameter.values[0] < parameter.values[1]:
        raise InputError(f"parameter {name}: give [low, high] with low below high")
    if parameter.log and parameter.values[0] <= 0:
        raise InputError(f"parameter {name}: log needs a lower end above 0")
    if parameter.step is not None and (parameter.log or parameter.step <= 0):
        raise InputError(f"parameter {name}: step must be above 0, and not beside log")
    if parameter.step and (parameter.values[1] - parameter.values[0]) / parameter.step > MAX_STEPS:
        raise InputError(
            f"parameter {name}: over {MAX_STEPS:,} steps: leave step out, or make it larger"
        )


def conditions(
    parameter: Parameter, parameters: Mapping[str, Parameter], known: type[Settings]
) -> Parameter:
    """`parameter` with each value of its `when` in the type of the parameter that it is about. Raises InputError."""
    check_names(parameter.when, parameters, f"parameter for `when` of {parameter.name}:")
    when = {}
    for name, values in parameter.when.items():
        above = parameters[name]
        listed = list(values) if isinstance(values, list) else [values]
        try:
            when[name] = tuple(
                check_value(name, above.setting, above.kind, value, known) for value in listed
            )
            strange = [value for value in when[name] if value not in above.values]
        except InputError:
            strange = listed
        if strange and (above.kind == "categorical" or name not in when):
            raise InputError(
                f"parameter {parameter.name}: {name} is never {brief(strange[0])}; its choices: {brief(above.values)}"
            )
    return replace(parameter, when=when)


def ordered(parameters: Mapping[str, Parameter]) -> tuple[Parameter, ...]:
    """Parameters after those that switch them on. Raises InputError for conditions that cannot be."""
    done: dict[str, Parameter] = {}
    while len(done) < len(parameters):
        ready = [p for n, p in parameters.items() if n not in done and set(p.when) <= set(done)]
        if not ready:
            raise InputError("conditions go round in a circle: no parameter can come first")
        done |= {p.name: p for p in ready}
    check_exclusive(tuple(done.values()))
    return tuple(done.values())


def check_exclusive(parameters: tuple[Parameter, ...]) -> None:
    """Raises InputError where two parameters could set one setting at once."""
    for i, one in enumerate(parameters):
        for other in parameters[:i]:
            apart = any(
                not set(one.when[name]) & set(other.when[name])
                for name in set(one.when) & set(other.when)
            )
            if one.setting == other.setting and not apart:
                raise InputError(
                    f"parameters {other.name} and {one.name} can both set {one.setting}: give them `when` "
                    "with values of the same parameter that exclude each other"
                )


def parse_objectives(content: Any) -> dict[str, str]:
    """Metric → direction: a name, `{minimize: name}`, or a list of two such. Raises InputError."""
    items = content if isinstance(content, list) else [content]
    if not 1 <= len(items) <= 2:
        raise InputError("objective: give one metric or a list of two")
    objectives = {}
    for item in items:
        if isinstance(item, Mapping) and len(item) != 1:
            raise InputError(
                "objective: give a metric, or one `minimize: metric` or `maximize: metric`"
            )
        direction, metric = next(iter(item.items())) if isinstance(item, Mapping) else (None, item)
        check_names([str(metric)], METRICS, "metric")
        if direction is not None:
            check_names([str(direction)], ("maximize", "minimize"), "direction")
        objectives[str(metric)] = direction or METRICS[metric]
    if len(objectives) != len(items):
        raise InputError("objective: the two metrics are the same")
    return objectives


def parse_constraints(content: Any) -> tuple[Constraint, ...]:
    """`metric: {at_least: number}` or `{at_most: number}`. Raises InputError."""
    constraints = []
    for metric, bounds in mapping(content, "constraints").items():
        check_names([metric], METRICS, "metric")
        bounds = mapping(bounds, f"constraint {metric}")
        check_names(bounds, ("at_least", "at_most"), f"bound of {metric}:")
        constraints += [
            Constraint(metric, bound, number(metric, "float", limit))
            for bound, limit in bounds.items()
        ]
    return tuple(constraints)

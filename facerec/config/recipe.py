"""Settings from defaults, a YAML recipe and the command line, validated once, with mistakes told in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from facerec.config import yaml_text
from facerec.config.settings import Settings
from facerec.config.values import wanted
from facerec.errors import InputError
from facerec.runtime.paths import expanded
from facerec.runtime.text import LONGEST, brief, nearest

Model = TypeVar("Model", bound=Settings)
PACKAGE = Path(__file__).parents[1]


def shipped(folder: str) -> dict[str, Path]:
    """YAML files that come with the package, by name; `configs/` and `sweeps/` of a checkout, by links."""
    return {path.stem: path for path in sorted((PACKAGE / folder).glob("*.yaml"))}


RECIPES = shipped("recipes")


def read_yaml(what: str, path: str, known: Mapping[str, Path], hint: str = "") -> Any:
    """What the YAML file says that a setting names; `path` and `known` as of `yaml_file`.

    Args:
        what: the setting, for the sentence.
        hint: how to go on where there is no such file.

    Raises:
        InputError: if the file is missing, too large, or not YAML.
    """
    try:
        file = yaml_file(path, known)
    except InputError as error:
        raise InputError(f"{what} {path}: {error}{hint}") from None
    try:
        return yaml_text.read(file)
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise InputError(
            f"{what} {path}: cannot be read as YAML: {brief(error, 2 * LONGEST)}"
        ) from error


def yaml_file(path: str, known: Mapping[str, Path]) -> Path:
    """The file of that path, or else the one of that name that comes with the package.

    Raises:
        InputError: there is neither.
    """
    file = expanded(path)
    if file.is_file():
        return file
    if path in known:
        return known[path]
    where = "" if file.is_absolute() else f" in {Path.cwd()}"
    raise InputError(
        f"there is no such file{where}; give a YAML file, or one of {', '.join(known)}, which come with facerec"
    )


def read_recipe(path: str) -> dict[str, Any]:
    """Settings in a YAML file: one flat mapping of setting to value.

    Args:
        path: of the file, or the name of one of RECIPES.

    Raises:
        InputError: if the file is missing, too large, not YAML, or not a flat mapping.
    """
    values = read_yaml("config", path, RECIPES)
    values = {} if values is None else values
    if not isinstance(values, dict) or any(
        isinstance(v, (dict, list, set)) for v in values.values()
    ):
        raise InputError(f"config {path}: a recipe is one flat list of `setting: value` lines")
    return {str(key): value for key, value in values.items()}


def resolve(model: type[Model], given: Mapping[str, Any], config: str | None = None) -> Model:
    """Settings from defaults, then the recipe `config`, then `given` (the command line).

    Raises:
        InputError: for an unknown key (the nearest known one is named) or a value out of range.
    """
    recipe = read_recipe(config) if config else {}
    for key in recipe:
        if key not in model.model_fields:
            raise InputError(f"config {config}: {unknown_key(key, model.model_fields)}")
    return validate(
        model,
        {**recipe, **given},
        lambda key: "command line" if key in given else f"config {config}",
    )


def validate(
    model: type[Model],
    values: Mapping[str, Any],
    source: Callable[[str], str] = lambda key: "settings",
) -> Model:
    """`model(**values)`, with pydantic's errors told as one sentence.

    Args:
        source: key → the place it came from, for the sentence.

    Raises:
        InputError: on the first value that does not fit.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise InputError(sentence(model, error, source)) from None


def sentence(model: type[Settings], error: ValidationError, source: Callable[[str], str]) -> str:
    """The first problem of a pydantic error in the words of a settings file."""
    problem = error.errors()[0]
    key = str(problem["loc"][0]) if problem["loc"] else ""
    reason = problem["msg"].removeprefix("Value error, ")
    if key not in model.model_fields:
        return reason if not key else unknown_key(key, model.model_fields)
    if problem["type"] == "missing":
        flag = "--" + key.replace("_", "-")
        return f"{key} is missing: give {flag} (or -P {key}=...): {model.model_fields[key].description}"
    reason = reason.replace("Input should be", "should be")
    return f"{key}={brief(problem['input'])} ({source(key)}): {reason}; wanted: {wanted(model.model_fields[key])}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known setting."""
    key = brief(key)
    near = nearest(key.replace("-", "_"), known, cutoff=0.5)
    return f"there is no setting {key!r}" + (f"; did you mean {near!r}?" if near else "")

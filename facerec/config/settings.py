"""Settings: one pydantic model an entry point is its command line, its YAML keys, its `-P` keys and its MLflow params.

A part of the package declares its own settings in a module that imports nothing heavy (`model/settings.py`); an entry
point's model inherits from the parts that it needs. Precedence: built-in defaults < YAML recipe < command line.
Every value arrives as text, also from YAML, and is validated once, by pydantic, so that a mistake reads the same
wherever it was made.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from facerec.config.values import canonical, read

# Settings are called `register` and `json`, and pydantic's models inherit methods of those names that nobody calls.
warnings.filterwarnings("ignore", message='Field name "(register|json)"', category=UserWarning)


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error. `none` stands for a missing value."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )
    group: ClassVar[str] = "Other"

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None  # a validator of fields
        return read(cls.model_fields[info.field_name], value)


def defaults(model: type[Settings]) -> dict[str, str]:
    """What every setting is where nobody says anything, as `as_params` has it."""
    return {
        name: canonical(field.default)
        for name, field in model.model_fields.items()
        if not field.is_required()
    }


def as_params(settings: Settings) -> dict[str, str]:
    """Every setting once, as the text that MLflow keeps."""
    return {name: canonical(value) for name, value in settings.model_dump().items()}


def grouped_fields(model: type[Settings]) -> dict[str, dict[str, FieldInfo]]:
    """Fields of `model` by the group of the class that declares them, an entry point's own group first."""
    groups: dict[str, dict[str, FieldInfo]] = {}
    for cls in model.__mro__:
        if not (isinstance(cls, type) and issubclass(cls, Settings)):
            continue
        for name in cls.__dict__.get("__annotations__", {}):
            if name in model.model_fields and not any(name in g for g in groups.values()):
                groups.setdefault(cls.group, {})[name] = model.model_fields[name]
    return groups

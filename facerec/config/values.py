"""The value of a setting: what text and numbers mean for its type, and the one spelling that it is written in.

Command line and YAML give text; Python and JSON give values of their own. A truth value or a number is read by its
spelling, so that `true` is no learning rate, and 1.0 is a count, wherever either was written.
"""

from __future__ import annotations

import re
import types
import typing
from decimal import Decimal
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
OCTAL = re.compile(r"[+-]?0[\d_]", re.ASCII)
DIGITS = 20  # of the longest whole number that is written with a point or an exponent


def read(field: FieldInfo, value: Any) -> Any:
    """A value as pydantic takes it: `none` where it is legal, a choice by its spelling, a number without doubt.

    Raises:
        ValueError: for a number with a leading zero, which YAML and C read as octal.
    """
    kind = kind_of(field)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    plain = kind in (bool, int, float) or any(not isinstance(c, str) for c in choices)
    if getattr(value, "ndim", None) == 0:  # NumPy's scalars
        value = value.item()
    if plain and isinstance(value, (bool, int, float)):
        value = canonical(value)
    if not isinstance(value, str):
        return value
    if is_optional(field) and value.lower() == "none":
        return None
    if plain and kind is not bool:
        value = value.strip()
        if OCTAL.match(value):
            raise ValueError("a leading zero leaves open whether it is octal: leave it out")
        if "_" in value:
            raise ValueError("an underscore leaves open which number is meant: leave it out")
        if kind is not float:
            value = whole(value)
    return next((choice for choice in choices if canonical(choice) == value), value)


def whole(text: str) -> str:
    """`1e3` and `8.0` as `1000` and `8`; any other text as it is."""
    if not DECIMAL.fullmatch(text):
        return text
    try:
        number = Decimal(text)
        small = number.adjusted() < DIGITS and number == number.to_integral_value()
    except ArithmeticError:  # an exponent of twenty digits
        return text
    return str(int(number)) if small else text


def kind_of(field: FieldInfo) -> Any:
    """The type of a field, without the None of `X | None`."""
    kinds = [a for a in (get_args(field.annotation) or ()) if a is not type(None)]
    return kinds[0] if is_union(field.annotation) else field.annotation


def is_optional(field: FieldInfo) -> bool:
    """Whether `none` is a legal value."""
    return type(None) in get_args(field.annotation)


def canonical(value: Any) -> str:
    """The one spelling of a setting's value, in MLflow params, help texts and MLproject.

    >>> canonical(1e-4), canonical(True), canonical(None), canonical(8)
    ('0.0001', 'true', 'none', '8')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def wanted(field: FieldInfo) -> str:
    """What a field takes, in words: `number > 0`, `true|false`, `triplet|arcface`."""
    kind = kind_of(field)
    if get_origin(kind) is Literal:
        text = "|".join(canonical(v) for v in get_args(kind))
    else:
        text = {bool: "true|false", int: "integer", float: "number"}.get(kind, "text")
    return " ".join([text, *bounds(field)])


def bounds(field: FieldInfo) -> list[str]:
    """The range of a number in words: `["16 to 512", "multiple of 8"]`, `["> 0"]`."""
    found = {
        name: canonical(getattr(bound, name))
        for bound in field.metadata
        for name in ("ge", "gt", "le", "lt", "multiple_of")
        if getattr(bound, name, None) is not None
    }
    words = []
    if "ge" in found and "le" in found:
        words.append(f"{found.pop('ge')} to {found.pop('le')}")
    symbols = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
    return words + [f"{symbol} {found[name]}" for name, symbol in symbols.items() if name in found]


def is_union(annotation: Any) -> bool:
    """Whether a type is `X | Y`."""
    return get_origin(annotation) in (types.UnionType, typing.Union)

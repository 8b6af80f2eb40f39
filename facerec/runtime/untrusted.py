"""Files that come from somewhere else: read within limits, inside their folder, as JSON without surprises."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from facerec.errors import InputError
from facerec.runtime.text import beginning, brief, shown

MAX_DEPTH = 16  # of nested JSON
MAX_VALUES = 100_000  # in a JSON file, beside those of 32 bytes: a small one takes 30 times its bytes in memory
PIECE = 2**22  # bytes read at a time
MAX_TEXT = 1000  # characters of a text in a record

Text = Annotated[
    str,
    BeforeValidator(lambda value: beginning(value, MAX_TEXT) if isinstance(value, str) else value),
]


class Record(BaseModel):
    """Base of what a JSON file from somewhere else must hold: exact types, finite numbers; unknown keys are dropped.

    A `Text` is made printable and cut, so that it can be written anywhere.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def as_record(model: type[AnyRecord], value: Any, where: str) -> AnyRecord:
    """A JSON value as the record that it should be.

    Args:
        where: the file, for the sentence.

    Raises:
        InputError: a value of another type, out of range, or missing; which one.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(shown(str(part), 50) for part in problem["loc"])
        reason = brief(problem["msg"].removeprefix("Value error, "))
        raise InputError(f"{where}, which facerec did not write so: {key}: {reason}") from None


def read_bytes(folder: Path, name: str, limit: int) -> bytes:
    """A file of a folder from somewhere else; errors as of `opened`."""
    with opened(folder, name, limit) as file:
        return read_up_to(limit + 1, file)


@contextmanager
def opened(folder: Path, name: str, limit: int) -> Iterator[BinaryIO]:
    """A file of a folder from somewhere else, to be read within the block.

    Raises:
        InputError: missing, above `limit` bytes, no regular file, or a link that leads out of the folder; also where
            reading fails within the block.
    """
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise InputError(f"{folder}: {name} is a link that leads out of the folder")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not block
        with open(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{folder}: {name} is no regular file")
            if status.st_size > limit:
                raise InputError(f"{folder}: {name} has {status.st_size:,} bytes, above {limit:,}")
            yield file
    except FileNotFoundError:
        raise InputError(f"{folder} is no whole model folder: {name} is missing") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a ring of links
        reason = getattr(error, "strerror", None) or brief(error)
        raise InputError(f"{folder}: {name} cannot be read: {reason}") from None


def read_up_to(limit: int, file: IO[bytes]) -> bytes:
    """What is left of a file, at most `limit` bytes; in pieces, since `read(limit)` would reserve all of them."""
    pieces = []
    while limit > 0 and (piece := file.read(min(limit, PIECE))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def check_sum(folder: Path, name: str, data: bytes, expected: str | None, config: str) -> None:
    """Raises InputError where a file's bytes are not those whose SHA-256 stands in the file `config`."""
    if hashlib.sha256(data).hexdigest() != expected:
        raise InputError(
            f"{folder}: {name} is damaged or belongs to another model: its SHA-256 is not the one in {config}"
        )


def parse_object(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    """The JSON object in a file's bytes.

    Raises:
        InputError: not valid JSON, no object, NaN in it, nested deeper than 16 levels, or a great many small values.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES + len(data) // 32:
        raise InputError(f"{folder}: {name} holds too many values")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder}: {name} is not valid JSON: {brief(error)}") from None
    if not isinstance(value, dict) or _depth(value) > MAX_DEPTH:
        raise InputError(
            f"{folder}: {name} must hold one JSON object of at most {MAX_DEPTH} levels"
        )
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a value of JSON")


def _depth(value: Any, limit: int = MAX_DEPTH + 1) -> int:
    if limit == 0 or not isinstance(value, (dict, list)) or not value:
        return 0
    items = value.values() if isinstance(value, dict) else value
    return 1 + max(_depth(item, limit - 1) for item in items)

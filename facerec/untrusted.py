"""Files that come from somewhere else: read within limits, inside their folder, as JSON without surprises."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from facerec.settings import InputError, one_line

MAX_DEPTH = 16  # of nested JSON
PIECE = 2**22  # bytes read at a time


def read_bytes(folder: Path, name: str, limit: int) -> bytes:
    """A file of a folder from somewhere else.

    Raises:
        InputError: missing, above `limit` bytes, no regular file, or a link that leads out of the folder.
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
            return read_up_to(limit + 1, file)
    except FileNotFoundError:
        raise InputError(f"{folder} is no whole model folder: {name} is missing") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a ring of links
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{folder}: {name} cannot be read: {reason}") from None


def read_up_to(limit: int, file: BinaryIO) -> bytes:
    """What is left of a file, at most `limit` bytes; in pieces, since `read(limit)` would reserve all of them."""
    pieces = []
    while limit > 0 and (piece := file.read(min(limit, PIECE))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def parse_object(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    """The JSON object in a file's bytes.

    Raises:
        InputError: no JSON, no object, NaN or infinity in it, or nested deeper than 16 levels.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder}: {name} is no JSON: {one_line(error)[:200]}") from None
    if not isinstance(value, dict) or _depth(value) > MAX_DEPTH:
        raise InputError(
            f"{folder}: {name} must hold one JSON object of at most {MAX_DEPTH} levels"
        )
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _depth(value: Any, limit: int = MAX_DEPTH + 1) -> int:
    if limit == 0 or not isinstance(value, (dict, list)) or not value:
        return 0
    items = value.values() if isinstance(value, dict) else value
    return 1 + max(_depth(item, limit - 1) for item in items)

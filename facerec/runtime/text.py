"""Values, paths and errors as a message may hold them: on one line, printable, of bounded length."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from os import PathLike
from typing import Any

from facerec.config.values import canonical

LONGEST = 300  # characters of a bad value, or of an error, that a message repeats


def brief(value: Any, longest: int = LONGEST) -> str:
    """A bad value or an error for a message: on one line, control characters escaped, of a long one the beginning."""
    try:
        text = one_line(value) if isinstance(value, BaseException) else canonical(value)
    except ValueError:  # Python spells no whole number of over 4,300 digits
        return "a number of thousands of digits"
    return beginning(" ".join(text[: 2 * longest].split()), longest)


def beginning(text: str, longest: int) -> str:
    """Text made printable, of a long one the beginning."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def one_line(error: BaseException) -> str:
    """The whole message of an exception on one line, for who takes secrets out of it; `brief` is for messages."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that somebody may have meant; None where none is so near as `cutoff`, of 1."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def shown(path: str | PathLike[str], longest: int = 200) -> str:
    """A file's name for a message: control characters and broken encodings escaped, of a long one the end."""
    text = printable(str(path)) or "''"
    return text if len(text) <= longest else "…" + text[1 - longest :]


def printable(text: str) -> str:
    """Text with control characters and what is no UTF-8 as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in as_utf8(text))


def as_utf8(text: str) -> str:
    r"""Text that UTF-8 can hold: of a file name that is not UTF-8, each such byte as an escape.

    >>> as_utf8("caf\udce9")
    'caf\\xe9'
    """
    return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def _escaped(surrogate: str) -> str:
    code = ord(surrogate)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

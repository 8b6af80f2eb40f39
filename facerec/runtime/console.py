"""The console that a command writes to: whatever its encoding, and whether or not it is read, output never raises.

A stream in ASCII or a Windows code page shows typographic signs as plain ones and any other character that it lacks as
an escape. What is said on stderr on the way is lost in silence when nobody can read it any more: a training does not
die of a terminal that was closed. An answer on stdout that could not be given is an error, at the end.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from tqdm import tqdm

from facerec.errors import InputError
from facerec.runtime.text import brief

PLAIN = {"\u2212": "-", "\u2013": "-", "\u2026": "...", "\u00b1": "+-", "\u00d7": "x"}
ERRORS = "facerec.plain"


def plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for the characters that an encoding lacks; lone surrogates, of file names, are among them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    signs = [PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in part]
    return "".join(signs), error.end


codecs.register_error(ERRORS, plain)


class Heedless(io.TextIOWrapper):
    """A stream whose reader may go: what is written then is lost."""

    def write(self, text: str) -> int:
        """Writes, or drops, the text."""
        try:
            return super().write(text)
        except OSError:
            drain(self)
            return len(text)

    def flush(self) -> None:
        """Sends what was written, or drops it."""
        try:
            super().flush()
        except OSError:
            drain(self)


def drain(stream: TextIO) -> None:
    """From now on a stream's file is nowhere, also for what still waits in it, and for other code that has it."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def prepare() -> None:
    """Makes stdout and stderr of this process such streams; to be called once, before anything is opened."""
    # A file that was opened as the first or second one would be written to by print.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)
    if type(sys.stderr) is io.TextIOWrapper and sys.stderr is sys.__stderr__:
        stream = sys.stderr
        sys.stderr = Heedless(
            stream.buffer, encoding=stream.encoding, errors=ERRORS, line_buffering=True
        )


def answer(text: str) -> None:
    """Prints what a command was asked for, on stdout.

    Raises:
        BrokenPipeError: nobody reads it; `cli.main` ends the process for that.
        InputError: it cannot be written, say on a full disk.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drain(sys.stdout)  # or what waits in it would raise once more when the process ends
        raise InputError(f"the answer cannot be written: {brief(error)}") from None


def say(text: str) -> None:
    """A line on the console, in step with a progress bar."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()

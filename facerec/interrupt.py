"""Ctrl-C and SIGTERM while a training runs: the step at hand is finished and everything is saved; twice is at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stopped(SystemExit):
    """The training was asked to stop, and has; the process ends with 130 (SIGINT) or 143 (SIGTERM)."""


@contextmanager
def stop_softly(request: Callable[[Stopped], None]) -> Iterator[None]:
    """Hands the first signal to `request`; the second ends the process at once.

    Args:
        request: called with the exception that is to be raised when the step at hand is done.
    """
    asked = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        stopped = Stopped(EXIT_CODE[signal.Signals(number)])
        if asked:
            raise stopped
        asked = True
        print(
            "\nfacerec: stopping after this step and saving; once more to stop at once",
            file=sys.stderr,
            flush=True,
        )
        request(stopped)

    before = {number: signal.signal(number, handler) for number in EXIT_CODE}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)

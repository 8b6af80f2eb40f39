"""Ctrl-C and SIGTERM while a training runs: the step at hand is finished and everything is saved; twice is at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = {signal.SIGINT: 130, signal.SIGTERM: 143}


ONE_PRESS_SECONDS = (
    2.0  # `mlflow run` sends SIGTERM right after the SIGINT that the terminal gave us
)


class Stopped(SystemExit):
    """The training was asked to stop, and has; the process ends with 130 (SIGINT) or 143 (SIGTERM)."""


class StoppedAtOnce(SystemExit):
    """The training was asked twice: nothing more is saved."""


@contextmanager
def stop_softly(request: Callable[[Stopped], None], aloud: bool = True) -> Iterator[None]:
    """Hands the first signal to `request`; the second ends the process at once.

    Args:
        request: called with the exception that is to be raised when the step at hand is done.
        aloud: say so.
    """
    asked: float | None = None

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        code = EXIT_CODE[signal.Signals(number)]
        if asked is not None and time.monotonic() - asked > ONE_PRESS_SECONDS:
            raise StoppedAtOnce(code)
        if asked is not None:
            return
        asked = time.monotonic()
        if aloud:
            os.write(
                2, b"\nfacerec: stopping after this step and saving; once more to stop at once\n"
            )
        request(Stopped(code))

    before = {number: signal.signal(number, handler) for number in EXIT_CODE}
    try:
        yield
    finally:
        for number, old in before.items():
            if signal.getsignal(number) is handler:  # who has set another since then wants that one
                signal.signal(number, old)

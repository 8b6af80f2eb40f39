"""Ctrl-C and SIGTERM while a training runs: the step at hand is finished and everything is saved; twice is at once.

Outside of the training both end the process by an exception, so that what is open is closed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

EXIT_CODE = {signal.SIGINT: 130, signal.SIGTERM: 143}


ONE_PRESS_SECONDS = (
    2.0  # `mlflow run` sends SIGTERM right after the SIGINT that the terminal gave us
)


class Stopped(SystemExit):
    """The training was asked to stop, and has; the process ends with 130 (SIGINT) or 143 (SIGTERM)."""


class StoppedAtOnce(SystemExit):
    """Asked twice, or where no training runs: nothing more is saved."""


@contextmanager
def handling(
    handler: Callable[[int, FrameType | None], None], numbers: Iterable[int] = tuple(EXIT_CODE)
) -> Iterator[None]:
    """Sends signals to `handler` within the block; in a thread, which hears none, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            if signal.getsignal(number) is handler:  # who has set another since then wants that one
                signal.signal(number, old)


def stop_at_once() -> AbstractContextManager[None]:
    """Within the block SIGTERM raises StoppedAtOnce, as Ctrl-C raises KeyboardInterrupt."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise StoppedAtOnce(EXIT_CODE[signal.Signals(number)])

    return handling(handler, [signal.SIGTERM])


@contextmanager
def held() -> Iterator[None]:
    """Signals that come within the block take effect at its end."""
    came: list[int] = []
    with handling(lambda number, frame: came.append(number)):
        yield
    for number in came[:1]:
        signal.raise_signal(number)


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

    with handling(handler):
        yield

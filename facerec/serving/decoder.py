"""Decoding in a child process: a hostile image costs a server a child, which is killed and replaced, not a thread.

`Decoder` is the server's end, `main` the child's. A message is a line of JSON and the bytes that it announces; nothing
is pickled. The child has a limit on its memory where the operating system knows one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import PngImagePlugin

from facerec.data.align import face
from facerec.data.decoding import decode, measure
from facerec.errors import InputError
from facerec.runtime.untrusted import read_up_to

MEMORY = 4 * 2**30  # bytes of address space; 80 million pixels with transparency take 2 GiB
LONGEST_LINE = 2**22
START_SECONDS = 60.0  # for a child to be ready
THREADS = (  # each of which reserves address space
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)
# This package, before any other of its name, and the libraries of the server.
CHILD = "import sys; sys.path[:] = sys.argv[2:]; from facerec.serving.decoder import main; main()"
T = TypeVar("T")


class TooSlow(Exception):
    """The time for a batch of images was over; the child has been killed."""


class NoDecoder(Exception):
    """The child does not start."""


class Cut(NamedTuple):
    """How a face is cut out, as `align.face` takes it."""

    image_size: int
    crop: float
    align: str
    face_choice: str
    frame: str | None


class Decoder:
    """A child process, started when it is first needed. For one thread at a time.

    Args:
        niceness: by how much the child gives way to other processes, where the operating system knows that.
    """

    def __init__(self, niceness: int = 0) -> None:
        self._niceness = niceness
        self._child: subprocess.Popen[bytes] | None = None

    def measure(self, images: Sequence[bytes], seconds: float) -> list[tuple[int, int] | str]:
        """Of each image, as of `pictures.measure`, pixels and pixels times scans; or why it cannot be used.

        Raises:
            TooSlow: after `seconds`.
            NoDecoder: there is no child.
        """
        return self._ask({}, images, seconds, 0, lambda answer, _: (int(answer[0]), int(answer[1])))

    def faces(self, images: Sequence[bytes], cut: Cut, seconds: float) -> list[np.ndarray | str]:
        """What the network sees of each image, (S, S, 3) uint8; or why it sees nothing.

        Raises:
            TooSlow: after `seconds`.
            NoDecoder: there is no child.
        """
        shape = (cut.image_size, cut.image_size, 3)
        most = cut.image_size**2 * 3

        def read(_: Any, payload: bytes) -> np.ndarray:
            return np.frombuffer(payload, np.uint8).reshape(shape)

        return self._ask({"cut": cut._asdict()}, images, seconds, most, read)

    def close(self) -> None:
        """Kills the child."""
        if self._child:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _ask(
        self,
        head: dict[str, Any],
        images: Sequence[bytes],
        seconds: float,
        most: int,
        read: Callable[[Any, bytes], T],
    ) -> list[T | str]:
        """What `read` makes of the child's answers, of up to `most` bytes; text is why an image cannot be used."""
        child = self._running()
        assert child.stdin is not None and child.stdout is not None  # pipes
        found: list[T | str] = []
        with self._within(seconds):
            try:
                head = {**head, "sizes": list(map(len, images)), "seconds": seconds}
                send(child.stdin, head, images)
                for _ in images:
                    answer, payload = receive(child.stdout, most)
                    reason = answer["answer"]
                    found.append(reason if isinstance(reason, str) else read(reason, payload))
            except (OSError, EOFError, ValueError, LookupError, TypeError):
                self.close()
        ended = "its decoder ended: it needs more memory than it may have, or is damaged"
        return found + [ended] * (len(images) - len(found))

    @contextlib.contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """Kills the child after so many seconds. Raises TooSlow then."""
        overdue, child = threading.Event(), self._child

        def end() -> None:
            overdue.set()
            if child is not None:
                child.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # it may be about to kill
            if overdue.is_set():
                self.close()
        if overdue.is_set():
            raise TooSlow

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            return self._start()
        return self._child

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [str(Path(__file__).parents[2]), *(path or os.getcwd() for path in sys.path)]
        try:
            child = self._child = subprocess.Popen(
                [sys.executable, "-I", "-c", CHILD, str(self._niceness), *paths],
                env={**os.environ, **dict.fromkeys(THREADS, "1")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError as error:
            raise NoDecoder(f"no process can be started: {error.strerror}") from None
        try:
            with self._within(START_SECONDS):
                assert child.stdout is not None  # a pipe
                ready = child.stdout.readline()
        except TooSlow:
            ready = b""
        if not ready:
            self.close()
            raise NoDecoder(
                "the process that decodes them does not start; the server's log says why"
            )
        return child


def send(file: IO[bytes], head: dict[str, Any], payload: Sequence[bytes] = ()) -> None:
    """Writes a message."""
    line = json.dumps({**head, "length": sum(map(len, payload))})
    file.write(line.encode() + b"\n")
    for part in payload:
        file.write(part)
    file.flush()


def receive(file: IO[bytes], most: int) -> tuple[dict[str, Any], bytes]:
    """Reads a message.

    Raises:
        EOFError: the other end has gone.
        ValueError: the message is malformed, or announces more than `most` bytes.
    """
    line = file.readline(LONGEST_LINE)
    if not line:
        raise EOFError
    head = json.loads(line)
    if head["length"] > most:
        raise ValueError(f"{head['length']} bytes")
    payload = read_up_to(head["length"], file)
    if len(payload) < head["length"]:
        raise EOFError
    return head, payload


def main() -> None:
    """The child: answers until its server closes the pipe."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _restrict(int(sys.argv[1]))
    send(answers, {})  # it is ready
    alarm = getattr(signal, "alarm", lambda seconds: None)  # Windows has none
    with contextlib.suppress(EOFError):
        while True:
            head, images = receive(sys.stdin.buffer, MEMORY)
            alarm(int(head["seconds"]) + 2)  # should the server be gone by then
            start = 0
            for size in head["sizes"]:
                _answer(answers, images[start : start + size], head.get("cut"))
                start += size
            alarm(0)


def _answer(answers: IO[bytes], data: bytes, cut: dict[str, Any] | None) -> None:
    try:
        if cut is None:
            send(answers, {"answer": measure(data)})
        else:
            asked = Cut(**cut)
            found = face(decode(data), asked, asked.frame)
            send(answers, {"answer": None}, [found.tobytes()])
    except InputError as error:
        send(answers, {"answer": str(error)})


def _restrict(niceness: int) -> None:
    """Gives way to others, leaves Ctrl-C to the server, and limits memory."""
    cv2.setNumThreads(1)
    PngImagePlugin.MAX_TEXT_MEMORY = 2**20  # unpacked with the header, by a factor of up to 1,000
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(niceness)
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))

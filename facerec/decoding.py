"""Decoding in a child process: a hostile image costs a server a child, which is killed and replaced, not a thread.

`Decoder` is the server's end, `main` the child's. A message is a line of JSON and the bytes that it announces; nothing
is pickled. The child has a limit on its memory where the operating system knows one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from facerec.data.pictures import PictureError
from facerec.settings import InputError
from facerec.untrusted import read_up_to

MEMORY = 4 * 2**30  # bytes of address space; 80 million pixels with transparency take 2 GiB
LONGEST_LINE = 2**22
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class TooSlow(Exception):
    """The time for a batch of images was over; the child has been killed."""


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
        self._child: subprocess.Popen | None = None

    def measure(self, images: Sequence[bytes], seconds: float) -> list[tuple[int, int] | str]:
        """Of each image, by its header, pixels and pixels times scans; or why it cannot be used.

        Raises:
            TooSlow: after `seconds`.
        """
        answers, _ = self._ask({}, images, seconds)
        return [a if isinstance(a, str) else (int(a[0]), int(a[1])) for a in answers]

    def faces(self, images: Sequence[bytes], cut: Cut, seconds: float) -> list[np.ndarray | str]:
        """What the network sees of each image, (S, S, 3) uint8; or why it sees nothing.

        Raises:
            TooSlow: after `seconds`.
        """
        answers, pixels = self._ask({"cut": cut._asdict()}, images, seconds)
        shape = (-1, cut.image_size, cut.image_size, 3)
        found = iter(np.frombuffer(pixels, np.uint8).reshape(shape))
        return [next(found) if answer is None else str(answer) for answer in answers]

    def close(self) -> None:
        """Kills the child."""
        if self._child:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _ask(self, head: dict[str, Any], images: Sequence[bytes], seconds: float) -> Any:
        """The child's answers, one an image, and the bytes that follow them."""
        child = self._running()
        overdue = threading.Event()
        timer = threading.Timer(seconds, lambda: (overdue.set(), child.kill()))
        timer.start()
        try:
            head |= {"sizes": [len(image) for image in images], "seconds": seconds}
            send(child.stdin, head, images)
            answer, payload = receive(child.stdout)
            answers = answer["answers"]
            if len(answers) != len(images):
                raise ValueError("another number of answers")
            return answers, payload
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            self.close()
            if overdue.is_set():
                raise TooSlow from None
            return ["its decoder ended: beyond the memory it may have, or damaged"] * len(images), b""
        finally:
            timer.cancel()

    def _running(self) -> subprocess.Popen:
        if self._child is None or self._child.poll() is not None:
            self.close()
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            single = dict.fromkeys(THREADS, "1")  # each thread reserves address space
            self._child = subprocess.Popen(
                [sys.executable, "-m", "facerec.decoding", str(self._niceness)],
                env={**os.environ, "PYTHONPATH": paths, **single},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._child.stdout.readline()  # it is ready, or has ended
        return self._child


def send(file: BinaryIO, head: dict[str, Any], payload: Sequence[bytes]) -> None:
    """Writes a message."""
    head["length"] = sum(map(len, payload))
    file.write(json.dumps(head).encode() + b"\n")
    for part in payload:
        file.write(part)
    file.flush()


def receive(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Reads a message.

    Raises:
        EOFError: the other end has gone.
    """
    line = file.readline(LONGEST_LINE)
    head = json.loads(line) if line else {"length": 1}
    payload = read_up_to(int(head["length"]), file)
    if len(payload) < head["length"]:
        raise EOFError
    return head, payload


def main() -> None:
    """The child: answers until its server closes the pipe."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _restrict(int(sys.argv[1]))
    answers.write(b"\n")
    answers.flush()
    while True:
        try:
            head, payload = receive(sys.stdin.buffer)
        except EOFError:
            return
        if hasattr(signal, "alarm"):
            signal.alarm(int(head["seconds"]) + 2)  # also when the server is no more
        start, found = 0, []
        for size in head["sizes"]:
            found.append(_answer(payload[start : start + size], head.get("cut")))
            start += size
        faces = [answer.tobytes() for answer in found if isinstance(answer, np.ndarray)]
        plain = [None if isinstance(answer, np.ndarray) else answer for answer in found]
        send(answers, {"answers": plain}, faces)
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _answer(data: bytes, cut: dict[str, Any] | None) -> Any:
    from facerec.data.align import face
    from facerec.data.pictures import decode, measure

    try:
        if cut is None:
            return measure(data)
        return face(decode(data), SimpleNamespace(**cut), cut["frame"])
    except InputError as error:
        return str(error)


def _restrict(niceness: int) -> None:
    """Gives way to others, leaves Ctrl-C to the server, and limits memory."""
    import cv2
    from PIL import PngImagePlugin

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


if __name__ == "__main__":
    main()

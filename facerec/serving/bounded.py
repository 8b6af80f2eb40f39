"""Embeddings of the images of requests: within limits, in turns of a few images, each decoded in a child process.

Requests queue for every turn anew, so that one with a thousand rows delays the others by a turn and not by itself.
What is costly to decode has a queue and a process of its own, which gives way to the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

import numpy as np

from facerec.data.decoding import PictureError
from facerec.errors import InputError
from facerec.inference.embedder import FaceEmbedder
from facerec.serving.decoder import START_SECONDS, Cut, Decoder, NoDecoder, TooSlow
from facerec.serving.limits import Deadline, Limits

AT_ONCE = 2  # light turns that decode and compute at the same time; more would only share cores and add memory
TURN_IMAGES = 2
TURN_BYTES = 2**20  # whose headers are read in a turn
TURN_WORK = 8_000_000  # pixels times scans of a turn's images together: a tenth of a second
HEAVY_WORK = 40_000_000  # above which an image is heavy: half a second; 12 megapixels are not
TURN_SECONDS = 1.0  # of decoding in a light turn; a request that takes longer becomes a heavy one
HEAVY_SECONDS = 10.0  # of a heavy turn; a request that takes longer is given up, for the next one
HEAVY_AT_ONCE = 1 + (os.cpu_count() or 1)  # requests; MLflow's server has threads for three more
GIVE_WAY = 19  # niceness of the process that decodes for heavy requests

T = TypeVar("T")
Turn = Callable[[Decoder, float], T]  # with the seconds that decoding may take


class Lane:
    """A queue of turns and the threads that take them, each with a child process for decoding."""

    def __init__(
        self, threads: int, seconds: float, niceness: int = 0, at_once: int = 1000
    ) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._places = threading.BoundedSemaphore(at_once)
        self._seconds, self._niceness = seconds, niceness
        self._of_thread = threading.local()

    def run(self, turn: Turn[T], deadline: Deadline) -> T:
        """What `turn` returns, after the turns of all who came before.

        Raises:
            TooSlow: it has not ended by the deadline, decoding takes longer than this lane allows, or too many wait.
        """
        if not self._places.acquire(blocking=False):
            raise TooSlow
        try:
            return self._wait(turn, deadline)
        finally:
            self._places.release()

    def _wait(self, turn: Turn[T], deadline: Deadline) -> T:
        future = self._pool.submit(self._take, turn, deadline)
        wait([future], deadline.left())
        if future.done():
            return future.result()
        future.cancel()
        raise TooSlow

    def _take(self, turn: Turn[T], deadline: Deadline) -> T:
        if not deadline.left():
            raise TooSlow
        if not hasattr(self._of_thread, "decoder"):
            self._of_thread.decoder = Decoder(self._niceness)
        return turn(self._of_thread.decoder, min(self._seconds, deadline.left()))


class BoundedEmbedder:
    """A FaceEmbedder for requests. One object serves many threads."""

    def __init__(self, embedder: FaceEmbedder, limits: Limits) -> None:
        self._embedder, self._limits = embedder, limits
        self._light = Lane(AT_ONCE, TURN_SECONDS)
        self._heavy = Lane(1, HEAVY_SECONDS, GIVE_WAY, HEAVY_AT_ONCE)

    def check(self) -> None:
        """Starts a decoder. Raises InputError where none can be started."""
        try:
            self._light.run(partial(_measure, (), ()), Deadline(2 * START_SECONDS))
        except (NoDecoder, TooSlow) as error:
            raise InputError(
                f"images cannot be decoded here: {error or 'it takes too long'}"
            ) from None

    def embed(
        self,
        images: Sequence[bytes],
        labels: Sequence[str],
        *,
        flip: bool = False,
        align: str = "auto",
        choice: str = "auto",
    ) -> np.ndarray:
        """Embeddings of the images of a request.

        Args:
            images: files' bytes; the same bytes are decoded once.
            labels: what a message calls each of them.
            flip, align, choice: as in `FaceEmbedder.embed`.

        Returns:
            (N, E) float32, unit length.

        Raises:
            InputError: an image cannot be used, and which, or the request is beyond a limit.
            TooSlow: it is beyond its time, or one of its turns is.
        """
        settings, frame = self._embedder.framing(align, choice)
        cut = Cut(settings.image_size, settings.crop, settings.align, settings.face_choice, frame)
        named: dict[bytes, str] = {}
        for image, label in zip(images, labels, strict=True):
            named.setdefault(image, label)
        request = _Request(self._light, self._heavy, Deadline(self._limits.seconds))
        distinct, names = list(named), list(named.values())
        work = self._work(request, distinct, names)
        request.heavy |= max(work, default=0) > HEAVY_WORK
        rows = [np.empty((0, self._embedder.config.network.embedding_dim), np.float32)]
        for part in turns(work, TURN_WORK):
            rows.append(request.run(partial(self._turn, distinct[part], names[part], cut, flip)))
        places = {image: place for place, image in enumerate(distinct)}
        return np.concatenate(rows)[[places[image] for image in images]]

    def _work(self, request: _Request, images: Sequence[bytes], labels: Sequence[str]) -> list[int]:
        """Pixels times scans of each image, if together they are within the limits."""
        sizes = [len(image) for image in images]
        self._limits.check(bytes=sum(sizes))
        measured: list[tuple[int, int]] = []
        for part in turns(sizes, TURN_BYTES, 8 * TURN_IMAGES):
            measured += request.run(partial(_measure, images[part], labels[part]))
        work = [passes for _, passes in measured]
        self._limits.check(pixels=sum(pixels for pixels, _ in measured), scans=sum(work))
        return work

    def _turn(
        self,
        images: Sequence[bytes],
        labels: Sequence[str],
        cut: Cut,
        flip: bool,
        decoder: Decoder,
        seconds: float,
    ) -> np.ndarray:
        faces = usable(decoder.faces(images, cut, seconds), labels)
        return self._embedder.embed_faces(np.stack(faces), flip=flip)


def _measure(
    images: Sequence[bytes], labels: Sequence[str], decoder: Decoder, seconds: float
) -> list[tuple[int, int]]:
    return usable(decoder.measure(images, seconds), labels)


class _Request:
    """Which lane a request is in: one that is heavy, or turned out to be slow, stays among the heavy ones."""

    def __init__(self, light: Lane, heavy: Lane, deadline: Deadline) -> None:
        self._light, self._heavy, self._deadline = light, heavy, deadline
        self.heavy = False

    def run(self, turn: Turn[T]) -> T:
        if not self.heavy:
            try:
                return self._light.run(turn, self._deadline)
            except TooSlow:
                self.heavy = True
        return self._heavy.run(turn, self._deadline)


def turns(weights: Sequence[int], most: int, images: int = TURN_IMAGES) -> Iterator[slice]:
    """Consecutive images, at most so many and of at most so much weight together; what is heavier goes alone.

    >>> list(turns([1, 1, 1, 9, 1], 8, 2))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    start, weight = 0, 0
    for place, more in enumerate(weights):
        if place > start and (weight + more > most or place - start == images):
            yield slice(start, place)
            start, weight = place, 0
        weight += more
    if weights:
        yield slice(start, len(weights))


def usable(found: Sequence[T | str], labels: Sequence[str]) -> list[T]:
    """What was found of each image.

    Raises:
        PictureError: the first reason why there is nothing, with the image's label.
    """
    kept: list[T] = []
    for label, answer in zip(labels, found, strict=True):
        if isinstance(answer, str):
            raise PictureError(f"{label}: {answer}")
        kept.append(answer)
    return kept

"""What is to be said to MLflow, on disk until it has been: a training never waits for its tracking server.

An entry is appended to a file and synced, then sent by a thread, in order; the file holds what has not been sent, and
goes when all has. What a process leaves behind is sent by the next one that opens the file. A server can die between
doing and answering, so an entry that is sent once more says so, and the sender leaves out what is there. An entry that
the store refuses for good is set aside in a second file and holds up no other.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from facerec.runtime.files import write_file
from facerec.runtime.text import one_line

PAUSE = 2.0  # seconds between two attempts
MOST = 64  # entries sent at once
TRIES = 3  # of an entry that is refused
REFUSED = "refused.jsonl"  # beside the outbox: entries that were set aside, with the reason

Entry = dict[str, Any]


class Refused(Exception):
    """The store has answered, and it will not take what it was sent."""


class Outbox:
    """Entries that are sent in order by a thread, and stay in a file until they are.

    Args:
        path: the file; entries that it holds already are sent first.
        send: called with (entries, again): again where they may have been sent before. Whatever it raises, they are
            kept and sent again; after Refused fewer at once, to find the one that is refused.
        told: called with the number of entries that wait and why, once; and with (0, None) when they have all gone out.
        refused: called with the reason when an entry has been set aside; it is taken back and kept if this raises.

    Attributes:
        trouble: why the last attempt failed, None if it did not.
    """

    def __init__(
        self,
        path: Path,
        send: Callable[[Sequence[Entry], bool], None],
        told: Callable[[int, str | None], None] = lambda count, reason: None,
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.path, self.send, self.told, self.refused = path, send, told, refused
        self.waiting = deque((entry, True) for entry in read(path))
        self._rewrite()  # without a line that was cut short
        self.trouble: str | None = None
        self.closed = False
        self.most, self.refusals = MOST, 0
        self.sent_at = self.alive_at = time.monotonic()
        self.changed = threading.Condition()
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    def put(self, entry: Entry) -> None:
        """Keeps an entry, which is plain JSON; it is on the disk when this returns."""
        with self.changed:
            append(self.path, entry)
            self.waiting.append((entry, False))
            self.changed.notify_all()

    def alive(self) -> None:
        """The store has answered a part of what is being sent: slow, and not silent."""
        self.alive_at = time.monotonic()

    def flush(
        self,
        silence: float,
        progress: Callable[[int], None] = lambda count: None,
        every: float = 5.0,
    ) -> int:
        """Waits until all is sent, or the store has been silent for `silence` seconds.

        Args:
            progress: called every so many seconds with the number of entries that still wait; may fail.

        Returns:
            How many entries still wait.
        """
        began = told_at = time.monotonic()
        while True:
            with self.changed:
                now, count = time.monotonic(), len(self.waiting)
                left = max(began, self.sent_at, self.alive_at) + silence - now
                if not count or left <= 0:
                    return count
                if now - told_at < every:
                    self.changed.wait(min(left, every))
                    continue
            told_at = now
            with suppress(Exception):  # a console that has gone, or is slow, holds up no sending
                progress(count)

    def close(self, seconds: float = 0) -> None:
        """Sends no more after so many seconds; what waits then stays in the file."""
        with self.changed:
            self.changed.wait_for(lambda: not self.waiting, seconds)
            self.closed = True
            self.changed.notify_all()

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if self.closed:
                    return
                batch = list(islice(self.waiting, self.most))
            try:
                self.send([entry for entry, _ in batch], any(again for _, again in batch))
            except Refused as error:
                self._narrow(batch, one_line(error)[:200])
            except Exception as error:  # of a store or a network, in whatever words
                self._failed(len(batch), one_line(error)[:200])
            else:
                self._sent(len(batch))

    def _narrow(self, batch: Sequence[tuple[Entry, bool]], reason: str) -> None:
        """After a refusal: fewer at once; one alone a few times, since a store may err; then it is set aside."""
        if len(batch) > 1:
            self.most = len(batch) // 2
            self._mark(len(batch))
            return
        self.refusals += 1
        if self.refusals < TRIES:
            self._mark(1)
            self._pause()
            return
        try:
            with appended(self.path.with_name(REFUSED), {"reason": reason, "entry": batch[0][0]}):
                self.refused(reason)
        except Exception:
            self._failed(1, reason)
        else:
            self._sent(1)

    def _mark(self, count: int) -> None:
        """The first so many may have been sent."""
        with self.changed:
            for index in range(count):
                self.waiting[index] = (self.waiting[index][0], True)

    def _failed(self, count: int, reason: str) -> None:
        self._mark(count)
        with self.changed:
            first, self.trouble = self.trouble is None, reason
            self.alive_at = self.sent_at  # answers that led to nothing
            count = len(self.waiting)
        if first:
            self._tell(count, reason)
        self._pause()

    def _pause(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.closed, PAUSE)

    def _sent(self, count: int) -> None:
        with self.changed:
            for _ in range(count):
                self.waiting.popleft()
            self.most, self.refusals = min(MOST, 2 * self.most), 0
            self.sent_at = time.monotonic()
            over = self.trouble is not None and not self.waiting
            with suppress(OSError):  # what stays is sent once more, and doubles nothing
                self._rewrite()
            if not self.waiting:
                self.trouble = None
            self.changed.notify_all()
        if over:
            self._tell(0, None)

    def _rewrite(self) -> None:
        """The file, with what waits."""
        if self.waiting:
            write_file(self.path, b"".join(line(entry) for entry, _ in self.waiting))
        else:
            self.path.unlink(missing_ok=True)

    def _tell(self, count: int, reason: str | None) -> None:
        with suppress(Exception):  # a console that has gone ends no sending
            self.told(count, reason)


def append(path: Path, entry: Entry) -> None:
    """Adds an entry to a file; it is on the disk when this returns."""
    with appended(path, entry):
        pass


@contextmanager
def appended(path: Path, entry: Entry) -> Iterator[None]:
    """Adds an entry to a file, for the block and after; it is taken back, or what the disk took of it, on failure."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(line(entry))
            file.flush()
            os.fsync(file.fileno())
        yield
    except BaseException:
        with suppress(OSError):
            os.truncate(path, size) if size else path.unlink()
        raise


def line(entry: Entry) -> bytes:
    """An entry as it stands in the file."""
    return json.dumps(entry).encode() + b"\n"


def read(path: Path) -> list[Entry]:
    """Entries of a file, without a last one that was cut short; none where there is no file."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for text in lines:
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries

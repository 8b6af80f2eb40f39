"""What is to be said to MLflow, on disk until it has been: a training never waits for its tracking server.

An entry is appended to a file and synced, then sent by a thread, in order; the file goes when all are sent. What a
process leaves behind is sent by the next one that opens the file. A server can die between doing and answering, so
an entry that is sent once more says so, and the sender leaves out what is there.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from facerec.data.files import write_file
from facerec.settings import one_line

PAUSE = 2.0  # seconds between two attempts

Entry = dict[str, Any]


class Outbox:
    """Entries that are sent in order by a thread, and stay in a file until they are.

    Args:
        path: the file; entries that it holds already are sent first.
        send: called with (entry, again): again where it may have been sent before. Whatever it raises, the entry is
            kept and tried again.
        told: called with the number of entries that wait and why, once; and with (0, None) when they have all gone out.

    Attributes:
        trouble: why the last attempt failed, None if it did not.
    """

    def __init__(
        self,
        path: Path,
        send: Callable[[Entry, bool], None],
        told: Callable[[int, str | None], None] = lambda count, reason: None,
    ) -> None:
        self.path, self.send, self.told = path, send, told
        self.waiting = deque((entry, True) for entry in read(path))
        if self.waiting:  # a line that was cut short goes
            write_file(path, b"".join(map(line, (entry for entry, _ in self.waiting))))
        else:
            path.unlink(missing_ok=True)
        self.trouble: str | None = None
        self.closed = False
        self.changed = threading.Condition()
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    def put(self, entry: Entry) -> None:
        """Keeps an entry, which is plain JSON; it is on the disk when this returns."""
        with self.changed:
            with open(self.path, "ab") as file:
                file.write(line(entry))
                file.flush()
                os.fsync(file.fileno())
            self.waiting.append((entry, False))
            self.changed.notify_all()

    def flush(self, seconds: float) -> int:
        """Waits until all is sent, at most `seconds`; returns how many entries still wait."""
        with self.changed:
            self.changed.wait_for(lambda: not self.waiting, seconds)
            return len(self.waiting)

    def close(self) -> None:
        """Sends no more; what waits stays in the file."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if self.closed:
                    return
                entry, again = self.waiting[0]
            try:
                self.send(entry, again)
            except Exception as error:  # of a store or a network, in whatever words
                self._failed(one_line(error)[:200])
            else:
                self._sent()

    def _failed(self, reason: str) -> None:
        with self.changed:
            first, self.trouble = self.trouble is None, reason
            self.waiting[0] = (self.waiting[0][0], True)
            count = len(self.waiting)
        if first:
            self._tell(count, reason)
        with self.changed:
            self.changed.wait_for(lambda: self.closed, PAUSE)

    def _sent(self) -> None:
        with self.changed:
            self.waiting.popleft()
            over = self.trouble is not None and not self.waiting
            if not self.waiting:
                with suppress(OSError):  # what stays is sent once more, and doubles nothing
                    self.path.unlink(missing_ok=True)
                self.trouble = None
            self.changed.notify_all()
        if over:
            self._tell(0, None)

    def _tell(self, count: int, reason: str | None) -> None:
        with suppress(Exception):  # a console that has gone ends no sending
            self.told(count, reason)


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

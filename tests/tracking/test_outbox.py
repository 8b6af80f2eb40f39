"""The outbox: nothing waits, nothing is lost, order is kept, whatever the sender does."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest

from facerec.tracking import outbox
from facerec.tracking.outbox import MOST, REFUSED, Outbox, Refused, read


class Server:
    """Answers when it is up; what it took, and whether it was said to be sent again."""

    def __init__(self, up: bool = True, refuses: tuple[int, ...] = ()) -> None:
        self.up, self.refuses, self.took = up, refuses, []

    def __call__(self, entries, again):
        if not self.up:
            raise OSError("nobody there")
        if any(entry["n"] in self.refuses for entry in entries):
            raise Refused("no such thing")
        self.took += [(entry["n"], again) for entry in entries]


@pytest.fixture(autouse=True)
def short_pause(monkeypatch):
    monkeypatch.setattr(outbox, "PAUSE", 0.02)


class Clock:
    """Goes as it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(outbox, "time", clock := Clock())
    return clock


def test_sends_in_order_and_the_file_goes(tmp_path):
    server, path = Server(), tmp_path / "outbox.jsonl"
    box = Outbox(path, server)
    for n in range(50):
        box.put({"n": n})
    assert box.flush(20) == 0 and server.took == [(n, False) for n in range(50)]
    assert not path.exists()
    box.close()


def test_what_waits_is_on_disk_and_goes_out_when_the_server_is_back(tmp_path):
    server, path, told, back = Server(up=False), tmp_path / "outbox.jsonl", [], threading.Event()

    def tell(count, reason):
        told.append((count, reason))
        if count == 0:
            back.set()

    box = Outbox(path, server, tell)
    for n in range(3):
        box.put({"n": n})
    assert read(path) == [{"n": n} for n in range(3)]
    assert box.flush(0.2) == 3 and box.trouble == "nobody there"
    server.up = True
    assert box.flush(20) == 0
    assert server.took == [(0, True), (1, True), (2, True)]
    box.close()
    assert back.wait(20) and len(told) == 2
    assert told[0][1] == "nobody there" and told[1] == (0, None)


def test_what_a_process_left_is_sent_by_the_next_without_a_line_cut_short(tmp_path):
    path = tmp_path / "outbox.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": 1}\n{"n": 2')
    server = Server()
    box = Outbox(path, server)
    assert box.flush(20) == 0
    box.put({"n": 3})
    assert box.flush(20) == 0 and server.took == [(0, True), (1, True), (3, False)]
    box.close()


def test_putting_never_waits_for_the_server(tmp_path):
    release = threading.Event()
    box = Outbox(tmp_path / "outbox.jsonl", lambda entries, again: release.wait(20))
    start = time.monotonic()
    for n in range(20):
        box.put({"n": n})
    assert time.monotonic() - start < 5 and len(read(box.path)) == 20
    release.set()
    assert box.flush(20) == 0
    box.close()


def test_slowness_is_not_silence_and_what_is_sent_is_marked_at_once(tmp_path, clock, monkeypatch):
    path, left, told = tmp_path / "outbox.jsonl", [], []
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(10 * MOST)))
    waits, heard = threading.Event(), threading.Event()

    def slow(entries, again):
        assert waits.wait(20)
        left.append(len(read(path)))
        for _ in range(4):  # requests, which together take longer than the silence that is borne
            clock.now += 30
            box.alive()
        assert heard.wait(20)  # the lock is free, and the one who reports is in no hurry

    def progress(count):
        told.append(count)
        heard.set()
        raise BrokenPipeError

    box = Outbox(path, slow)
    wait = box.changed.wait
    monkeypatch.setattr(box.changed, "wait", lambda _=None: waits.set() or wait(0.01))
    assert box.flush(100, progress, every=100) == 0
    box.close()
    assert left == [MOST * n for n in range(10, 0, -1)]
    assert told[0] == 10 * MOST and told == sorted(told, reverse=True)


def test_silence_ends_the_wait_also_where_a_part_of_each_attempt_is_answered(tmp_path):
    def half(entries, again):
        box.alive()
        raise OSError("gone in between")

    box = Outbox(tmp_path / "outbox.jsonl", half)
    box.put({"n": 0})
    assert box.flush(0.3) == 1
    box.close()


def test_an_entry_that_is_refused_is_set_aside_and_holds_up_nothing(tmp_path):
    path, told = tmp_path / "outbox.jsonl", []
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(100)))
    server = Server(refuses=(0, 17, 18, 99))
    box = Outbox(path, server, refused=told.append)
    assert box.flush(20) == 0 and not path.exists() and box.trouble is None
    box.close()
    assert [n for n, _ in server.took] == [n for n in range(100) if n not in server.refuses]
    aside = [{"reason": "no such thing", "entry": {"n": n}} for n in server.refuses]
    assert read(tmp_path / REFUSED) == aside and told == ["no such thing"] * 4


def test_a_store_that_refuses_whatever_it_is_sent_is_waited_for(tmp_path):
    def refused(reason):
        raise OSError("this, too")

    server = Server(refuses=(0, 1))
    box = Outbox(tmp_path / "outbox.jsonl", server, refused=refused)
    for n in range(2):
        box.put({"n": n})
    assert box.flush(0.3) == 2 and box.trouble == "no such thing"
    assert not (tmp_path / REFUSED).exists()
    server.refuses = ()
    assert box.flush(20) == 0 and [n for n, _ in server.took] == [0, 1]
    box.close()


def test_what_cannot_be_set_aside_is_kept_and_not_said(tmp_path, monkeypatch):
    (tmp_path / REFUSED).write_bytes(whole := b'{"entry": {"n": 7}}\n')
    said, told, fsync = [], threading.Event(), os.fsync

    def full(handle):
        if os.path.samestat(os.fstat(handle), os.stat(tmp_path / REFUSED)):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    box = Outbox(
        tmp_path / "outbox.jsonl", Server(refuses=(0,)), lambda *_: told.set(), said.append
    )
    box.put({"n": 0})
    assert told.wait(20) and not said and (tmp_path / REFUSED).read_bytes() == whole
    monkeypatch.setattr(os, "fsync", fsync)
    assert box.flush(20) == 0 and said == ["no such thing"]
    assert [entry["entry"]["n"] for entry in read(tmp_path / REFUSED)] == [7, 0]
    box.close()

"""The outbox: nothing waits, nothing is lost, order is kept, whatever the sender does."""

from __future__ import annotations

import threading
import time

import pytest

from facerec import outbox
from facerec.outbox import Outbox, read


class Server:
    """Answers when it is up; what it took, and whether it was said to be sent again."""

    def __init__(self, up: bool = True) -> None:
        self.up, self.took = up, []

    def __call__(self, entry, again):
        if not self.up:
            raise OSError("nobody there")
        self.took.append((entry["n"], again))


@pytest.fixture(autouse=True)
def short_pause(monkeypatch):
    monkeypatch.setattr(outbox, "PAUSE", 0.02)


def test_sends_in_order_and_the_file_goes(tmp_path):
    server, path = Server(), tmp_path / "outbox.jsonl"
    box = Outbox(path, server)
    for n in range(50):
        box.put({"n": n})
    assert box.flush(20) == 0 and server.took == [(n, False) for n in range(50)]
    assert not path.exists()
    box.close()


def test_what_waits_is_on_disk_and_goes_out_when_the_server_is_back(tmp_path):
    server, path, told = Server(up=False), tmp_path / "outbox.jsonl", []
    box = Outbox(path, server, lambda count, reason: told.append((count, reason)))
    for n in range(3):
        box.put({"n": n})
    assert read(path) == [{"n": n} for n in range(3)]
    assert box.flush(0.2) == 3 and box.trouble == "nobody there"
    server.up = True
    assert box.flush(20) == 0
    assert server.took == [(0, True), (1, False), (2, False)]
    box.close()
    for _ in range(100):
        if len(told) == 2:
            break
        time.sleep(0.02)
    assert told[0][1] == "nobody there" and told[1] == (0, None)


def test_what_a_process_left_is_sent_by_the_next_without_a_line_cut_short(tmp_path):
    path = tmp_path / "outbox.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": 1}\n{"n": 2')
    server = Server()
    box = Outbox(path, server)
    box.put({"n": 3})
    assert box.flush(20) == 0 and server.took == [(0, True), (1, True), (3, False)]
    box.close()


def test_putting_never_waits_for_the_server(tmp_path):
    release = threading.Event()
    box = Outbox(tmp_path / "outbox.jsonl", lambda entry, again: release.wait(20))
    start = time.monotonic()
    for n in range(20):
        box.put({"n": n})
    assert time.monotonic() - start < 5 and len(read(box.path)) == 20
    release.set()
    assert box.flush(20) == 0
    box.close()

"""Signals: the first asks, a second within one key press is the same, a later one stops at once."""

from __future__ import annotations

import os
import signal

import pytest

from facerec.runtime import signals as interrupt
from facerec.runtime.signals import Stopped, StoppedAtOnce, stop_softly


def test_first_second_and_later_signals(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    asked: list[Stopped] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedAtOnce) as stopped, stop_softly(asked.append):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # as `mlflow run` sends it after the terminal's SIGINT
        assert [s.code for s in asked] == [130]
        now[0] += 10
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143 and not isinstance(stopped.value, Stopped)
    assert signal.getsignal(signal.SIGINT) is before

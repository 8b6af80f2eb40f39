"""Checkpoints: whole or absent; a damaged one is told and the one before is used."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import safetensors.torch
import torch

from facerec.errors import InputError
from facerec.training.checkpoint import Checkpoints, read, saved_at, write_bytes


def saved(folder, *steps):
    checkpoints = Checkpoints(folder)
    for step in steps:
        tensors = {"w": torch.full((3,), float(step)), "n": torch.tensor(step)}
        checkpoints.save(step, tensors, {"history": [0.1], "note": "ü"})
    return checkpoints


def test_round_trip_keeps_the_newest_two(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, 3)
    assert [p.name for p in checkpoints.paths()] == [
        "checkpoint-0000000002.safetensors",
        "checkpoint-0000000003.safetensors",
    ]
    newest, damaged = checkpoints.newest()
    assert (newest.step, damaged) == (3, [])
    assert newest.state.pop("saved") > 0 and newest.state == {"history": [0.1], "note": "ü"}
    assert (
        torch.equal(newest.tensors["w"], torch.full((3,), 3.0)) and newest.tensors["n"].item() == 3
    )


def test_the_header_does_not_grow_with_the_state_and_older_checkpoints_are_read(tmp_path):
    """Safetensors refuses headers above 100,000,000 bytes; a model's 3 million hashes take more."""
    state = {"initial": ["0" * 32] * 1000, "saved": 5.0}
    path = Checkpoints(tmp_path).save(1, {"w": torch.ones(3)}, state)
    assert int.from_bytes(path.read_bytes()[:8], "little") < 1000
    assert read(path).state["initial"] == state["initial"] and list(read(path).tensors) == ["w"]
    older = safetensors.torch.save({"w": torch.ones(3)}, {"state": json.dumps(state)})
    path.write_bytes(older)
    path.with_suffix(".sha256").write_text(hashlib.sha256(older).hexdigest())
    assert read(path).state == state and list(read(path).tensors) == ["w"] and saved_at(path) == 5.0


@pytest.mark.parametrize("harm", ["cut", "flip", "pickle", "no checksum"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, harm):
    checkpoints = saved(tmp_path, 1, 2)
    path = checkpoints.paths()[-1]
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[:-5])
    elif harm == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "pickle":
        torch.save({"w": 1}, path)
    else:
        path.with_suffix(".sha256").unlink()
    newest, damaged = checkpoints.newest()
    assert newest.step == 1 and len(damaged) == 1 and path.name in damaged[0]
    with pytest.raises(InputError):
        read(path)


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/full"), reason="needs a full device"
)
def test_a_refused_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(
        "facerec.runtime.files.os.fsync",
        lambda handle: os.write(os.open("/dev/full", os.O_WRONLY), b"x"),
    )
    with pytest.raises(InputError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

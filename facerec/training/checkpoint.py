"""Checkpoints: the whole state of a training as safetensors + JSON, written aside and renamed.

A checkpoint is one safetensors file with the JSON part as a tensor of bytes, since a header has room for 100 MB only;
the file's SHA-256 stands in its name's companion, so that a damaged one is seen before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from facerec.errors import InputError
from facerec.runtime.files import DRAFT, write_bytes
from facerec.runtime.text import brief

STATE = "state.json"  # the tensor with the JSON part
NAME = "checkpoint-{:010d}.safetensors"
UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError)
PATTERN = re.compile(r"checkpoint-(\d{10})\.safetensors")


class Checkpoint(NamedTuple):
    """tensors: name → tensor on the CPU. state: what is no tensor. step: optimiser steps taken."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in one folder: the newest two are kept."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and drops those before the newest `keep`."""
        flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = save({**flat, STATE: state_tensor({**state, "saved": time.time()})})
        path = self.folder / NAME.format(step)
        for left in self.folder.glob(DRAFT + "*"):  # of a process that was killed while writing
            left.unlink(missing_ok=True)
        write_bytes(path, content)
        write_bytes(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest().encode())
        for old in self.paths()[: -self.keep]:
            old.with_suffix(".sha256").unlink(missing_ok=True)
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """Checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if PATTERN.fullmatch(p.name))

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and a sentence for every damaged one that was passed over."""
        damaged: list[str] = []
        for path in reversed(self.paths()):
            try:
                return read(path), damaged
            except InputError as error:
                damaged.append(str(error))
        return None, damaged


def state_tensor(state: Mapping[str, Any]) -> Tensor:
    """The JSON of a state as (bytes,) uint8."""
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)


def _state(file: Any) -> Any:
    """The JSON part of an open checkpoint; older versions kept it in the header."""
    if STATE in file.keys():  # noqa: SIM118
        return json.loads(file.get_tensor(STATE).numpy().tobytes())
    return json.loads(file.metadata()["state"])


def saved_at(path: Path) -> float:
    """When a checkpoint was written, in seconds since 1970, by its own word: a copy has another time.

    By the file's time where an older version wrote it; 0 where it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            seconds = _state(file).get("saved", path.stat().st_mtime)
        return float(seconds) if math.isfinite(seconds) else 0.0
    except (*UNREADABLE, AttributeError, OverflowError):
        return 0.0


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        InputError: if the file is cut short, altered, or no checkpoint.
    """
    try:
        expected = path.with_suffix(".sha256").read_text(encoding="utf-8").strip()
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise InputError(f"{path} is damaged: its SHA-256 is not the one written beside it")
        with safe_open(path, framework="pt") as file:
            state = _state(file)
            names = [name for name in file.keys() if name != STATE]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
        if not isinstance(state, dict) or not isinstance(state.get("settings", {}), dict):
            raise ValueError("its state is no list of facts")
    except UNREADABLE as error:
        raise InputError(f"{path} is no checkpoint of facerec: {brief(error)}") from error
    named = PATTERN.fullmatch(path.name)
    assert named is not None  # as `Checkpoints.paths` finds them
    return Checkpoint(int(named[1]), tensors, state)

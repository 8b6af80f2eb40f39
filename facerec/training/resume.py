"""Going on with a run that was interrupted: which run, from which checkpoint, with which settings.

The settings are the checkpoint's. What the command line says beside them must agree with them, save for where
things lie and how they are watched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from facerec.config.recipe import validate
from facerec.config.settings import Settings, as_params, canonical, defaults
from facerec.data.settings import WHICH_DATA
from facerec.data.store import Store
from facerec.errors import InputError
from facerec.runtime.console import say
from facerec.runtime.cores import usable_cores
from facerec.runtime.device import resolve_device
from facerec.runtime.files import disk_told, locked
from facerec.runtime.paths import located
from facerec.training.checkpoint import Checkpoint, Checkpoints, saved_at

FREE = (
    "resume",
    "output",
    "cache",
    *WHICH_DATA,
    "page_faces",
    "system_metrics",
    "checkpoint_minutes",
    "rebuild_store",
)
RUN_ID = re.compile(r"[0-9a-f]{32}")


class Resumed(NamedTuple):
    """A run to go on with. damaged: a sentence for each newer checkpoint that cannot be used."""

    run_id: str
    checkpoint: Checkpoint
    damaged: list[str]

    def check_data(self, store: Store) -> None:
        """Raises InputError where the pictures are not those that the run was trained on."""
        digest = self.checkpoint.state.get("data_digest")
        if digest != store.digest:
            raise InputError(
                f"run {self.run_id} was trained on data with digest {str(digest)[:12]}, and {store.name} now has "
                f"{store.digest[:12]}: its images or names have changed; bring them back, or start a new run"
            )

    def check_ranks(self, ranks: int) -> None:
        """Raises InputError where another number of processes is to go on: its batches would be others."""
        trained = self.checkpoint.state.get("ranks", 1)
        if trained != ranks:
            raise InputError(
                f"run {self.run_id} was trained by {trained} rank(s), and this is to be {ranks}: go on with as many "
                "as before (torchrun --nproc-per-node), or start a new run"
            )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds a run's folder for one process; the lock goes with the process, however it ends.

    Raises:
        InputError: if another process on this machine trains in it, or it cannot be written.
    """
    lock = folder / ".lock"
    with disk_told(lock):
        folder.mkdir(parents=True, exist_ok=True)
        lock.touch()
    with locked(lock) as state:
        if state == "taken":
            raise InputError(
                f"run {folder.name} is being trained by another process: wait, or stop that"
            )
        if state == "unknown":
            say(
                f"{folder} has no file locks: make sure that no other process trains run {folder.name}"
            )
        yield


@contextmanager
def same_threads(checkpoint: Checkpoint | None, device: str) -> Iterator[None]:
    """Within the block a CPU computes with as many threads as the training was begun with, or it is said why not.

    Sums are split by threads, so that another number gives other last digits. Our kernels take PyTorch's number.
    """
    before, begun = torch.get_num_threads(), checkpoint and checkpoint.state.get("threads")
    if type(begun) is not int or begun == before or resolve_device(device).type != "cpu":
        yield
        return
    if not 1 <= begun <= usable_cores():
        say(
            f"the run was begun with {begun} threads and goes on with {before}, since {usable_cores()} cores are here: "
            "the same bits are promised for the same number only"
        )
        yield
        return
    say(
        f"the run was begun with {begun} thread(s) and goes on with as many; here {before} are usual"
    )
    torch.set_num_threads(begun)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find(output: str, resume: str) -> Resumed:
    """The newest whole checkpoint of a run.

    Args:
        output: the folder that holds a folder a run.
        resume: run id, or `last` for the run that was saved last.

    Raises:
        InputError: if there is no such run here, or none of its checkpoints can be read.
    """
    folder = Path(output)
    if resume == "last":
        saved = [path for run in folder.glob("*/checkpoints") for path in Checkpoints(run).paths()]
        if not saved:
            raise InputError(
                f"resume=last: no run in {folder.resolve()} has a checkpoint; name the folder by output"
            )
        resume = max(saved, key=saved_at).parent.parent.name
    if not RUN_ID.fullmatch(resume):
        raise InputError(
            f"resume={resume}: give the id of an MLflow run (32 hexadecimal digits), or last"
        )
    checkpoint, damaged = Checkpoints(folder / resume / "checkpoints").newest()
    if checkpoint is None:
        why = (
            damaged[0]
            if damaged
            else f"there is none in {(folder / resume / 'checkpoints').resolve()}"
        )
        raise InputError(
            f"run {resume} has no checkpoint to go on from: {why}; name the folder of its output by output"
        )
    return Resumed(resume, checkpoint, damaged)


def settings_of_checkpoint(model: type[Settings], given: Mapping[str, Any]) -> Any:
    """Settings of the run that `given["resume"]` names; its folder is where its checkpoint was found.

    Args:
        given: what the command line says.

    Raises:
        InputError: where the command line contradicts the checkpoint; the differences are named.
    """
    usual = model.model_fields["output"].default
    output = located(str(given["output"])) if "output" in given else usual
    resumed = find(output, given["resume"])
    known = defaults(model) | resumed.checkpoint.state.get("settings", {})
    if "model" in known and "model" not in model.model_fields:
        raise InputError(
            f"run {resumed.run_id} is one of finetune: facerec finetune --resume {resumed.run_id}"
        )
    if "model" in model.model_fields and "model" not in known:
        raise InputError(
            f"run {resumed.run_id} is one of train: facerec train --resume {resumed.run_id}"
        )
    said = as_params(validate(model, {**known, **given}, lambda key: "command line"))
    differences = [
        f"{key}={said[key]} against {known.get(key)}"
        for key in given
        if key not in FREE and said[key] != canonical(known.get(key))
    ]
    if differences:
        raise InputError(
            f"run {resumed.run_id} was started with other settings: {', '.join(differences)}; "
            "leave them out to go on with it, or start a new run"
        )
    free = {key: value for key, value in given.items() if key in FREE}
    if not is_cache(str(known.get("cache"))):
        known.pop("cache", None)
    here = {"output": output, "resume": resumed.run_id}
    return validate(model, {**known, **free, **here}, lambda key: "checkpoint")


def is_cache(folder: str) -> bool:
    """Whether a cache folder is there: where there is none, a checkpoint's text makes none."""
    return any((Path(located(folder)) / part).is_dir() for part in ("stores", "teachers"))

"""What the tests of sweeps share: a few tiny people, a space, and a sweep as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import mlflow
import numpy as np
import optuna
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from facerec.commands import sweep
from facerec.errors import InputError
from facerec.sweep.optuna_factory import open_storage

SPACE = """
parameters:
  lr: {float: [1e-4, 1e-2], log: true}
  patch_size: {categorical: [4, 8]}
fixed: {image_size: 16, d_model: 16, d_state: 4, depth: 1, stem_depth: 0, stem_width: 8, embedding_dim: 8, epochs: 2}
"""


def make_people(folder: Path, people: int = 60, pictures: int = 4) -> Path:
    """A folder of people, each a colour, seen in coloured light and with noise."""
    rng = np.random.default_rng(0)
    for number in range(people):
        home = folder / f"person {number:03d}"
        home.mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for picture in range(pictures):
            light = rng.normal(0, 40, 3)
            pixels = np.clip(colour + light + rng.normal(0, 30, (16, 16, 3)), 0, 255).astype(
                np.uint8
            )
            cv2.imwrite(str(home / f"{picture}.png"), pixels)
    return folder


def write_space(folder: Path, text: str = SPACE, name: str = "space.yaml") -> str:
    """A space file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


def given(folder: Path, people: Path, **more: str) -> dict[str, str]:
    """Options of a sweep in `folder`."""
    options = {
        "space": write_space(folder),
        "data": str(people),
        "cache": str(people.parent / "cache"),
        "output": str(folder / "out"),
        "batch_size": "32",
        "study": "s",
        "trials": "3",
        "system_metrics": "false",
        "heartbeat_seconds": "1",
    }
    return {**options, **more}


def sweep_here(options: dict[str, str]) -> None:
    """A sweep in this process."""
    sweep.run(sweep.settings_of(options, None), None)


def start_sweep(options: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A sweep as a process of its own; what it says goes into `log`."""
    flags = [
        part for key, value in options.items() for part in ("--" + key.replace("_", "-"), value)
    ]
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "facerec", "sweep", *flags],
            env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
            cwd=log.parent,
            stdout=file,
            stderr=file,
        )


def study_of(options: dict[str, str]) -> optuna.Study:
    """The study, through Optuna alone."""
    where = options.get("storage") or f"{options['output']}/studies/{options['study']}.journal"
    return optuna.load_study(study_name=options["study"], storage=open_storage(where, 60))


def runs_of(parent: str) -> dict[int, Run]:
    """Trial number → its MLflow run."""
    client = MlflowClient(mlflow.get_tracking_uri())
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {int(r.data.tags["trial.number"]): r for r in runs if "trial.number" in r.data.tags}


def eventually(condition: Callable[[], bool], seconds: float = 90) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def states(options: dict[str, str]) -> list[TrialState]:
    """State of every trial so far."""
    return [trial.state for trial in trials_of(options)]


def at_work(options: dict[str, str]) -> list[FrozenTrial]:
    """Trials that are in the middle of their training."""
    running = [t for t in trials_of(options) if t.state == TrialState.RUNNING]
    return [trial for trial in running if trial.intermediate_values]


def trials_of(options: dict[str, str]) -> list[FrozenTrial]:
    """Trials, none where the study is not there yet."""
    try:
        return study_of(options).get_trials()
    except (KeyError, InputError):
        return []


def check_accounts(options: dict[str, str], wanted: int) -> list[int]:
    """Every trial has ended, and so has its run, with the same state. Returns the numbers of the failed ones."""
    study = study_of(options)
    trials = study.get_trials()
    assert sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials) == wanted, [
        t.state for t in trials
    ]
    assert all(t.state.is_finished() for t in trials)
    runs = runs_of(study.user_attrs["mlflow_run"])
    for trial in trials:
        if "mlflow_run" in trial.user_attrs:
            run = runs[trial.number]
            expected = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
            assert run.data.tags["trial.state"] == expected
            assert run.info.status != "RUNNING"
    assert MlflowClient().get_run(study.user_attrs["mlflow_run"]).info.status == "FINISHED"
    return [t.number for t in trials if t.state == TrialState.FAIL]

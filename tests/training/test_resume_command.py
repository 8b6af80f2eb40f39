"""Kill -9, then `--resume`: the same MLflow run, the same weights, nothing twice and nothing missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from facerec.cli import ENTRIES, load
from facerec.config.recipe import resolve
from facerec.config.settings import as_params
from facerec.errors import InputError
from facerec.training.checkpoint import Checkpoint, Checkpoints
from facerec.training.resume import Resumed, alone, find, same_threads, settings_of_checkpoint
from facerec.training.run import lead
from facerec.training.settings import TrainSettings
from tests.helpers import PROJECT
from tests.helpers.commands import TINY, environment, flags, mlflow_run
from tests.helpers.models import make_model
from tests.helpers.runs import histories, weights

LONG = {**TINY, "epochs": "4", "checkpoint_minutes": "0.005"}


def start(output, *more: str, entry: str = "train", **given: str) -> subprocess.Popen[str]:
    given = {**(given or LONG), "output": str(output)}
    command = [sys.executable, "-m", "facerec", entry, *flags(given), *more]
    return subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=PROJECT
    )


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["train", "finetune"])
def test_a_killed_run_ends_where_it_would_have(tmp_path, own_tracking, entry):
    given = LONG
    if entry == "finetune":  # with its look-alikes, who are looked for anew each epoch
        given = {name: LONG[name] for name in ("epochs", "batch_size", "checkpoint_minutes")}
        given["model"] = str(tmp_path / "model")
        make_model(tmp_path / "model", image_size=32)
    whole = start(tmp_path / "whole", entry=entry, **given)
    assert whole.wait(240) == 0, whole.stderr.read()
    client = MlflowClient()
    experiment = client.get_experiment_by_name("facerec").experiment_id
    (left_alone,) = client.search_runs([experiment])

    killed = start(tmp_path / "killed", entry=entry, **given)
    for line in killed.stderr:
        if line.startswith("epoch 2/"):
            os.kill(killed.pid, signal.SIGKILL)
            break
    killed.wait(30)
    (run_id,) = {run.info.run_id for run in client.search_runs([experiment])} - {
        left_alone.info.run_id
    }

    due = ["-P", f"model={given['model']}"] if entry == "finetune" else []
    again = ["-P", "resume=last", "-P", f"output={tmp_path / 'killed'}"]
    done = mlflow_run("-e", entry, *again, *due)
    assert done.returncode == 0, done.stderr
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    one, other = (
        weights(tmp_path / "whole", left_alone.info.run_id),
        weights(tmp_path / "killed", run_id),
    )
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    assert histories(run_id) == histories(left_alone.info.run_id)
    assert {k: v for k, v in run.data.params.items() if k != "output"} == {
        k: v for k, v in left_alone.data.params.items() if k != "output"
    }
    for _ in range(100):  # it is deleted when `mlflow run` has gone
        deleted = client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)
        if deleted:
            break
        time.sleep(0.2)
    assert [run.data.tags["facerec.continues"] for run in deleted] == [run_id]


def test_what_cannot_be_resumed_is_told(tmp_path, own_tracking):
    done = start(tmp_path, "--epochs", "1")
    assert done.wait(240) == 0, done.stderr.read()
    (run_id,) = (p.name for p in tmp_path.iterdir())
    model, _ = load(ENTRIES["train"])

    def settings(**given):
        return settings_of_checkpoint(model, {"output": str(tmp_path), "resume": "last", **given})

    assert settings().resume == run_id
    assert settings(lr="2e-3").lr == 0.002  # the same number in another spelling
    with pytest.raises(InputError, match=r"lr=0\.5 against 0\.002"):
        settings(lr="0.5")
    with pytest.raises(InputError, match="32 hexadecimal digits"):
        settings(resume="../elsewhere")
    with pytest.raises(InputError, match="no checkpoint"):
        settings(resume="0" * 32)
    shutil.rmtree(tmp_path / run_id / "checkpoints")
    with pytest.raises(InputError, match="resume=last"):
        settings()


@pytest.mark.parametrize("by", ["resume", "MLFLOW_RUN_ID"])
def test_who_is_refused_a_run_leaves_it_as_it_is(tmp_path, own_tracking, monkeypatch, by):
    client = MlflowClient()
    run_id = client.create_run(client.get_experiment_by_name("facerec").experiment_id).info.run_id
    resumed = Resumed(run_id, Checkpoint(0, {}, {}), []) if by == "resume" else None
    if by == "MLFLOW_RUN_ID":
        monkeypatch.setenv(by, run_id)
    before = client.get_run(run_id)
    settings = resolve(TrainSettings, {"output": str(tmp_path)})
    with alone(tmp_path / run_id), pytest.raises(InputError, match="by another process"):
        lead(settings, None, None, resumed)
    after = client.get_run(run_id)
    assert after.info.status == "RUNNING" and after.data.tags == before.data.tags


def test_where_there_are_no_locks_a_run_is_trained_and_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("facerec.runtime.files.fcntl", None)
    with alone(tmp_path / "run"), alone(tmp_path / "run"):
        assert "make sure that no other process trains run run" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), alone(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize(
    ("begun", "used", "said"),
    [(1, 1, "goes on with as many"), (10**9, 2, "cores are here"), ("1", 2, ""), (None, 2, "")],
)
def test_threads_of_a_run_are_kept_or_it_is_said_why_not(capsys, begun, used, said):
    checkpoint, before = Checkpoint(0, {}, {"threads": begun}), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with same_threads(checkpoint, "cpu"):
            assert torch.get_num_threads() == used
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    told = capsys.readouterr().err
    assert said in told and bool(said) == bool(told)


def test_last_is_by_what_checkpoints_say_and_not_by_when_they_were_copied(tmp_path, monkeypatch):
    for number, seconds in ((1, 300.0), (2, 200.0), (3, 100.0)):
        monkeypatch.setattr(
            "facerec.training.checkpoint.time.time", lambda seconds=seconds: seconds
        )
        run = Checkpoints(tmp_path / (str(number) * 32) / "checkpoints")
        path = run.save(number, {"w": torch.zeros(1)}, {})
        os.utime(path, (number * 1e6, number * 1e6))
    assert find(str(tmp_path), "last").run_id == "1" * 32
    path.write_bytes(b"damaged")
    assert find(str(tmp_path), "last").run_id == "1" * 32


def test_a_checkpoint_does_not_say_where_folders_are_made(tmp_path):
    elsewhere = {"output": str(tmp_path / "elsewhere"), "cache": str(tmp_path / "cache")}
    state = {"settings": as_params(resolve(TrainSettings, elsewhere))}
    run = Checkpoints(tmp_path / "out" / ("a" * 32) / "checkpoints")
    run.save(1, {"w": torch.zeros(1)}, state)

    def settings(**given):
        here = {"output": str(tmp_path / "out"), "resume": "last"}
        return settings_of_checkpoint(TrainSettings, {**here, **given})

    assert settings().output == str(tmp_path / "out") and settings().cache is None
    assert settings(cache=elsewhere["cache"]).cache == elsewhere["cache"]
    (tmp_path / "cache" / "stores").mkdir(parents=True)
    assert settings().cache == elsewhere["cache"]  # a cache, and of that run most likely

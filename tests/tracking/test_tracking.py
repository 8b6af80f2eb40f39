"""Tracking: runs at once on one SQLite store, an HTTP server, an old file store, what a run holds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import mlflow
import psutil
import pytest
from mlflow.tracking import MlflowClient

from facerec.errors import InputError
from facerec.tracking import outbox
from facerec.tracking import run as tracking
from facerec.tracking.address import absolute_tracking_uri, reach_tracking
from facerec.tracking.lifecycle import track
from facerec.tracking.mlflow_run import give_up
from facerec.tracking.outbox import REFUSED, line, read
from facerec.tracking.settings import TrackingSettings
from tests.helpers.commands import TINY, environment, flags
from tests.helpers.servers import kill, serve

WRITER = """
import sys
from facerec.tracking.lifecycle import track
from facerec.tracking.settings import TrackingSettings
with track(TrackingSettings(experiment="at once", system_metrics=False, run_name=sys.argv[1])) as run:
    for step in range(60):
        run.log_metrics({"a": step, "b": 2 * step, "c": 3 * step}, step)
"""


def test_runs_at_once_on_the_default_store_lose_no_metric(tmp_path):
    child = environment()
    del child["MLFLOW_TRACKING_URI"]
    mlflow_db = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(mlflow_db).create_experiment("at once")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, f"writer {i}"], cwd=tmp_path, env=child)
        for i in range(4)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0, 0]
    client = MlflowClient(mlflow_db)
    runs = client.search_runs([client.get_experiment_by_name("at once").experiment_id])
    assert {run.info.run_name for run in runs} == {f"writer {i}" for i in range(4)}
    for run in runs:
        for name, factor in (("a", 1), ("b", 2), ("c", 3)):
            history = sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)
            assert [(m.step, m.value) for m in history] == [(s, factor * s) for s in range(60)]


@pytest.fixture
def server(tmp_path: Path, port: int) -> Iterator[str]:
    """The URL of a tracking server."""
    process = serve(tmp_path, port)
    yield f"http://127.0.0.1:{port}"
    kill(process)


def test_training_on_an_http_server(server, tmp_path):
    command = [
        sys.executable,
        "-m",
        "facerec",
        "train",
        *flags({**TINY, "output": str(tmp_path / "out")}),
    ]
    uri = server.replace("://", "://me:hush%40hush@")
    done = subprocess.run(
        command, env=environment(MLFLOW_TRACKING_URI=uri), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "View run" in done.stdout and "hush" not in done.stdout + done.stderr
    client = MlflowClient(server)
    (run,) = client.search_runs([client.get_experiment_by_name("facerec").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["epochs"] == "1"
    assert {"training_curves.html", "embedding_map.html"} <= {
        a.path for a in client.list_artifacts(run.info.run_id)
    }
    (model,) = run.outputs.model_outputs
    assert client.get_logged_model(model.model_id).name == "model"


def test_a_server_that_does_not_answer_is_one_sentence_before_any_work(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://127.0.0.1:9")
    mlflow.set_tracking_uri(None)
    with pytest.raises(InputError, match="does not answer"):
        reach_tracking()


def test_an_account_leaves_the_uri_for_the_variables_of_mlflow(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me%40home:hu%2Fsh@host:5000/path")
    monkeypatch.setattr(mlflow, "set_tracking_uri", lambda uri: None)
    absolute_tracking_uri()
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://host:5000/path"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me@home"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "hu/sh"


def test_the_helper_of_mlflow_run_has_no_password_in_its_command_line(monkeypatch):
    uri, started = "postgresql://me:hush@host/db", []
    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)
    monkeypatch.setattr("facerec.tracking.mlflow_run.MlflowClient", MagicMock())
    monkeypatch.setattr("facerec.tracking.mlflow_run.launcher", psutil.Process)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **more: started.append((args, more)))
    give_up("a" * 32, "b" * 32)
    ((args, more),) = started
    assert "hush" not in str(args) and more["env"]["MLFLOW_TRACKING_URI"] == uri


@pytest.mark.parametrize("uri", ["databricks", "file:mlruns", "./mlruns"])
def test_other_addresses_are_left_to_mlflow(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    absolute_tracking_uri()
    assert os.environ["MLFLOW_TRACKING_URI"] == uri


def test_a_database_that_is_away_is_told_at_once(monkeypatch):
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1:9/db")
    try:
        with pytest.raises(InputError, match=r"does not answer|needs a driver") as caught:
            reach_tracking()
    finally:
        mlflow.set_tracking_uri(before)
    assert "secret" not in str(caught.value)


def test_a_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(InputError) as caught:
        reach_tracking()
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_driver_of_postgresql_that_is_installed_is_taken(monkeypatch):
    set_to = []
    monkeypatch.setattr(mlflow, "set_tracking_uri", set_to.append)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me@127.0.0.1:9/db")
    absolute_tracking_uri()
    assert set_to == [os.environ["MLFLOW_TRACKING_URI"]]
    assert set_to[0].startswith(("postgresql+psycopg2://me@", "postgresql+psycopg://me@"))


def test_an_old_file_store_is_told(tmp_path, monkeypatch):
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("artifact_location: x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(mlflow, "is_tracking_uri_set", lambda: False)
    with pytest.raises(InputError, match="move"):
        absolute_tracking_uri()


def test_a_failed_run_is_marked_and_parameters_are_said_once(own_tracking):
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    settings = TrackingSettings(system_metrics=False)
    with pytest.raises(RuntimeError), track(settings) as run:
        run.log_params({"lr": "0.001"})
        run.log_params({"lr": "1e-3", "epochs": "2"})
        raise RuntimeError
    found = MlflowClient().get_run(run.id)
    assert found.info.status == "FAILED" and found.data.params == {"lr": "0.001", "epochs": "2"}


NAMES = ("train/loss", "train/lr", "val/map_at_r")


def epoch(number: int) -> outbox.Entry:
    return {"metrics": [[name, number / 10, 1000 + number, number] for name in NAMES]}


def test_what_waits_is_sent_in_few_requests_each_step_once(tmp_path, own_tracking, monkeypatch):
    with track(TrackingSettings(system_metrics=False)) as run:
        for number in range(5):  # the server did these, and died before it answered
            run.send([epoch(number)])
        left = [{"params": {"lr": "1"}}, *map(epoch, range(39)), {"tags": {"a": "caf\udce9"}}]
        (tmp_path / "outbox.jsonl").write_bytes(b"".join(map(line, left)))
        client, run.client = run.client, MagicMock(wraps=run.client)
        with run.keeping(tmp_path):
            pass
    assert len(run.client.method_calls) == len(NAMES) + 4
    assert not list(tmp_path.iterdir())
    for name in NAMES:
        history = client.get_metric_history(run.id, name)
        assert [(m.step, m.value) for m in history] == [(n, n / 10) for n in range(39)]
    data = client.get_run(run.id).data
    assert data.params == {"lr": "1"} and data.tags["a"] == r"caf\xe9"


@pytest.mark.parametrize(
    "bad",
    [
        {"metrics": [["loss (a)", 1.0, 1, 1]]},
        {"metrics": [["loss\ud800", 1.0, 1, 1]]},
        {"metrics": [["loss", "high", 1, 1]]},
        {"metrics": [["loss"]]},
        {"tags": {"a (b)": "c"}},
        {"tags": {"a": 5}},
        {"params": [1]},
    ],
)
def test_an_entry_that_mlflow_refuses_is_set_aside(
    tmp_path, own_tracking, monkeypatch, capsys, bad
):
    monkeypatch.setattr(outbox, "PAUSE", 0.01)
    left = [epoch(1), bad, epoch(2)]
    (tmp_path / "outbox.jsonl").write_bytes(b"".join(map(line, left)))
    with track(TrackingSettings(system_metrics=False)) as run, run.keeping(tmp_path):
        pass
    assert [entry["entry"] for entry in read(tmp_path / REFUSED)] == [bad]
    assert [path.name for path in tmp_path.iterdir()] == [REFUSED]
    found = run.client.get_run(run.id)
    assert found.info.status == "FINISHED" and "it refuses" in found.data.tags["outbox.refused"]
    for name in NAMES:
        assert [m.step for m in run.client.get_metric_history(run.id, name)] == [1, 2]
    assert "the entry is set aside" in capsys.readouterr().err


def test_a_run_that_is_deleted_keeps_what_waits(tmp_path, own_tracking, monkeypatch):
    monkeypatch.setattr(outbox, "PAUSE", 0.01)
    monkeypatch.setattr(tracking, "SILENT_SECONDS", 0.5)
    with track(TrackingSettings(system_metrics=False)) as run:
        run.client.delete_run(run.id)
        left = [epoch(1), epoch(2)]
        (tmp_path / "outbox.jsonl").write_bytes(b"".join(map(line, left)))
        with pytest.raises(InputError, match=r"it refuses: .*deleted"), run.keeping(tmp_path):
            pass
        assert read(tmp_path / "outbox.jsonl") == left
        run.client.restore_run(run.id)

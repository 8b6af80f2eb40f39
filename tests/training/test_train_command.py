"""`train` as its users run it: `mlflow run`, the console command, Ctrl-C; what MLflow holds afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from facerec.cli import ENTRIES, load
from facerec.config.recipe import resolve
from facerec.config.settings import as_params
from tests.helpers import PROJECT
from tests.helpers.commands import TINY, environment, flags, mlflow_run


def test_mlflow_run_trains_a_model_that_loads(tmp_path, own_tracking):
    given = {**TINY, "lr": "1e-3", "output": str(tmp_path / "out")}
    pairs = [part for key, value in given.items() for part in ("-P", f"{key}={value}")]
    done = mlflow_run("-e", "train", *pairs)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient()
    experiment = client.get_experiment_by_name("facerec")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"

    settings = resolve(load(ENTRIES["train"])[0], given, str(PROJECT / "configs/demo.yaml"))
    expected = {
        **as_params(settings),
        "lr": "1e-3",
        "config": "configs/demo.yaml",
    }  # `mlflow run` had said 1e-3
    assert run.data.params == expected
    for name in ("train/loss", "train/lr", "train/triplets", "train/images_per_second"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == [1], name
    for name in ("val/recall_at_1", "val/r_precision", "val/map_at_r", "val/verification_accuracy"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == [0, 1], name
    (data,) = run.inputs.dataset_inputs
    assert run.data.tags["data.digest"].startswith(data.dataset.digest)
    assert run.data.tags["mlflow.source.git.commit"]
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"training_curves.html", "embedding_map.html", "last"} <= artifacts

    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    import cv2
    import pandas as pd

    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    encoded = cv2.imencode(".png", picture)[1].tobytes()
    answer = np.asarray(model.predict(pd.DataFrame({"image": [encoded]})))[0]
    assert answer.shape == (8,) and np.linalg.norm(answer) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("lr=banana", "lr=banana"),
        ("data=nowhere", "nowhere"),
        ("patch_size=16 -P image_size=40", "does not divide"),
        ("szie=3", "no setting"),
        ("config=nowhere.yaml", "no such file"),
        ("batch_size=60000", "larger"),
    ],
)
def test_bad_input_is_one_sentence_through_mlflow_run(option, said, tmp_path, own_tracking):
    done = mlflow_run("-P", f"output={tmp_path}", *f"-P {option}".split())
    assert done.returncode != 0
    sentences = [line for line in done.stderr.splitlines() if line.startswith("facerec: ")]
    assert len(sentences) == 1 and said in sentences[0], done.stderr
    options = [part for pair in option.split(" -P ") for part in ("--" + pair).split("=", 1)]
    directly = [sys.executable, "-m", "facerec", "train", *options, "--output", str(tmp_path)]
    again = subprocess.run(
        directly, env=environment(), capture_output=True, text=True, timeout=120, cwd=PROJECT
    )
    assert again.returncode == 2 and again.stderr.strip().endswith(sentences[0])
    assert "facerec/cli.py" not in done.stderr


def test_a_relative_sqlite_store_is_the_one_beside_the_user(tmp_path):
    """`mlflow run` changes into the project, where the same URI would be another file."""
    command = [sys.executable, "-m", "mlflow", "run", str(PROJECT), "--env-manager", "local"]
    pairs = [f"-P{key}={value}" for key, value in {**TINY, "output": str(tmp_path / "out")}.items()]
    child = environment(MLFLOW_TRACKING_URI="sqlite:///rel.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'rel.db'}")
    client.create_experiment("facerec", artifact_location=(tmp_path / "artifacts").as_uri())
    done = subprocess.run(
        [*command, *pairs, "--experiment-name", "facerec"],
        cwd=tmp_path,
        env=child,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert not (PROJECT / "rel.db").exists()
    (run,) = client.search_runs([client.get_experiment_by_name("facerec").experiment_id])
    assert run.info.status == "FINISHED" and "val/recall_at_1" in run.data.metrics


def test_interrupt_ends_as_killed_with_everything_saved(tmp_path, own_tracking):
    command = [
        sys.executable,
        "-m",
        "facerec",
        "train",
        *flags({**TINY, "epochs": "1000", "output": str(tmp_path)}),
    ]
    process = subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=PROJECT
    )
    for line in process.stderr:
        if line.startswith("epoch 1/"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(120) == 130, said
    (run,) = MlflowClient().search_runs(
        [MlflowClient().get_experiment_by_name("facerec").experiment_id]
    )
    assert run.info.status == "KILLED"
    assert mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model") is not None
    assert list((tmp_path / run.info.run_id / "checkpoints").glob("*.safetensors"))
    assert "Traceback" not in said

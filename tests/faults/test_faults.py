"""What goes wrong around a real training: its server dies, memory runs out, a batch holds NaN, it is told to stop.

Each training is a process of its own; a few lines before its start bring the fault about.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from facerec.data.augmentation import augment
from facerec.data.store import PIXELS
from facerec.errors import InputError
from facerec.training import trainer as trainer_module
from facerec.training.checkpoint import Checkpoints
from facerec.training.memory import memory_told
from facerec.training.trainer import TrainingFailed
from tests.helpers import PROJECT
from tests.helpers.commands import TINY, environment, flags
from tests.helpers.image_files import people
from tests.helpers.proxy import proxy
from tests.helpers.runs import MAIN, only_run
from tests.helpers.servers import kill, serve
from tests.helpers.trainers import small, trainer

pytestmark = pytest.mark.slow

STARTED: list[subprocess.Popen[str]] = []


def train(
    output: Path, *more: str, fault: str = "", uri: str | None = None, **settings: str
) -> subprocess.Popen[str]:
    """`facerec train` with lines of Python before it."""
    options = flags({**TINY, **settings}) if "--resume" not in more else []
    command = [sys.executable, "-c", fault + MAIN, "train", *options, "--output", str(output)]
    child = environment(**({"MLFLOW_TRACKING_URI": uri} if uri else {}))
    process = subprocess.Popen(
        [*command, *more], env=child, stderr=subprocess.PIPE, text=True, cwd=PROJECT
    )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait(30)


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Reads what a process says until a line with `text`; returns all of it."""
    said = ""
    for line in process.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and what was said until then."""
    said = process.stderr.read()
    return process.wait(120), said


def check_whole(uri: str, run_id: str, epochs: int) -> None:
    """Every epoch once under every metric, all parameters, a model that loads."""
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["batch_size"] == TINY["batch_size"]
    assert run.data.tags["parameters"] and run.data.tags["best.epoch"]
    for name, first in (("val/map_at_r", 0), ("train/loss", 1), ("train/lr", 1)):
        steps = [m.step for m in client.get_metric_history(run_id, name)]
        assert sorted(steps) == list(range(first, epochs + 1)), name
    artifacts = {a.path for a in client.list_artifacts(run_id)}
    assert {"training_curves.html", "embedding_map.html", "last"} <= artifacts
    (model,) = [m for m in run.outputs.model_outputs if ready(client, m.model_id)]
    assert model


def ready(client: MlflowClient, model_id: str) -> bool:
    return str(client.get_logged_model(model_id).status) == "READY"


WAITING = """
import pathlib, sys, time
from facerec.training.trainer import Trainer
whole = Trainer.validate
def validate(self):
    if len(self.history) == 6:
        print("waiting", file=sys.stderr, flush=True)
    while len(self.history) == 6 and not pathlib.Path({go!r}).exists():
        time.sleep(0.1)
    return whole(self)
Trainer.validate = validate
"""
WAITING_IN_A_STEP = WAITING.replace("validate", "train_step").replace("self)", "self, *positions)")


def test_training_goes_on_while_its_server_is_away(tmp_path, port):
    server, uri = serve(tmp_path, port), f"http://127.0.0.1:{port}"
    try:
        waiting = WAITING.format(go=str(tmp_path / "go"))
        process = train(tmp_path / "out", fault=waiting, uri=uri, epochs="7")
        said = wait_for(process, "epoch 1/")
        kill(server)
        said += wait_for(process, "epoch 5/")
        (kept,) = tmp_path.glob("out/*/outbox.jsonl")
        assert "val/map_at_r" in kept.read_text()
        server = serve(tmp_path, port)
        (tmp_path / "go").touch()
        code, rest = ended(process)
        said += rest
        assert code == 0, said
        assert "is away" in said and "is back" in said and "Traceback" not in said
        assert not kept.exists()
        check_whole(uri, kept.parent.name, 7)
    finally:
        kill(server)


HASTY = """
from facerec.tracking import run as tracking
tracking.SILENT_SECONDS = 1  # less than the requests take together, more than one of them
"""


def test_a_server_that_stays_away_loses_nothing(tmp_path, port):
    server, uri = serve(tmp_path, port), f"http://127.0.0.1:{port}"
    try:
        process = train(tmp_path / "out", uri=uri, epochs="3")
        wait_for(process, "epoch 1/")
        kill(server)
        code, said = ended(process)
        last = said.strip().splitlines()[-1]
        (folder,) = tmp_path.glob("out/*")
        assert code == 2 and "Traceback" not in said, said
        assert f"--resume {folder.name}" in last and str(folder) in last
        assert (folder / "model" / "weights.safetensors").exists()
        code, said = ended(train(tmp_path / "out", "--resume", "last", uri=uri))
        assert code == 2 and "does not answer" in said  # still away
        server = serve(tmp_path, port)
        with proxy(uri, delay=0.2) as slow:
            process = train(tmp_path / "out", "--resume", folder.name, uri=slow.url, fault=HASTY)
            code, said = ended(process)
        assert code == 0, said
        check_whole(uri, folder.name, 3)
        assert not (folder / "outbox.jsonl").exists()
        code, said = ended(train(tmp_path / "out", "--resume", folder.name, uri=uri))
        assert code == 0, said
        check_whole(uri, folder.name, 3)  # once more adds nothing
    finally:
        kill(server)


def test_a_registry_that_is_away_at_the_end_costs_no_inherited_provenance(tmp_path, port):
    server, uri = serve(tmp_path, port), f"http://127.0.0.1:{port}"
    try:
        code, said = ended(train(tmp_path / "first", uri=uri))
        assert code == 0, said
        (first,) = tmp_path.glob("first/*/model/provenance.json")
        source = f"runs:/{first.parent.parent.name}/model"
        waiting = WAITING.format(go=str(tmp_path / "go"))
        process = train(tmp_path / "out", fault=waiting, uri=uri, init=source, epochs="7")
        wait_for(process, "waiting")
        kill(server)
        (tmp_path / "go").touch()
        code, said = ended(process)
        assert code == 2 and "Traceback" not in said, said
        (second,) = tmp_path.glob("out/*/model/provenance.json")
        salt = json.loads(first.read_text())["salt"]
        assert json.loads(second.read_text())["salt"] == salt
        server = serve(tmp_path, port)
        MlflowClient(uri).delete_logged_model(
            MlflowClient(uri).get_run(source.split("/")[1]).outputs.model_outputs[0].model_id
        )
        second.unlink()
        code, said = ended(train(tmp_path / "out", "--resume", "last", uri=uri))
        assert code == 0, said
        assert json.loads(second.read_text())["salt"] == salt
    finally:
        if server.poll() is None:
            kill(server)


LITTLE_MEMORY = """
import psutil, resource
from facerec.training.trainer import Trainer
whole = Trainer.train_step
def train_step(self, positions):
    limit = psutil.Process().memory_info().vms + 2**24
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    whole(self, positions)
Trainer.train_step = train_step
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_a_batch_beyond_memory_is_one_sentence(tmp_path, own_tracking):
    code, said = ended(
        train(tmp_path, fault=LITTLE_MEMORY, batch_size="512", image_size="64", d_model="64")
    )
    assert code == 2 and "Traceback" not in said, said
    (sentence,) = [line for line in said.splitlines() if line.startswith("facerec: ")]
    assert "a batch of 512" in sentence and "set batch_size to 256" in sentence
    run = only_run()
    assert run.info.status == "FAILED"
    newest, damaged = Checkpoints(tmp_path / run.info.run_id / "checkpoints").newest()
    assert newest.step == 0 and not damaged


@pytest.mark.parametrize(
    ("error", "size", "people", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 128, 4, "to 64"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 60, 4, "to 28"),
        (MemoryError("Unable to allocate 1 GiB"), 8, 4, "smaller network"),
        (MemoryError(), 3, 1, "smaller network"),
    ],
)
def test_the_batch_to_try_next(error, size, people, said):
    settings = small(batch_size=size, images_per_identity=people)
    with pytest.raises(InputError, match=said), memory_told(settings, torch.device("cpu")):
        raise error


def test_another_error_is_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shapes"), memory_told(small(), torch.device("cpu")):
        raise RuntimeError("shapes differ")


def test_nan_in_a_batch_stops_before_the_weights_and_the_run_can_go_on(tmp_path, monkeypatch):
    whole = trainer(small())
    list(whole)

    def poisoned(pictures, settings, generator):
        pictures = augment(pictures, settings, generator)
        if failing.step == 6:
            pictures[3, 1, 2, 5] = float("nan")
        return pictures

    failing = trainer(small(checkpoint_minutes=1e-9), save=Checkpoints(tmp_path).save)
    monkeypatch.setattr(trainer_module, "augment", poisoned)
    with pytest.raises(TrainingFailed, match="became nan at step 7"):
        list(failing)
    kept = failing.average.network.state_dict().values()  # running statistics of the other are gone
    assert all(torch.isfinite(p).all() for p in (*failing.network.parameters(), *kept))
    monkeypatch.undo()
    resumed = trainer(small())
    resumed.restore(Checkpoints(tmp_path).newest()[0])
    list(resumed)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


NAN = """
import facerec.training.trainer as trainer
whole = trainer.augment
def augment(pictures, settings, generator):
    pictures = whole(pictures, settings, generator)
    if generator.initial_seed() % 3 == 0:
        pictures[0, 0, 0, 0] = float("nan")
    return pictures
trainer.augment = augment
"""


def test_nan_in_a_batch_of_a_real_run(tmp_path, own_tracking):
    code, said = ended(train(tmp_path, fault=NAN, epochs="3"))
    assert code == 2 and "Traceback" not in said, said
    assert re.search(r"facerec: the loss became nan at step \d+ .*lower lr", said)
    run = only_run()
    assert run.info.status == "FAILED"
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    assert model is not None


SLOW = """
import sys, time
from facerec.training.trainer import Trainer
whole = Trainer.train_step
def train_step(self, positions):
    if self.step == 3:
        print("in the step", file=sys.stderr, flush=True)
        time.sleep(900)
    whole(self, positions)
Trainer.train_step = train_step
"""


def test_a_second_interrupt_ends_at_once_and_the_run_can_go_on(tmp_path, own_tracking):
    process = train(tmp_path, fault=SLOW)
    wait_for(process, "in the step")
    process.send_signal(signal.SIGINT)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 130, said
    assert "once more to stop at once" in said and "Traceback" not in said
    run = only_run()
    assert run.info.status == "KILLED"
    code, said = ended(train(tmp_path, "--resume", run.info.run_id))
    assert code == 0, said
    assert only_run().info.status == "FINISHED"


OPENING = """
import sys, time, mlflow
whole = mlflow.start_run
def start_run(*args, **kwargs):
    run = whole(*args, **kwargs)
    print("made", file=sys.stderr, flush=True)
    time.sleep(2)
    return run
mlflow.start_run = start_run
"""
OPENED = """
import sys, time
import facerec.training.run as train
def make_trainer(*args, **kwargs):
    print("made", file=sys.stderr, flush=True)
    time.sleep(60)
train.make_trainer = make_trainer
"""
ENDED = """
import sys, time, mlflow
whole = mlflow.end_run
def end_run(*args, **kwargs):
    print("made", file=sys.stderr, flush=True)
    time.sleep(2)
    whole(*args, **kwargs)
mlflow.end_run = end_run
"""


@pytest.mark.parametrize(
    ("fault", "status"), [(OPENING, "KILLED"), (OPENED, "KILLED"), (ENDED, "FINISHED")]
)
def test_sigterm_outside_of_the_steps_leaves_no_run_that_seems_to_run(
    tmp_path, own_tracking, fault, status
):
    process = train(tmp_path, fault=fault)
    wait_for(process, "made")
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 143 and "Traceback" not in said, said
    assert only_run().info.status == status


def test_a_checkpoint_that_costs_too_much_waits(monkeypatch):
    saved: list[int] = []
    settings = small(epochs=5)

    def slow(step, tensors, state):
        saved.append(step)
        time.sleep(0.2)

    training = trainer(settings, save=slow)
    list(training)
    assert saved == [0, 5 * training.steps_per_epoch]
    assert np.isfinite(training.saving_seconds)


def of_photographs(folder: Path, **more: str) -> dict[str, str]:
    """Settings of a short training on a few pictures, whose store is the only one in its cache."""
    faces = people(folder / "faces", "Ann Bob Cy Di Ed Flo Gus Hal Ida", 4)
    return {"data": str(faces), "cache": str(folder / "cache"), "batch_size": "8", **more}


def cut_short(pixels: Path) -> None:
    os.truncate(pixels, 100)


def overwrite(pixels: Path) -> None:
    with open(pixels, "r+b") as file:
        file.write(bytes(100))


@pytest.mark.parametrize("alter", [cut_short, overwrite])
@pytest.mark.parametrize("waiting", [WAITING, WAITING_IN_A_STEP], ids=["validation", "step"])
def test_a_store_that_is_altered_under_a_training_is_told(tmp_path, own_tracking, waiting, alter):
    """Cut short: reading on through the map would end the process with SIGBUS."""
    fault = waiting.format(go=str(tmp_path / "go"))
    process = train(tmp_path / "out", fault=fault, **of_photographs(tmp_path, epochs="8"))
    wait_for(process, "waiting")
    (pixels,) = tmp_path.glob(f"cache/stores/*/{PIXELS}")
    alter(pixels)
    (tmp_path / "go").touch()
    code, said = ended(process)
    assert code == 2 and "Traceback" not in said, said
    assert "was altered while it was in use" in said.strip().splitlines()[-1]
    run = only_run()
    assert run.info.status == "FAILED"
    code, said = ended(train(tmp_path / "out", "--resume", "last"))
    assert code == 2 and "--rebuild-store true" in said, said
    code, said = ended(train(tmp_path / "out", "--resume", "last", "--rebuild-store", "true"))
    assert code == 0, said
    run = only_run()
    assert run.info.status == "FINISHED"
    history = MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in history] == list(range(1, 9))


def test_a_store_that_is_deleted_under_a_training_is_read_on(tmp_path, own_tracking):
    waiting = WAITING.format(go=str(tmp_path / "go"))
    process = train(tmp_path / "out", fault=waiting, **of_photographs(tmp_path, epochs="8"))
    wait_for(process, "waiting")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "go").touch()
    code, said = ended(process)
    assert code == 0, said
    assert only_run().info.status == "FINISHED"

"""MLflow's experiment variables, names that it refuses, and stores that refuse, told before any work is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from facerec.commands import finetune, sweep, train
from facerec.commands.register import RegisterSettings
from facerec.commands.register import run as run_register
from facerec.config.recipe import resolve
from facerec.errors import InputError
from facerec.runtime.mlflow_errors import trouble
from facerec.tracking.address import reach_tracking
from facerec.tracking.lifecycle import track
from facerec.tracking.outbox import Refused
from facerec.tracking.registry import register
from facerec.tracking.run import Run
from facerec.tracking.settings import TrackingSettings
from tests.helpers.sweeping import given

NAME, ID = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"


def tracking(**more: str) -> TrackingSettings:
    return TrackingSettings(system_metrics=False, **more)


def experiment_of(settings: TrackingSettings) -> str:
    """Name of the experiment that a run of these settings goes to."""
    reach_tracking(settings)
    with track(settings) as run:
        info = MlflowClient().get_run(run.id).info
    return MlflowClient().get_experiment(info.experiment_id).name


def test_the_setting_beats_the_variables_and_they_beat_the_default(own_tracking, monkeypatch):
    number = MlflowClient(f"sqlite:///{own_tracking}/mlflow.db").create_experiment("by id")
    assert experiment_of(tracking()) == "facerec"
    monkeypatch.setenv(ID, number)
    assert experiment_of(tracking()) == "by id"
    monkeypatch.delenv(ID)
    monkeypatch.setenv(NAME, "by name")  # made where it is not there
    assert experiment_of(tracking()) == experiment_of(tracking(experiment="none")) == "by name"
    assert experiment_of(tracking(experiment="given")) == "given"
    assert experiment_of(tracking()) == "by name"  # the setting of one run says nothing of the next


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({ID: "77"}, "MLFLOW_EXPERIMENT_ID=77: there is no such experiment"),
        ({ID: "a/b"}, "MLFLOW_EXPERIMENT_ID=a/b: there is no such experiment"),
        ({ID: "77", NAME: "facerec"}, "unset one of them"),
        ({NAME: "gone"}, "MLFLOW_EXPERIMENT_NAME=gone: the experiment is deleted"),
    ],
)
def test_variables_that_lead_nowhere_are_one_sentence(own_tracking, monkeypatch, variables, said):
    client = MlflowClient(f"sqlite:///{own_tracking}/mlflow.db")
    client.delete_experiment(client.create_experiment("gone"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        reach_tracking(tracking())
    assert said in str(caught.value) and "does not answer" not in str(caught.value)


def test_what_is_deleted_says_how_to_bring_it_back(own_tracking):
    reach_tracking()
    client = MlflowClient()
    with track(tracking()) as run:
        pass
    client.delete_run(run.id)
    with (
        pytest.raises(InputError, match=f"mlflow runs restore --run-id {run.id}"),
        track(tracking(), run.id),
    ):
        pass
    with pytest.raises(InputError, match=r"cannot be registered .*mlflow runs restore"):
        register(run.id, "faces")
    client.restore_run(run.id)
    number = client.get_run(run.id).info.experiment_id
    client.delete_experiment(number)
    restore = f"mlflow experiments restore --experiment-id {number}"
    with pytest.raises(InputError, match=restore):
        reach_tracking(tracking(experiment="facerec"))
    with pytest.raises(InputError, match=restore), track(tracking(), run.id):
        pass


@pytest.mark.parametrize("name", ["team/faces", "a:b", "", " ", "..", "x" * 300])
def test_a_name_that_the_registry_refuses_is_told_before_any_work(tmp_path, monkeypatch, name):
    given = {"register": name, "output": str(tmp_path / "out")}
    with pytest.raises(InputError, match="register="):
        train.run(resolve(train.TrainSettings, given))
    with pytest.raises(InputError, match="register="):
        finetune.run(resolve(finetune.FinetuneSettings, {**given, "model": "pretrained"}))
    with pytest.raises(InputError, match="name"):
        run_register(RegisterSettings.model_construct(run_id="1", name=name, alias=None))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"register": "team/faces", "train_best": "true"}, "register=team/faces"),
        ({"study": "a:b", "storage": "sqlite:///s.db", "train_best": "true"}, "register=facerec-a:b"),
        ({"study": "../a"}, "study=../a names a file"),
        ({"study": "x" * 300}, "names a file"),
        ({"run_name": "x" * 300}, "MLflow keeps 250"),
        ({"experiment": "x" * 600}, "maximum length of 500"),
        ({"run_name": " "}, "run_name= : the name is empty"),
    ],
)  # fmt: skip
def test_a_sweep_checks_its_names_first(tmp_path, options, said):
    options = {**given(tmp_path, tmp_path), **options}
    with pytest.raises(InputError) as caught:
        sweep.run(sweep.settings_of(options, None))
    assert said in str(caught.value)


class Refusing(BaseHTTPRequestHandler):
    """A server that answers every request with the code that its path begins with."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()
        self.wfile.write(b"no entry")

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (401, "denies access"),
        (403, "denies access"),
        (404, "refuses"),
        (503, "does not answer"),
        (429, "does not answer"),
    ],
)
def test_a_server_that_refuses_is_not_one_that_is_away(refusing, monkeypatch, code, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{refusing}/{code}")
    with pytest.raises(InputError) as caught:
        reach_tracking(tracking())
    assert said in str(caught.value) and "secret" not in str(caught.value)
    assert ("start it" in str(caught.value)) == (code in (429, 503))


@pytest.mark.parametrize(
    ("code", "kind"), [(429, RuntimeError), (401, RuntimeError), (400, Refused)]
)
def test_only_what_is_refused_for_good_is_taken_from_the_outbox(refusing, monkeypatch, code, kind):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{refusing}/{code}")
    with pytest.raises(kind) as caught:
        Run("a" * 32).try_to_send([{"tags": {"a": "b"}}], False)
    assert caught.type is kind


def test_a_file_that_is_no_database_is_not_to_be_started(tmp_path, monkeypatch):
    (tmp_path / "junk.db").write_bytes(b"no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/junk.db")
    with pytest.raises(InputError, match=r"cannot be used: .*not a database; set MLFLOW"):
        reach_tracking(tracking())


def test_an_answer_of_the_store_is_given_as_it_is(own_tracking):
    error = MlflowException("it is so", error_code=1)
    assert trouble(error).endswith("refuses: it is so")


def test_an_artifact_store_that_takes_nothing_is_one_sentence(own_tracking, tmp_path: Path):
    (tmp_path / "file").touch()
    client = MlflowClient(f"sqlite:///{own_tracking}/mlflow.db")
    client.create_experiment("closed", artifact_location=f"{tmp_path}/file/artifacts")
    (tmp_path / "page.html").touch()
    mlflow.set_tracking_uri(None)
    with (
        pytest.raises(InputError, match=r"page.html cannot be kept .* it lies in"),
        track(tracking(experiment="closed")) as run,
    ):
        run.log_file(tmp_path / "page.html")

"""What tests share: a quiet cache, a tracking store of their own, a small data set of rendered people."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient, fluent

from tests.helpers import PROJECT
from tests.helpers.servers import free_port

MLFLOW_SETS = (
    "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)  # fmt: skip


@pytest.fixture(autouse=True)
def tracking_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder of the test's own that MLFLOW_TRACKING_URI names; nothing is written until a test does."""
    folder = tmp_path_factory.mktemp("tracking")
    mlflow.set_tracking_uri(None)  # of another test
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in MLFLOW_SETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)  # of another test's store
    yield folder
    for name in MLFLOW_SETS:  # MLflow sets them too
        os.environ.pop(name, None)


@pytest.fixture
def own_tracking(tracking_folder: Path) -> Path:
    """The same, with the experiment that runs go to, so that their artifacts stay out of the project."""
    client = MlflowClient(f"sqlite:///{tracking_folder / 'mlflow.db'}")
    client.create_experiment("facerec", artifact_location=(tracking_folder / "artifacts").as_uri())
    return tracking_folder


@pytest.fixture(scope="session")
def lfw() -> Path:
    """The folder of LFW as Kaggle ships it, named by FACEREC_LFW."""
    path = Path(os.environ.get("FACEREC_LFW", PROJECT.parent / "shared/data/lfw-dataset"))
    if not path.is_dir():
        pytest.skip(f"no LFW at {path}: set FACEREC_LFW to its folder")
    return path


@pytest.fixture
def port() -> int:
    return free_port()

"""What tests share: a quiet cache, a tracking store of their own, a small data set of rendered people."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own_tracking(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLflow in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def lfw() -> Path:
    """The folder of LFW as Kaggle ships it, named by FACEREC_LFW."""
    path = Path(os.environ.get("FACEREC_LFW", PROJECT.parent / "shared/data/lfw-dataset"))
    if not path.is_dir():
        pytest.skip(f"no LFW at {path}: set FACEREC_LFW to its folder")
    return path

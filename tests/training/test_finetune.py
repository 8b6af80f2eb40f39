"""`finetune`: goes on from a model's weights with its network, and says what was gained."""

from __future__ import annotations

import subprocess
import sys

import pytest
from mlflow.tracking import MlflowClient

from facerec.commands.finetune import settings_of
from facerec.errors import InputError
from tests.helpers import PROJECT
from tests.helpers.commands import TINY, environment, flags, mlflow_run


def test_finetune_goes_on_from_a_model(tmp_path, own_tracking):
    first = [sys.executable, "-m", "facerec", "train", *flags({**TINY, "output": str(tmp_path)})]
    done = subprocess.run(first, env=environment(), capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    client = MlflowClient()
    experiment = client.get_experiment_by_name("facerec").experiment_id
    (stage_one,) = client.search_runs([experiment])
    model = tmp_path / stage_one.info.run_id / "model"

    given = {"model": str(model), "epochs": "1", "batch_size": "64", "output": str(tmp_path)}
    done = mlflow_run("-e", "finetune", *(p for k, v in given.items() for p in ("-P", f"{k}={v}")))
    assert done.returncode == 0, done.stderr
    stage_two = next(
        r for r in client.search_runs([experiment]) if r.info.run_id != stage_one.info.run_id
    )
    assert stage_two.data.tags["init.run"] == stage_one.info.run_id
    assert stage_two.data.params["d_model"] == TINY["d_model"]
    assert "val/map_at_r_gain" in stage_two.data.metrics
    before = client.get_metric_history(stage_two.info.run_id, "val/map_at_r")[0]
    best = max(m.value for m in client.get_metric_history(stage_one.info.run_id, "val/map_at_r"))
    assert before.step == 0 and before.value == pytest.approx(best, abs=1e-6)

    with pytest.raises(InputError, match="d_model=32"):
        settings_of({**given, "d_model": "32"}, None)
    with pytest.raises(InputError, match="two models"):
        settings_of({**given, "init": "pretrained"}, None)
    assert settings_of({**given, "dropout": "0.3"}, None).dropout == 0.3

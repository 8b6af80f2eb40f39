"""benchmarks/compare.py and ship.py: a row is trained once, resumed where it broke off; a run's model is shipped."""

from __future__ import annotations

import sys

import pytest
from mlflow.tracking import MlflowClient

from facerec import FaceEmbedder
from facerec.inference.model_io import CARD
from tests.helpers import PROJECT
from tests.helpers.commands import TINY

SMALL = {
    key: value
    for key, value in TINY.items()
    if key not in ("image_size", "epochs", "embedding_dim")
}


def test_a_row_is_trained_once_and_its_model_can_be_shipped(
    tmp_path, own_tracking, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    compare, ship = (pytest.importorskip(name) for name in ("compare", "ship"))
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    options = ["--data", "demo", "--epochs", "1", "--image-size", "32", "--experiment", "facerec"]
    options += ["--output", str(tmp_path), "--only", "mamba cosface 128", *settings]
    monkeypatch.setattr(sys, "argv", ["compare.py", *options])
    for _ in range(2):
        compare.main()
        heading, _, row = capsys.readouterr().out.strip().splitlines()[-3:]
        assert heading.startswith("| network, loss, embedding | parameters | images/s | Recall@1 |")
        assert row.startswith("| mamba cosface 128 | 0.0") and row.count(" [") == 4
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("facerec").experiment_id])

    weights = tmp_path / "weights"
    monkeypatch.setattr(ship, "WEIGHTS", weights)
    monkeypatch.setattr("facerec.inference.model_uri.WEIGHTS", weights)
    model = tmp_path / run.info.run_id / "model"
    ship.ship(model, "pretrained-lfw", "demo")
    one, other = (FaceEmbedder.load(source, "cpu") for source in (str(model), "pretrained-lfw"))
    picture = PROJECT / "docs/images/map.png"
    assert one.embed(picture) == pytest.approx(other.embed(picture), abs=1e-2)
    card = (weights / "pretrained-lfw" / CARD).read_text()
    assert "it has met none of these" in card and "| Recall@1 |" in card

"""`visualize`: the page of a model in MLflow, and what it says of people that the model knows."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from facerec.commands import evaluate, visualize
from facerec.errors import InputError
from facerec.evaluation.candidates import Column
from facerec.evaluation.protocols import Identities, Pictures
from facerec.report import explorer
from tests.helpers.models import make_model, photographs, seen
from tests.helpers.pages import Reader


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder of eight people with three pictures each."""
    return photographs(tmp_path_factory.mktemp("people"), 8)


def settings(tmp_path, people, **changes) -> visualize.VisualizeSettings:
    given = {
        "model": str(tmp_path / "model"),
        "data": str(people),
        "split": "all",
        "cache": str(tmp_path / "cache"),
        "output": str(tmp_path / "out"),
        "occlusions": 2,
    }
    return visualize.VisualizeSettings(**{**given, **changes})


def logged_page(name: str = "embeddings.html"):
    """The only run, and the page that it holds."""
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("facerec").experiment_id])
    path = client.download_artifacts(run.info.run_id, name)
    with open(path, encoding="utf-8") as file:
        return run, file.read()


def test_page_is_logged_with_every_part(tmp_path, people, monkeypatch):
    monkeypatch.chdir(people.parent)
    make_model(tmp_path / "model", image_size=32)
    visualize.run(settings(tmp_path, people, page_faces=True))
    run, text = logged_page()
    assert run.info.status == "FINISHED"
    assert run.data.params["split"] == "all"
    (data,) = run.inputs.dataset_inputs
    assert json.loads(data.dataset.source) == {"uri": people.name}
    assert run.data.params["data"] == people.name
    assert run.data.tags["leak.train_people"] == "0"
    reader = Reader(text)
    data = reader.json("page-data")["map"]
    assert data["people"] == [f"Person {n}" for n in range(8)]
    assert len(data["labels"]) == 24
    for part in ("metrics", "map-card", "similarities", "roc", "impostor-pairs", "occlusion"):
        assert f'id="{part}"' in text
    assert 'role="note"' not in text
    assert "not measurable: 252 impostor pairs" in "".join(reader.text)
    annotations = reader.json("similarities-json")["layout"]["annotations"]
    said = " ".join(note["text"] for note in annotations)
    # The model's own thresholds, but for the one that too few pairs stood behind.
    assert "FAR 1e-1: 0.200" in said
    assert "FAR 1e-4" not in said


def test_faces_and_names_stay_here_unless_mlflow_may_keep_them(tmp_path, people, capsys):
    make_model(tmp_path / "model", image_size=32)
    visualize.run(settings(tmp_path, people))
    run, kept = logged_page("embeddings_without_faces.html")
    here = (tmp_path / "out" / run.info.run_id / "embeddings.html").read_text()
    assert [file.path for file in MlflowClient().list_artifacts(run.info.run_id)] == [
        "embeddings_without_faces.html"
    ]
    for text, faces in ((here, True), (kept, False)):
        assert ("background-image:url(data" in text) is faces and ("Person 3" in text) is faces
        for part, there in (("metrics", True), ("roc", True), ("occlusion", faces)):
            assert (f'id="{part}"' in text) is there
    assert Reader(kept).json("page-data")["map"]["people"] == [f"person {n}" for n in range(1, 9)]
    assert "--page-faces true lets MLflow keep them" in capsys.readouterr().err


def test_people_that_the_model_knows_are_told_first(tmp_path, people, capsys):
    make_model(tmp_path / "model", seen("Person_1", "person 2"), image_size=32)
    visualize.run(settings(tmp_path, people, occlusions=0))
    run, text = logged_page("embeddings_without_faces.html")
    assert run.data.tags["leak.train_people"] == "2"
    sentence = "trained on 2 people (possibly: by name) and 0 pictures"
    assert sentence in text
    assert text.index(sentence) < text.index('id="metrics"')
    assert sentence in capsys.readouterr().err


def test_model_that_is_not_there_is_one_sentence(tmp_path, people):
    with pytest.raises(InputError):
        visualize.run(settings(tmp_path, people))


@pytest.mark.parametrize("labels", [np.arange(3), np.zeros(3, dtype=int)])
def test_no_figures_without_pairs_of_both_kinds(labels, capsys):
    column = Column(np.random.default_rng(0).normal(size=(3, 4)), np.ones(3, bool), None)
    pictures = Pictures(["a", "b", "c"], (), (), np.arange(3))
    assert explorer.measure(Identities(pictures, labels, "people"), column).figures == {}
    assert "no figures" in capsys.readouterr().err


def test_table_is_that_of_evaluate(tmp_path, people, capsys):
    make_model(tmp_path / "model", image_size=32)
    given = settings(tmp_path, people)
    shared = {name: getattr(given, name) for name in ("model", "data", "split", "cache", "output")}
    visualize.run(given)
    _, text = logged_page("embeddings_without_faces.html")
    evaluate.run(evaluate.EvaluateSettings(**shared, references=False))
    for line in capsys.readouterr().out.splitlines():
        if found := re.fullmatch(r"(.+?) {2,}(\d\.\d{3}) (\[.+\])", line):
            cell = f'<b>{found[2]}</b> <span class="interval">{found[3]}</span>'
            assert f'<th scope="row">{found[1]}</th><td>{cell}' in text
    assert text.count('<span class="interval">[') >= 6

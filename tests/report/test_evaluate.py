"""`evaluate`: what stands on the console, in MLflow and on the page, for each protocol and for several models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from facerec.commands import evaluate
from facerec.errors import InputError
from facerec.evaluation import candidates as columns
from facerec.evaluation.candidates import model_column
from facerec.evaluation.confidence import Figure
from facerec.evaluation.protocols import identities
from facerec.evaluation.retrieval import retrieval
from facerec.inference.embedder import FaceEmbedder
from facerec.report import evaluation
from facerec.report.explorer import model_store
from facerec.report.tables import as_metrics, brief, in_words, metric_name
from tests.helpers.models import make_model, photographs, seen
from tests.helpers.pages import Reader


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder of eight people with three pictures each."""
    return photographs(tmp_path_factory.mktemp("people"), 8)


def settings(tmp_path, people, **changes) -> evaluate.EvaluateSettings:
    given = {
        "model": str(tmp_path / "one"),
        "data": str(people),
        "split": "all",
        "cache": str(tmp_path / "cache"),
        "output": str(tmp_path / "out"),
    }
    return evaluate.EvaluateSettings(**{**given, **changes})


def logged():
    """The only run, its page, and its JSON."""
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("facerec").experiment_id])
    id_ = run.info.run_id
    paths = [client.download_artifacts(id_, f"evaluation.{kind}") for kind in ("html", "json")]
    texts = [Path(path).read_text(encoding="utf-8") for path in paths]
    return run, texts[0], json.loads(texts[1])


def test_people_of_a_data_set(tmp_path, people, capsys):
    make_model(tmp_path / "one", image_size=32)
    evaluate.run(settings(tmp_path, people))
    run, page, content = logged()
    assert run.info.status == "FINISHED"
    assert run.data.params["protocol"] == "identities"
    assert run.data.tags["leak"] == "false"
    embedder = FaceEmbedder.load(tmp_path / "one")
    store = model_store(settings(tmp_path, people), embedder)
    expected = retrieval(embedder.embed_faces(store.images), store.labels).figures()
    for name, value in expected.items():
        assert run.data.metrics[f"test/{name}"] == pytest.approx(value)
        low, high = (run.data.metrics[f"test/{name}_{end}"] for end in ("low", "high"))
        assert low <= value <= high
        assert content["figures"]["one"][name]["value"] == pytest.approx(value)
    for reference in ("raw_pixels", "whitened_pca", "fisherfaces"):
        assert 0 <= run.data.metrics[f"test/{reference}/recall_at_1"] <= 1
    assert "test/tar_at_far_1e-3" not in run.data.metrics
    assert content["figures"]["one"]["tar_at_far_1e-3"]["value"] is None
    said = capsys.readouterr().out
    for text in (
        "Recall@1",
        "Fisherfaces",
        "met none of these 8 people and 24 pictures",
        "not measurable: 252",
    ):
        assert text in said
    assert any(name.startswith("one − ") for name in content["differences"])
    text = "".join(Reader(page).text)
    assert "MAP@R" in text and "not measurable: 252 impostor pairs" in text
    # All people were asked for, and the reference lines have learnt from some of them.
    assert "Fisherfaces: of these 8 people and 24 pictures it was trained on 4 people" in page
    assert "Fisherfaces (leak)" in said and "one (leak)" not in said


def test_a_console_that_is_gone_costs_no_result(tmp_path, people, monkeypatch):
    def gone(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(evaluation, "answer", gone)
    make_model(tmp_path / "one", image_size=32)
    with pytest.raises(BrokenPipeError):
        evaluate.run(settings(tmp_path, people, references=False))
    run, _, content = logged()
    assert run.info.status == "FINISHED" and "test/map_at_r" in run.data.metrics and content


def test_a_result_that_mlflow_does_not_take_is_shown_all_the_same(
    tmp_path, people, monkeypatch, capsys
):
    def refuse(*arguments: object) -> None:
        raise InputError("refused")

    monkeypatch.setattr(evaluation, "log", refuse)
    make_model(tmp_path / "one", image_size=32)
    with pytest.raises(InputError, match="refused"):
        evaluate.run(settings(tmp_path, people, references=False))
    assert "Recall@1" in capsys.readouterr().out


def test_two_models_have_two_names_in_mlflow_and_none_is_too_long(tmp_path):
    folders = ["a b", "a_b", "x" * 200, ".a"]
    for folder in folders:
        make_model(tmp_path / folder, image_size=32)
    models = ",".join(str(tmp_path / folder) for folder in folders)
    found = evaluation.load(evaluate.EvaluateSettings(model=models))
    names = [metric_name(name) for name in found]
    assert names == ["a_b", "a_b_2", "x" * 100, "a"]
    assert metric_name("..") == "model"


def test_too_many_pictures_for_raw_pixels_are_told(tmp_path, people, monkeypatch, capsys):
    monkeypatch.setattr(columns, "MAX_RAW", 23)
    make_model(tmp_path / "one", image_size=32)
    evaluate.run(settings(tmp_path, people))
    _, page, content = logged()
    assert [name.removesuffix(" (leak)") for name in content["figures"]] == [
        "one",
        "whitened PCA",
        "Fisherfaces",
    ]
    sentence = "Raw pixels are measured on at most 23 pictures and left out for these 24."
    assert sentence in page and sentence in capsys.readouterr().out


def test_people_that_the_model_knows_are_told_first(tmp_path, people, capsys):
    make_model(tmp_path / "one", seen("Person_1", "person 2"), image_size=32)
    evaluate.run(settings(tmp_path, people, references=False))
    run, page, content = logged()
    assert run.data.tags["leak"] == "true"
    assert (run.data.tags["leak.train_people"], run.data.tags["leak.people"]) == ("2", "8")
    sentence = "it was trained on 2 people (possibly: by name) and 0 pictures"
    assert sentence in content["leaks"]["one"]["told"]
    assert page.index(sentence) < page.index('id="metrics"')
    said = capsys.readouterr().out
    assert said.index(sentence) < said.index("Recall@1")
    assert "one (leak)" in said


def test_models_are_compared_on_the_same_draws(tmp_path, people, capsys):
    make_model(tmp_path / "one", image_size=32)
    make_model(tmp_path / "two", image_size=16, d_model=32)
    both = f"{tmp_path / 'one'}, {tmp_path / 'two'}"
    evaluate.run(settings(tmp_path, people, model=both, references=False))
    run, page, content = logged()
    figures, gain = content["figures"], content["differences"]["one − two"]
    for name in ("recall_at_1", "map_at_r", "auc"):
        values = [figures[model][name]["value"] for model in ("one", "two")]
        assert gain[name]["value"] == pytest.approx(values[0] - values[1])
        assert run.data.metrics[f"test/two/{name}"] == pytest.approx(values[1])
    assert "one − two, paired" in capsys.readouterr().out
    assert "one − two" in page and 'role="note"' not in page
    assert run.data.tags["leak.two.people"] == "8"


def test_listed_pairs(tmp_path, people):
    make_model(tmp_path / "one", image_size=32)
    lines = [f"{people}/Person_{i}/0.png,{people}/Person_{i}/1.png,1" for i in range(8)]
    lines += [f"{people}/Person_{i}/0.png,{people}/Person_{(i + 1) % 8}/1.png,0" for i in range(8)]
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join([*lines, f"{tmp_path}/gone.png,{people}/Person_0/0.png,0"]))
    evaluate.run(settings(tmp_path, people, protocol="pairs", data=str(file)))
    run, _, content = logged()
    assert "test/verification_accuracy" not in run.data.metrics  # this model has no such threshold
    assert content["figures"]["one"]["verification_accuracy"]["note"].startswith("no threshold")
    assert set(content["figures"]) == {"one", "raw pixels"}
    assert (
        "not measurable: 8 impostor pairs" in content["figures"]["one"]["tar_at_far_1e-1"]["note"]
    )
    assert run.data.tags["leak.pictures"] == "17"


def test_search_in_a_gallery(tmp_path, people):
    make_model(tmp_path / "one", image_size=32)
    gallery = tmp_path / "known"
    for person in range(8):
        (gallery / f"Person_{person}").mkdir(parents=True)
        source = people / f"Person_{person}" / "0.png"
        (gallery / f"Person_{person}" / "0.png").write_bytes(source.read_bytes())
    evaluate.run(settings(tmp_path, people, protocol="gallery", gallery=str(gallery)))
    run, _, content = logged()
    figures = content["figures"]["raw pixels"]
    assert (
        figures["rate_at_rank_1"]["value"] == 1
    )  # 16 probes: the gallery's own pictures are left out
    assert run.data.metrics["test/rate_at_rank_10"] == 1
    assert run.data.tags["leak.pictures"] == "16"


def test_what_does_not_fit_is_one_sentence(tmp_path, people):
    make_model(tmp_path / "one", image_size=32)
    for changes, sentence in (
        ({"protocol": "lfw-view1"}, "is not LFW"),
        ({"protocol": "gallery"}, "gallery is missing"),
        ({"protocol": "pairs", "data": str(tmp_path / "none.csv")}, "none.csv"),
        ({"model": " , "}, "one or more models are due"),
        ({"model": f"{tmp_path / 'one'},{tmp_path / 'one'}"}, "each once"),
        ({"model": str(tmp_path / "gone")}, "there is no such folder"),
    ):
        with pytest.raises(InputError, match=sentence):
            evaluate.run(settings(tmp_path, people, **changes))


def test_flip_averages_with_the_mirror(tmp_path, people):
    make_model(tmp_path / "one", image_size=32)
    embedder = FaceEmbedder.load(tmp_path / "one")
    store = model_store(settings(tmp_path, people), embedder)
    pictures = identities(store, "all").pictures
    plain, flipped = (model_column(embedder, pictures, store, flip) for flip in (False, True))
    assert np.allclose(flipped.features, embedder.embed_faces(store.images, flip=True), atol=1e-5)
    assert not np.allclose(plain.features, flipped.features, atol=1e-3)


def test_figures_as_text():
    found = {"recall_at_1": Figure(0.4313, 0.4, 0.46), "eer": Figure.missing("not measurable")}
    assert brief(found["recall_at_1"]) == "0.431 [0.400, 0.460]"
    table = in_words({"model": found, "raw pixels": {}}).splitlines()
    assert table[0].split() == ["model", "raw", "pixels"]
    assert table[2].split() == ["EER", "not", "measurable", "–"]
    assert as_metrics(found, "test") == {
        "test/recall_at_1": 0.4313,
        "test/recall_at_1_low": 0.4,
        "test/recall_at_1_high": 0.46,
    }


@pytest.mark.parametrize(
    "source, name",
    [
        ("runs:/0123456789abcdef/model", "run 01234567"),
        ("models:/facerec@champion", "facerec@champion"),
        ("outputs/1/model", "1/model"),
        ("outputs/0123456789abcdef0123456789abcdef/model", "01234567/model"),
        ("./net", "net"),
        ("pretrained", "pretrained"),
    ],
)
def test_short_names(source, name):
    assert evaluation.short_name(source) == name

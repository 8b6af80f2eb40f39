"""`facerec predict`: a pair, a gallery, and questions that cannot be answered."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from facerec.cli import main
from facerec.commands import predict
from facerec.config.recipe import resolve
from facerec.errors import InputError
from facerec.inference.provenance import DataSet
from tests.helpers.models import encoded, hostile_pictures, make_model, odd_pictures, picture, seen


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, two pictures and a gallery of three people."""
    monkeypatch.setenv("FACEREC_SCAN", "reference")
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "model")
    (tmp_path / "gallery").mkdir()
    for seed in range(3):
        (tmp_path / "gallery" / f"person {seed}.png").write_bytes(encoded(picture(seed)))
    for name, seed in (("one.png", 1), ("two.jpg", 2)):
        (tmp_path / name).write_bytes(
            encoded(picture(seed, 90), "PNG" if name.endswith("png") else "JPEG")
        )
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], **given: Any) -> str:
    predict.run(resolve(predict.SETTINGS, {"model": "model", "device": "cpu", **given}))
    return capsys.readouterr().out


def test_a_pair(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ask(capsys, a="one.png", b="one.png", far="0.001")
    assert told.startswith("the same person at FAR 0.001") and "20,000 validation pairs" in told
    answer = json.loads(ask(capsys, a="one.png", b="two.jpg", json="true", picture="both.png"))
    assert answer["a"] == "one.png" and answer["threshold"] == 0.5
    assert answer["same_person"] is (answer["similarity"] >= 0.5)
    assert (world / "both.png").stat().st_size > 1000


def test_the_answer_is_kept_in_the_run_of_mlflow_run(
    world: Path, own_tracking: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    client = MlflowClient()
    run = client.create_run(client.get_experiment_by_name("facerec").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)

    def kept() -> dict[str, Any]:
        return json.loads(
            Path(client.download_artifacts(run.info.run_id, "answer.json")).read_text()
        )

    make_model(
        world / "model", seen(data=DataSet(name="demo"))
    )  # even so, whom images show is open
    pair = {"a": str(world / "one.png"), "b": "two.jpg", "json": "true"}
    printed = json.loads(ask(capsys, **pair, page_faces="true"))
    assert kept() == printed and printed["a"] == "one.png"
    printed = json.loads(ask(capsys, **pair))
    assert kept() == {name: value for name, value in printed.items() if name not in ("a", "b")}
    search = {"probe": "one.png", "gallery": "gallery", "json": "true"}
    (match, *_) = json.loads(ask(capsys, **search))["matches"]
    assert match["picture"] == "gallery/person 1.png"
    del match["name"], match["picture"]
    assert kept()["matches"][0] == match and not {"probe", "gallery", "notes"} & set(kept())


def test_a_tracking_server_that_is_not_there(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(InputError, match="does not answer"):
        ask(capsys, a="one.png", b="two.jpg", model="models:/facerec@champion")
    assert time.monotonic() - start < 60  # MLflow's client would ask for minutes


def test_a_gallery(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "gallery" / "broken.jpg").write_bytes(b"no picture")
    who = {"gallery": "gallery", "probe": "gallery/person 2.png"}
    answer = json.loads(ask(capsys, **who, top=2, json="true"))
    assert answer["matches"][0]["name"] == "person 2" and len(answer["matches"]) == 2
    assert answer["people"] == 3 and answer["skipped"][0]["picture"].endswith("broken.jpg")
    assert answer["pictures"] == 3 and answer["stranger_accepted_at_most"] == pytest.approx(3e-3)
    told = ask(capsys, **who)
    assert "up to 0.003 of searches" in told
    assert "person 2" in told.splitlines()[2] and "broken.jpg: not a picture" in told


def test_a_file_name_cannot_write_on_the_terminal(world: Path, capsys) -> None:
    (world / "gallery" / "a\nb\x1b[31m.png").write_bytes(encoded(picture(7)))
    told = ask(capsys, gallery="gallery", probe="one.png")
    assert "a\\nb\\x1b[31m" in told and "\x1b" not in told
    with pytest.raises(InputError) as caught:
        ask(capsys, a="one.png", b="no\nsuch.png")
    assert "no\\nsuch.png: no such file" in str(caught.value)


@pytest.mark.parametrize(
    "given, reason",
    [
        ({}, "give two pictures"),
        ({"a": "one.png"}, "given: a$"),
        ({"a": "one.png", "b": "two.jpg", "probe": "one.png"}, "given: a, b, probe"),
        ({"a": "one.png", "gallery": "gallery"}, "given: a, gallery"),
        ({"a": "one.png", "b": "none.png"}, "none.png: no such file"),
        ({"a": "one.png", "b": "https://example.org/b.jpg"}, "URL"),
        ({"a": "one.png", "b": "two.jpg", "far": "1"}, "far=1"),
        ({"a": "one.png", "b": "two.jpg", "far": "0.3"}, "it has: 0.1, 0.001"),
        ({"a": "one.png", "b": "two.jpg", "model": "elsewhere"}, "no such folder in /"),
        ({"a": "one.png", "b": "two.jpg", "device": "toaster"}, "device=toaster"),
        ({"a": "one.png", "b": "two.jpg", "picture": "no/such.png"}, "picture=no/such.png"),
        ({"a": "one.png", "b": "two.jpg", "picture": "./one.png"}, "is one of the pictures"),
        ({"gallery": "gallery", "probe": "one.png", "picture": "gallery/x.png"}, "in the gallery"),
        ({"a": "one.png", "b": "two.jpg", "picture": "odd.xyz"}, "picture=odd.xyz"),
        ({"gallery": "model", "probe": "one.png"}, "no usable picture"),
        ({"gallery": "one.png", "probe": "one.png"}, "a file, where a folder is due"),
        ({"gallery": "https://example.org/people", "probe": "one.png"}, "no such folder"),
        ({"a": "one.png", "b": "gallery"}, "gallery: a folder"),
        ({"a": "one.png", "b": "pipe.jpg"}, "pipe.jpg: no regular file"),
        ({"a": "/dev/zero", "b": "one.png"}, "/dev/zero: no regular file"),
        (
            {"a": "one.png", "b": "two.jpg", "model": "one.png"},
            "a file, where a model folder is expected",
        ),
        ({"a": "one.png", "b": "two.jpg", "model": "https://example.org/model"}, "is a URL"),
        ({"a": "one.png", "b": "two.jpg", "faar": "1"}, "did you mean 'far'"),
    ],
)
def test_what_cannot_be_answered(
    world: Path, capsys: pytest.CaptureFixture[str], given: dict[str, str], reason: str
) -> None:
    os.mkfifo(world / "pipe.jpg")
    with pytest.raises(InputError, match=reason) as caught:
        ask(capsys, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", hostile_pictures())
def test_hostile_pictures_end_the_command_line_with_one_sentence(
    world: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (world / "bad.jpg").write_bytes(hostile_pictures()[name])
    with pytest.raises(SystemExit) as caught:
        main(["predict", "one.png", "bad.jpg", "--model", "model", "--device", "cpu"])
    said = capsys.readouterr()
    assert caught.value.code == 2 and said.out == ""
    assert said.err.startswith("facerec: bad.jpg: ") and said.err.count("\n") == 1


@pytest.mark.parametrize("name", odd_pictures())
def test_odd_pictures_are_answered(
    world: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (world / "odd.jpg").write_bytes(odd_pictures()[name])
    assert "at FAR 0.001" in ask(capsys, a="one.png", b="odd.jpg")

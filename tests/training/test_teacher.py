"""The teacher: asked once for each picture, never of test people; what does not fit is told; dlib where it is here."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from facerec.data.align import FRAMES
from facerec.data.settings import DataSettings
from facerec.data.store import Store, open_store
from facerec.errors import InputError
from facerec.evaluation.overlap import leak
from facerec.evaluation.protocols import Pictures
from facerec.inference.provenance import model_card, provenance
from facerec.training.checkpoint import Checkpoints
from facerec.training.distillation import dlib as dlib_teacher
from facerec.training.distillation import teacher
from facerec.training.distillation.dlib import dlib_answer, dlib_blend
from facerec.training.distillation.mixup import blend_key, blended, laid_over, partners
from facerec.training.distillation.teacher import (
    TEACHERS,
    check_teacher,
    teacher_answers,
    teacher_rows,
)
from facerec.training.run import make_trainer
from facerec.training.settings import TrainSettings
from tests.helpers.models import picture


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Twelve people with four pictures each."""
    root = tmp_path_factory.mktemp("people")
    for person in range(12):
        (root / f"person {person}").mkdir()
        for i in range(4):
            Image.fromarray(picture(10 * person + i)).save(root / f"person {person}" / f"{i}.png")
    cache = str(tmp_path_factory.mktemp("cache"))
    return open_store(DataSettings(data=str(root), image_size=16, cache=cache), progress=False)


def answer(digest: str, path: Path) -> np.ndarray:
    """What the fake teacher says: 0.9 of it is the same for everybody."""
    rng = np.random.default_rng(int(digest[:8], 16))
    return (0.9 + 0.1 * rng.normal(size=128)).astype(np.float32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SHA-256 of the pictures that the fake teacher was asked about, in this process."""
    asked: list[str] = []

    def note(digest: str, path: Path) -> np.ndarray:
        asked.append(digest)
        return answer(digest, path)

    monkeypatch.setitem(teacher.ANSWER, "dlib", note)
    monkeypatch.setattr(teacher, "dlib_files", list)
    monkeypatch.setattr(teacher, "usable_cores", lambda: 1)
    return asked


def settings(cache: Path, **changes: object) -> TrainSettings:
    small = {"d_model": 16, "depth": 1, "d_state": 4, "stem_depth": 1, "stem_width": 8}
    fixed = {
        "loss": "distill",
        "teacher": "dlib",
        "image_size": 16,
        "batch_size": 8,
        "device": "cpu",
    }
    return TrainSettings(**{**small, **fixed, "cache": str(cache), **changes})


def test_each_picture_is_asked_for_once_and_test_people_never(store, asked, tmp_path):
    recipe = settings(tmp_path)
    first = teacher_rows(recipe, store, "train", progress=False)
    learning = {store.picture_hashes[i] for part in ("train", "val") for i in store.indices(part)}
    assert sorted(asked) == sorted(learning) and len(store.indices("test"))
    again = teacher_rows(recipe, store, "train", progress=False)
    teacher_rows(recipe, store, "val", progress=False)
    assert len(asked) == len(learning) and np.array_equal(first, again)


def test_rows_are_centred_and_of_unit_length(store, asked, tmp_path):
    rows = teacher_rows(settings(tmp_path), store, "train", progress=False)
    raw = teacher_answers(settings(tmp_path), store, store.indices("train"), progress=False)
    centred = raw - raw.mean(0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert np.linalg.norm(raw.mean(0)) > 0.9 * np.linalg.norm(raw, axis=1).mean()
    assert np.linalg.norm(rows.mean(0)) < 0.2


def test_interrupted_it_goes_on_where_it_was(store, asked, tmp_path, monkeypatch):
    def stop(digest: str, path: Path) -> np.ndarray:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(digest)
        return answer(digest, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(teacher.ANSWER, "dlib", stop)
        teacher_rows(settings(tmp_path), store, "train", progress=False)
    teacher_rows(settings(tmp_path), store, "train", progress=False)
    assert len(asked) == len(set(asked))


def test_a_damaged_cache_is_made_again(store, asked, tmp_path):
    first = teacher_rows(settings(tmp_path), store, "train", progress=False)
    (file,) = (tmp_path / "teachers").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(teacher_rows(settings(tmp_path), store, "train", progress=False), first)


POINTS = np.float32([[-0.2, -0.1], [-0.1, -0.1], [0.1, -0.1], [0.2, -0.1], [0, 0.1]])


@pytest.fixture
def blends_asked(asked, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Pairs of SHA-256 that the fake teacher was asked about; it says what it says of the first, and finds the face of
    the other to the right of it by an eighth of the picture's side."""
    pairs: list[tuple[str, str]] = []

    def note(digest: str, path: Path, other: str, other_path: Path) -> np.ndarray:
        pairs.append((digest, other))
        shifted = POINTS + np.float32([1 / 8, 0])
        return np.concatenate([answer(digest, path), POINTS.ravel(), shifted.ravel()])

    monkeypatch.setitem(teacher.ANSWER, "dlib-blends", note)
    return pairs


@pytest.mark.parametrize(("align", "shift"), [("none", 4), ("five-point", 0)])
def test_blends_are_of_two_training_people_and_asked_for_once(
    store, blends_asked, tmp_path, align, shift
):
    recipe = settings(tmp_path, blends=2, crop=0.5, align=align)
    pictures, rows = blended(recipe, store, progress=False)
    train = store.indices("train")
    person = dict(zip(store.picture_hashes, store.labels, strict=True))
    assert len(pictures) == len(rows) == 2 * len(train)
    pairs = len(blends_asked)
    assert pairs == len(set(blends_asked)) > 1.9 * len(train)
    assert {first for first, _ in blends_asked} == {store.picture_hashes[i] for i in train}
    assert {other for _, other in blends_asked} <= {store.picture_hashes[i] for i in train}
    assert all(person[first] != person[other] for first, other in blends_asked)
    again = blended(recipe, store, progress=False)
    assert len(blends_asked) == pairs and np.array_equal(again.pictures, pictures)
    # What the teacher says of a blend, less the mean of what it says of people.
    first = teacher_rows(recipe, store, "train", progress=False)
    np.testing.assert_allclose(rows, np.tile(first, (2, 1)), atol=1e-5)
    # An eighth of a picture of which half is seen in 16 pixels: 4 of them.
    one, other = (store.images[store.picture_hashes.index(digest)] for digest in blends_asked[0])
    mean = (one[:, : 16 - shift].astype(float) + other[:, shift:]) / 2
    assert np.abs(pictures[0, :, : 16 - shift] - mean).max() <= 1


def test_a_face_is_laid_over_another_point_on_point():
    """Turned by a right angle and halved: what is red on one face comes to lie where it is on the other."""
    onto = np.array([[10.0, 8], [14, 8], [18, 8], [22, 8], [16, 14]])
    points = 2 * np.stack([-(onto[:, 1] - 16), onto[:, 0] - 16], 1) + 32
    face = np.zeros((64, 64, 3), np.uint8)
    for x, y in points:
        cv2.circle(face, (round(x), round(y)), 5, (255, 0, 0), -1)
    laid = laid_over(face, points, onto)
    for x, y in onto:
        assert laid[round(y - 0.5), round(x - 0.5), 0] > 200
    assert laid[40, 40].max() == 0


def test_partners_are_of_other_people_whoever_has_most_pictures():
    labels = np.array([0] * 50 + [1, 2])
    first, second = partners(labels, 3)
    assert np.array_equal(first, np.tile(np.arange(52), 3))
    assert (labels[first] != labels[second]).all()
    assert np.array_equal(partners(labels, 2)[1], second[:104])  # asked for already
    assert blend_key("a", "b") != blend_key("b", "a")


def test_a_student_learns_from_blends_too_and_goes_on_where_it_was(store, blends_asked, tmp_path):
    recipe = settings(tmp_path, blends=1, epochs=2, images_per_identity=1)
    trainer = make_trainer(recipe, store, tmp_path, progress=False)
    train, blends = store.indices("train"), blended(recipe, store, progress=False)
    assert trainer.steps_per_epoch == 2 * len(train) // recipe.batch_size
    seen = trainer.load(np.array([len(train) + 3, 1, len(train)]))
    expected = [blends.pictures[3], store.images[train[1]], blends.pictures[0]]
    np.testing.assert_array_equal(seen.cpu(), np.stack(expected))
    assert np.array_equal(trainer.objective.loss.targets[len(train) :].cpu(), blends.rows)
    rows = iter(trainer)
    next(rows), next(rows)
    checkpoint, _ = Checkpoints(tmp_path / "checkpoints").newest()
    list(rows)
    resumed = make_trainer(recipe, store, tmp_path / "again", checkpoint, progress=False)
    list(resumed)
    for one, other in zip(trainer.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_several_processes_answer_in_order(store, tmp_path, monkeypatch):
    """The fake teacher is a module of its own, so that the processes do not import torch for it."""
    said = "import numpy\ndef answer(digest, path):\n    return numpy.float32([int(digest[:4], 16)] * 128)\n"
    (tmp_path / "two_processes.py").write_text(said)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(teacher.ANSWER, "dlib", importlib.import_module("two_processes").answer)
    monkeypatch.setattr(teacher, "usable_cores", lambda: 2)
    rows = store.indices("all")
    found = teacher_answers(settings(tmp_path), store, rows, progress=False)
    assert found[:, 0].tolist() == [int(store.picture_hashes[i][:4], 16) for i in rows]


def test_a_checkpoint_of_other_answers_is_refused(store, asked, tmp_path, monkeypatch):
    recipe = settings(tmp_path / "one", epochs=1)
    list(make_trainer(recipe, store, tmp_path, progress=False))
    checkpoint, _ = Checkpoints(tmp_path / "checkpoints").newest()
    assert make_trainer(recipe, store, tmp_path, checkpoint, progress=False).step == checkpoint.step
    monkeypatch.setitem(teacher.ANSWER, "dlib", lambda *asked: answer(*asked)[::-1])
    other = recipe.model_copy(update={"cache": str(tmp_path / "two")})
    with pytest.raises(InputError, match="not those that the run was trained on"):
        make_trainer(other, store, tmp_path, checkpoint, progress=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": None}, "set teacher to dlib"),
        ({"loss": "triplet"}, "no other loss"),
        ({"embedding_dim": 64}, "set embedding_dim to 128"),
        ({"blends": 1, "images_per_identity": 2}, "set images_per_identity to 1"),
        ({"blends": 1, "loss": "arcface", "teacher": None}, "only loss distill learns"),
        ({"align": "five-point"}, "set face_choice to central"),
        ({}, "facerec\\[teacher\\]"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes, said, tmp_path, monkeypatch):
    monkeypatch.setattr(dlib_teacher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=said):
        check_teacher(settings(tmp_path, **changes))


def test_a_picture_that_has_changed_is_told(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="has changed"):
        dlib_answer("0" * 64, tmp_path / "one.png")
    with pytest.raises(InputError, match=r"two\.png: no such file"):
        dlib_answer("0" * 64, tmp_path / "two.png")


def test_model_and_its_descendants_name_the_teacher(store, tmp_path):
    recipe = settings(tmp_path)
    made_from = provenance(store, recipe, teacher=TEACHERS["dlib"].about)
    later = provenance(store, recipe, made_from)
    for each in (made_from, later):
        card = model_card(recipe, {}, each)
        met = leak(each, Pictures(["a.png"], ["Stranger"], ["0" * 64], np.array([0])), None)
        assert str(met).endswith("whether its teacher dlib has cannot be checked")
        assert "blends" not in card.split("## Recipe")[0]
        assert "CC0" in card and "nobody can check" in card and "without outside" in card
    assert "teacher**" not in model_card(recipe, {}, provenance(store, recipe))
    of_blends = provenance(store, recipe, teacher=TEACHERS["dlib"].about | {"blends": "2"})
    later = provenance(store, recipe, of_blends, teacher=TEACHERS["dlib"].about)
    for each in (of_blends, later):
        words = "pictures, and for 2 times as many blends of two of them ("
        assert words in model_card(recipe, {}, each)


def test_dlib_knows_people(lfw, tmp_path):
    try:
        teacher.dlib_files()
    except InputError as error:
        pytest.skip(str(error))
    folder = lfw / "lfw-deepfunneled" / "lfw-deepfunneled"
    names = (
        "Abdullah_Gul/Abdullah_Gul_0001",
        "Abdullah_Gul/Abdullah_Gul_0002",
        "Adam_Scott/Adam_Scott_0001",
    )
    paths = [folder / f"{name}.jpg" for name in names]
    one, same, other = (
        dlib_answer(hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in paths
    )
    assert np.linalg.norm(one - same) < 0.6 < np.linalg.norm(one - other)
    asked = [(hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in paths]
    of_itself = dlib_blend(*asked[0], *asked[0])
    np.testing.assert_allclose(of_itself[:128], one, atol=1e-6)
    # Eyes' corners and nose where LFW has them: see FRAMES, whose points are the eyes' middles.
    points = of_itself[128:].reshape(2, 5, 2)[0] + 0.5
    eyes = points[:4].reshape(2, 2, 2).mean(1)
    np.testing.assert_allclose(np.sort(eyes[:, 0]), FRAMES["lfw"][:2, 0], atol=0.05)
    np.testing.assert_allclose(eyes[:, 1], FRAMES["lfw"][:2, 1], atol=0.05)
    of_two = dlib_blend(*asked[0], *asked[2])[:128]  # nobody: neither of them, and between them
    apart = np.linalg.norm(one - other)
    assert 0.3 < np.linalg.norm(of_two - one) < apart > np.linalg.norm(of_two - other) > 0.3

"""Protocols, reference lines and leaks, on features and lists made by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from facerec.data.names import fold_name, identity
from facerec.data.store import Store
from facerec.errors import InputError
from facerec.evaluation.baselines import FISHER, RAW, WHITENED, fit_references
from facerec.evaluation.confidence import wilson
from facerec.evaluation.lfw import lfw_view1, lfw_view2
from facerec.evaluation.overlap import leak, split_leak
from facerec.evaluation.pair_counts import all_pairs
from facerec.evaluation.protocols import Identities, Pairs, Pictures, identities, pair_list, search
from facerec.evaluation.retrieval import retrieval, unit
from facerec.evaluation.scores import Measured, differences, title
from facerec.evaluation.verification import ten_fold
from facerec.inference.provenance import DataSet, Provenance, Seen
from tests.helpers.models import encoded, picture, seen
from tests.helpers.pairs import people

PEOPLE = {"Ann": "train", "Bob": "train", "Cid": "test", "Dan": "test"}


def at(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


@pytest.fixture
def lfw_like(tmp_path) -> Store:
    """Four people with three pictures each, laid out and listed like LFW; the pictures are empty files."""
    paths, labels = [], []
    for label, name in enumerate(PEOPLE):
        (tmp_path / "lfw" / name).mkdir(parents=True)
        for shot in (1, 2, 3):
            path = f"lfw/{name}/{name}_{shot:04d}.jpg"
            (tmp_path / path).touch()
            paths.append(path)
            labels.append(label)
    rows = {"pairsDevTrain.txt": ("2", "Ann Bob"), "pairsDevTest.txt": ("2", "Cid Dan")}
    for file, (counts, names) in rows.items():
        a, b = names.split()
        lines = [f"{a}\t1\t2", f"{b}\t1\t2", f"{a}\t1\t{b}\t1", f"{a}\t2\t{b}\t2"]
        (tmp_path / file).write_text("\n".join([counts, *lines]))
    folds = [("Ann", "Bob"), ("Ann", "Cid"), ("Cid", "Dan")]
    lines = [line for a, b in folds for line in (f"{a}\t1\t2", f"{a}\t1\t{b}\t1")]
    (tmp_path / "pairs.txt").write_text("\n".join(["3\t1", *lines]))
    return Store(
        images=np.zeros((12, 8, 8, 3), np.uint8),
        labels=np.array(labels),
        names=list(PEOPLE),
        paths=paths,
        picture_hashes=[hashlib.sha256(path.encode()).hexdigest() for path in paths],
        digest="d",
        split=np.repeat(list(PEOPLE.values()), 3),
        name="lfw",
        layout="lfw",
        skipped=[],
        root=tmp_path,
        folder=tmp_path,
    )


def every(protocol) -> np.ndarray:
    return np.ones(len(protocol.pictures.paths), bool)


def test_people_are_measured_as_by_hand():
    embeddings, labels = people(40, 4)
    protocol = Identities(Pictures([""] * 160, (), [""] * 160, np.arange(160)), labels, "people")
    found = protocol.measure(embeddings.numpy(), every(protocol), 0.4)
    ranked, curve = retrieval(embeddings, labels).figures(), all_pairs(embeddings, labels)
    assert {name: found.figures[name].value for name in ranked} == ranked
    assert found.figures["auc"].value == curve.auc
    true_accepts, false_accepts = curve.counts(0.4)
    balanced = (true_accepts / curve.genuine + 1 - false_accepts / curve.impostor) / 2
    assert found.figures["verification_accuracy"].value == pytest.approx(balanced)
    assert found.figures["tar_at_far_1e-2"].value == curve.tar_at_far(1e-2).tar
    assert str(found.figures["tar_at_far_1e-4"]) == "not measurable: 12,480 impostor pairs"
    for figure in found.figures.values():
        assert not figure.measured or figure.low <= figure.value <= figure.high
    without = protocol.measure(embeddings.numpy(), every(protocol), None)
    assert str(without.figures["verification_accuracy"]) == "no threshold from validation people"


def test_differences_are_paired():
    embeddings, labels = people(40, 4)
    worse = unit(embeddings + np.random.default_rng(1).normal(0, 0.15, embeddings.shape))
    protocol = Identities(Pictures([""] * 160, (), [""] * 160, np.arange(160)), labels, "people")
    one, two = (
        protocol.measure(rows.numpy(), every(protocol), 0.4) for rows in (embeddings, worse)
    )
    same = differences(one, one)
    assert all((figure.value, figure.low, figure.high) == (0, 0, 0) for figure in same.values())
    gain = differences(one, two)
    assert set(gain) == set(one.draws)
    assert gain["map_at_r"].value == pytest.approx(
        one.figures["map_at_r"].value - two.figures["map_at_r"].value
    )
    assert gain["map_at_r"].low > 0
    width = gain["map_at_r"].high - gain["map_at_r"].low
    assert width < one.figures["map_at_r"].high - one.figures["map_at_r"].low


def test_view1_by_hand(lfw_like):
    protocol = lfw_view1(lfw_like)
    # Listed pictures and all of the test people's: Ann 1 2, Bob 1 2, Cid 1 2 3, Dan 1 2 3.
    assert [Path(p).stem for p in protocol.pictures.paths][:5] == [
        "Ann_0001", "Ann_0002", "Bob_0001", "Bob_0002", "Cid_0001",
    ]  # fmt: skip
    assert protocol.labels.tolist() == [-1] * 4 + [2] * 3 + [3] * 3
    assert [protocol.pictures.names[i] for i in protocol.pictures.probes] == ["Cid"] * 3 + [
        "Dan"
    ] * 3
    # Cid at 0° 40° 5°, Dan at 90° 60° 85°. DevTest pairs: Cid 1-2 40° apart, Dan 1-2 30°; Cid-Dan 90° and 20°.
    # DevTrain pairs: Ann 1-2 10° apart, Bob 1-2 50°; Ann-Bob 70° and 80°: 50° is the lowest right threshold.
    features = at(0, 10, 70, 120, 0, 40, 5, 90, 60, 85)
    found = protocol.measure(features, every(protocol), np.cos(np.deg2rad(35))).figures
    # At 35°: 40° refused, 30° accepted, 90° refused, 20° accepted: two of four are right.
    assert found["verification_accuracy"] == wilson(2, 4)
    # At DevTrain's 50°: 40° and 30° accepted, 90° refused, 20° accepted: three of four.
    assert found["devtrain_threshold_accuracy"].value == 0.75
    # Genuine 40° and 30° against impostor 90° and 20°: both beat 90°, neither 20°.
    assert found["pairs_auc"].value == 0.5
    assert str(found["pairs_tar_at_far_1e-1"]) == "not measurable: 2 impostor pairs"
    # 40° and 60° are each other's nearest and of two people; 0°, 5°, 85° and 90° find their own.
    assert found["recall_at_1"].value == pytest.approx(4 / 6)


def test_view2_by_hand(lfw_like):
    protocol = lfw_view2(lfw_like)
    names = [Path(path).stem for path in protocol.pictures.paths]
    assert names == ["Ann_0001", "Ann_0002", "Bob_0001", "Cid_0001", "Cid_0002", "Dan_0001"]
    assert protocol.fold.tolist() == [0, 0, 1, 1, 2, 2]
    assert protocol.devtest.tolist() == [False] * 4 + [True] * 2
    features = at(0, 20, 90, 60, 130, 140)
    found = protocol.measure(features, every(protocol), None).figures
    # Ann 1-2 20°, Ann-Bob 90°; Ann 1-2 again, Ann-Cid 60°; Cid 1-2 70°, Cid-Dan 80°.
    angles, same = np.array([20, 90, 20, 60, 70, 80]), np.array([True, False] * 3)
    folds = ten_fold(np.cos(np.deg2rad(angles)), same, protocol.fold)
    assert found["verification_accuracy"].value == folds.mean
    assert found["verification_accuracy"].note == f"standard error {folds.standard_error:.4f}"
    # Fold 2 is decided at 20°, the threshold of the others: 70° refused, 80° refused.
    assert found["devtest_accuracy"].value == 0.5
    assert found["devtest_accuracy"].note == "2 pairs"


def test_unusable_pictures_take_their_pairs_along():
    pairs = Pairs(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([True, False, False]))
    features = np.array([[1, 0], [np.nan, np.nan], [0, 1]])
    similarity, kept = pairs.similarity(features, np.array([True, False, True]))
    assert similarity.tolist() == [0] and kept.tolist() == [False, True, False]


def test_only_lfw_has_views(lfw_like):
    for change in ({"layout": "folders"}, {"root": lfw_like.root / "Ann"}):
        other = Store(**{**lfw_like.__dict__, **change})
        with pytest.raises(InputError):
            lfw_view1(other)
    with pytest.raises(InputError, match="split=val: lfw has too few people"):
        identities(lfw_like, "val")


def test_pairs_of_a_csv(tmp_path):
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encoded(picture(seed)))
    file = tmp_path / "pairs.csv"
    file.write_text("a,b,same\n0.png,1.png,1\n0.png,2.png,0\n1.png,2.png,no\n")
    protocol = pair_list(file)
    assert [Path(path).name for path in protocol.pictures.paths] == ["0.png", "1.png", "2.png"]
    assert protocol.pictures.hashes[0] == hashlib.sha256(encoded(picture(0))).hexdigest()
    found = protocol.measure(at(0, 10, 80), every(protocol), 0.9).figures
    assert found["verification_accuracy"] == wilson(3, 3)
    assert found["auc"].value == 1
    file.write_text("0.png,1.png,1\n")
    with pytest.raises(InputError, match="one kind only"):
        pair_list(file)


def test_search_leaves_out_what_the_gallery_holds(tmp_path):
    for name, seed in {
        "known/ann/1": 0,
        "known/bob": 1,
        "probes/ann/1": 2,
        "probes/ann/2": 0,
    }.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(seed)))
    protocol = search(tmp_path / "known", tmp_path / "probes")
    assert protocol.labels.tolist() == [
        "ann",
        "bob",
        "ann",
    ]  # the second probe is Ann's own picture
    assert protocol.known.tolist() == [True, True, False]
    assert protocol.notes[-1].startswith("1 of the probes are images of the gallery, by content")
    found = protocol.measure(at(0, 90, 50), every(protocol), None).figures
    assert (found["rate_at_rank_1"].value, found["rate_at_rank_5"].value) == (0, 1)
    assert str(found["tpir_at_fpir_1e-1"]) == "not measurable: 1 unmated searches"
    with pytest.raises(InputError, match="pictures are due in both"):
        search(tmp_path / "known", tmp_path / "known")


def test_titles():
    assert title("map_at_r") == "MAP@R"
    assert title("tar_at_far_1e-3") == "TAR at FAR 1e-3"
    assert title("pairs_tar_at_far_1e-1") == "TAR at FAR 1e-1, listed pairs"
    assert title("tpir_at_fpir_1e-2") == "TPIR at FPIR 1e-2"


def test_figures_keep_the_order_of_the_table():
    found = Measured()
    found.add("a", 1.0, np.ones(3))
    found.add("b", 1.0, np.ones(3))
    found.add("a", 2.0, np.ones(3))
    assert list(found.figures) == ["a", "b"]


@pytest.mark.parametrize(("one", "other"), [("Dung", "Dũng"), ("सीमा", "सोमा"), ("C+", "C#")])
def test_people_whose_names_fold_alike_are_not_found_in_each_other(tmp_path, one, other):
    for name, seed in (("known", 0), ("probes", 9)):
        for place, person in enumerate((one, other) if name == "known" else (other, one)):
            path = tmp_path / name / person / "1.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(encoded(picture(seed + place)))
    protocol = search(tmp_path / "known", tmp_path / "probes")
    own, swapped = {one: 0, other: 90}, {one: 90, other: 0}
    angles = [
        (own if known else swapped)[name]
        for name, known in zip(protocol.labels, protocol.known, strict=True)
    ]
    found = protocol.measure(at(*angles), every(protocol), None).figures
    assert found["rate_at_rank_1"].value == 0 and len(np.unique(protocol.labels)) == 2


def test_probes_whose_name_is_spelt_otherwise_are_strangers_and_named(tmp_path):
    for name in ("known/Ann B", "known/Cy", "probes/ann_b", "probes/Cy"):
        path = tmp_path / name / "1.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(picture(len(name))))
    *said, note = search(tmp_path / "known", tmp_path / "probes").notes
    assert said == ["known: 2 images of 2 people", "probes: 2 images of 2 people"]
    assert ": 1 (the first, ann_b, where the gallery has Ann B). They count as strangers" in note


def seen_now(name, **more):
    """The provenance of a model that has trained on somebody."""
    names = {"name_hashes": identity(name), "similar_hashes": fold_name(name)}
    train = {k: [hashlib.sha256(f"s:{v}".encode()).hexdigest()[:32]] for k, v in names.items()}
    empty = {"name_hashes": [], "similar_hashes": [], "picture_hashes": []}
    return Provenance(salt="s", train=Seen(**{**empty, **train}), val=Seen(**empty), **more)


def test_leaks():
    pictures = Pictures(["", "", ""], ["Ann", "Ann", "Bob"], ["1", "2", "3"], np.array([0, 1]))
    none = leak(seen("Bob"), pictures, "d")
    assert not none.found  # Bob's picture is no probe
    assert str(none) == "it has met none of these 1 people and 2 pictures"
    possible = leak(seen("ann"), pictures, "d")
    assert possible.found and "trained on 1 people (possibly: by name) and 0 pictures" in str(
        possible
    )
    certain = leak(seen("ann", data=DataSet(digest="d")), pictures, "d")
    assert "trained on 1 people and 0 pictures: its figures are better" in str(certain)
    val = Seen(people_hashes=[], picture_hashes=[hashlib.sha256(b"s:2").hexdigest()])
    provenance = seen().model_copy(update={"val": val})
    assert "tuned on 0 people (possibly: by name) and 1 pictures" in str(
        leak(provenance, pictures, None)
    )
    other = seen_now("Dung", data=DataSet(digest="d"))
    probes = Pictures([""], ["Dũng"], ["9"], np.array([0]))
    assert "1 people of similar names (possibly others)" in str(leak(other, probes, None))
    assert not leak(other, probes, "d").found  # of one data set, whose names tell them apart
    unknown = leak(Provenance(), pictures, "d")
    assert unknown.found and "is open" in str(unknown)


def test_what_is_learnt_from_the_training_people_has_met_them(lfw_like):
    told = split_leak(lfw_like, np.array([0, 1, 3, 6]))
    assert (told.counts["train_people"], told.counts["train_pictures"]) == (2, 3)
    assert told.found and not split_leak(lfw_like, np.array([6, 9])).found


def test_reference_lines_know_people():
    # A person is a pattern, a picture is the pattern under one of three lights.
    random = np.random.default_rng(0)
    lights = random.normal(0, 40, (12, 48, 48, 1))
    labels = np.repeat(np.arange(60), 6)
    light = lights[random.integers(0, 12, 360)] * random.normal(size=(360, 1, 1, 1))
    faces = np.stack([picture(int(label), 48) for label in labels]) / 4 + 96 + light
    noise = random.normal(0, 20, faces.shape)
    images = np.clip(faces + noise, 0, 255).astype(np.uint8)
    known, new = labels < 40, labels >= 40
    fitted = fit_references(images[known], labels[known])
    assert list(fitted) == [RAW, WHITENED, FISHER]
    scores = {
        name: retrieval(reference.features(images[new]), labels[new]).figures()["map_at_r"]
        for name, reference in fitted.items()
    }
    assert scores[FISHER] > scores[RAW]
    assert list(fit_references(images[:3], np.arange(3))) == [RAW, WHITENED]


def test_lfw_view1_lists_as_published(lfw, tmp_path):
    from facerec.data.discovery import find_faces
    from facerec.data.splits import split_by_identity

    faces = find_faces(str(lfw), tmp_path)
    names, labels = np.unique(faces.identities, return_inverse=True)
    parts = split_by_identity(faces.identities, lfw=True)
    store = Store(
        images=np.zeros((0, 8, 8, 3), np.uint8),
        labels=labels,
        names=list(names),
        paths=list(faces.paths),
        picture_hashes=[""] * len(labels),
        digest="",
        split=np.array([parts[name] for name in faces.identities]),
        name="lfw",
        layout="lfw",
        skipped=[],
        root=faces.root,
        folder=tmp_path,
    )
    view1, view2 = lfw_view1(store), lfw_view2(store)
    assert len(view1.pictures.probes) == 3708
    assert len({view1.pictures.names[i] for i in view1.pictures.probes}) == 1711
    assert (len(view1.pairs.same), view1.pairs.same.sum()) == (1000, 500)
    assert (len(view1.train_pairs.same), view1.train_pairs.same.sum()) == (2200, 1100)
    assert (len(view2.pairs.same), view2.pairs.same.sum()) == (6000, 3000)
    assert np.bincount(view2.fold).tolist() == [600] * 10
    assert 300 < view2.devtest.sum() < 1500

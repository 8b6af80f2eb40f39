"""Splits worked out by hand; LFW's lists against their published counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from facerec.data.discovery import find_faces
from facerec.data.layouts import lfw_list
from facerec.data.names import fold_name
from facerec.data.splits import (
    lfw_pairs,
    lfw_view1_people,
    pairs_csv,
    split_by_identity,
)
from facerec.errors import InputError

MANY = [f"person {i}" for i in range(400) for _ in range(2)]


def share(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) / 2**256


def test_the_hash_decides() -> None:
    parts = split_by_identity(MANY)
    for name, part in parts.items():
        value = share(name.replace(" ", "_"))
        assert part == ("test" if value < 0.15 else "val" if value < 0.30 else "train")
    assert split_by_identity(MANY[::-1]) == parts  # no order
    less = split_by_identity(MANY[:300])
    assert all(parts[name] == part for name, part in less.items())  # no neighbours
    assert split_by_identity(["Person-1", *MANY])["Person-1"] == parts["person 1"]


def test_people_whose_names_fold_alike_are_split_apart() -> None:
    names = [f"{first}{i}" for i in range(400) for first in ("सीमा", "सोमा")]
    parts = split_by_identity(names * 2)
    assert Counter(parts.values())["test"] == pytest.approx(0.15 * 800, abs=40)
    assert any(parts[f"सीमा{i}"] != parts[f"सोमा{i}"] for i in range(400))
    # Of six people with one picture each nobody has two, though "Dung" and "Dũng" fold alike.
    alone = ["Dung", "Dũng", "C+", "C#", "たいき", "だいき"]
    assert set(split_by_identity(alone).values()) <= {"train"}
    for k in range(100):  # somebody spelt in two ways is on one side, also in the smallest sets
        few = [f"{name} {k}" for name in ("Ann", "Bea", "Cy", "Di", "Ed", "Flo", "ann")]
        parts = split_by_identity(few * 2)
        assert parts[few[0]] == parts[few[-1]] and Counter(parts.values())["val"] >= 2
    before = split_by_identity(names * 2, version=1)
    assert all(before[f"सीमा{i}"] == before[f"सोमा{i}"] for i in range(400))


@pytest.mark.parametrize(
    ("people", "train", "val", "test"),
    [(2, 2, 0, 0), (3, 3, 0, 0), (4, 2, 2, 0), (5, 3, 2, 0), (6, 2, 2, 2), (8, 4, 2, 2)],
)
def test_few_people_are_shared_out_by_hash(
    people: int, train: int, val: int, test: int, caplog
) -> None:
    ordered = sorted((f"p{i}" for i in range(400)), key=share)
    high = ordered[-people:]  # all of them train by the plain rule
    parts = split_by_identity(high * 2)
    assert Counter(parts.values()) == Counter(train=train, val=val, test=test) - Counter()
    assert [parts[name] for name in high] == ["test"] * test + ["val"] * val + ["train"] * train
    assert ("were moved to another part" in caplog.text) == (val > 0)
    low = ordered[:people]  # all of them test
    kept = Counter(split_by_identity(low * 2).values())["train"]
    assert kept == (people if people < 4 else 2)


def test_people_with_one_picture_stay_where_the_hash_puts_them() -> None:
    ordered = sorted((f"p{i}" for i in range(40)), key=share)
    parts = split_by_identity([*ordered[-8:], *ordered])
    assert parts[ordered[0]] == "test" and Counter(parts[n] for n in ordered[-8:]) == {
        "test": 2,
        "val": 2,
        "train": 4,
    }


def test_lfw_follows_its_lists() -> None:
    train, test = lfw_list("train"), lfw_list("test")
    assert (len(train), len(test), len(set(train) & set(test))) == (4038, 1711, 0)
    parts = split_by_identity([*train, *test] * 2, lfw=True)
    assert Counter(parts.values()) == {"train": 4038 - 606, "val": 606, "test": 1711}
    assert {name for name, part in parts.items() if part == "test"} == set(test)
    bound = max(share(fold_name(name)) for name in train if parts[name] == "val")
    assert all(share(fold_name(name)) > bound for name in train if parts[name] == "train")


def test_lfw_views(lfw: Path) -> None:
    view1 = lfw_view1_people(lfw)
    assert {part: sorted(names) for part, names in view1.items()} == {
        part: sorted(lfw_list(part)) for part in ("train", "test")
    }
    faces = find_faces(str(lfw))
    assert len(faces.paths) == 13_233 and len(set(faces.identities)) == 5_749
    known = set(faces.paths)
    for which, count, folds in (("devtrain", 2200, 1), ("devtest", 1000, 1), ("view2", 6000, 10)):
        pairs = lfw_pairs(faces.root, which)
        assert Counter((same, fold) for _, _, same, fold in pairs) == {
            (same, fold): count // folds // 2 for same in (True, False) for fold in range(folds)
        }
        assert all(a in known and b in known for a, b, _, _ in pairs)
    assert lfw_pairs(faces.root, "view2")[0][1].endswith("Abel_Pacheco_0004.jpg")


def test_lfw_csv_and_text_agree(lfw: Path, tmp_path: Path) -> None:
    for name in ("lfw-deepfunneled", "pairs.csv"):
        (tmp_path / name).symlink_to(lfw / name)
    assert lfw_pairs(tmp_path, "view2") == lfw_pairs(lfw, "view2")
    with pytest.raises(InputError, match=r"neither pairsDevTest\.txt nor"):
        lfw_pairs(tmp_path, "devtest")
    (tmp_path / "pairs.txt").write_text(
        "\n".join((lfw / "pairs.txt").read_text().splitlines()[:5000])
    )
    with pytest.raises(InputError, match="cut short"):
        lfw_pairs(tmp_path, "view2")
    (tmp_path / "pairs.txt").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="is not LFW's list"):
        lfw_pairs(tmp_path, "view2")


def test_pairs_csv(tmp_path: Path) -> None:
    sheet = tmp_path / "pairs.csv"
    sheet.write_text("a,b,same\nx.png,y.png,1\nx.png,/abs/z.png,False\n")
    assert pairs_csv(sheet) == [
        (str(tmp_path / "x.png"), str(tmp_path / "y.png"), True, 0),
        (str(tmp_path / "x.png"), "/abs/z.png", False, 0),
    ]
    for text, complaint in (
        ("../x.png,y.png,1", "leaves"),
        ("x.png,y.png,maybe", "line 1"),
        ("", "no pairs"),
    ):
        sheet.write_text(text)
        with pytest.raises(InputError, match=complaint):
            pairs_csv(sheet)

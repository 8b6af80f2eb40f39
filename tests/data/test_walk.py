"""One walk of folders: what is found, what is left out and said."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.data.walk import walk
from facerec.errors import InputError
from tests.helpers.image_files import save
from tests.helpers.random_folders import check


@settings(max_examples=150, deadline=None)
@given(chance=st.randoms(use_true_random=False))
def test_who_was_put_into_a_folder_is_found_in_it(chance: random.Random) -> None:
    with tempfile.TemporaryDirectory(prefix="facerec-") as folder:
        try:
            check(Path(folder), chance)
        except InputError as error:
            assert "\n" not in str(error)


def test_what_systems_leave_behind_is_left_out_and_said(tmp_path: Path) -> None:
    for name in ("ann/1.png", "ann/.ipynb_checkpoints/1.png", "@eaDir/ann/1.png", ".git/x.png"):
        save(tmp_path / name, 1)
    save(tmp_path / "__MACOSX/ann/1.png", 1).rename(tmp_path / "__MACOSX/ann/._1.png")
    save(tmp_path / "ann/.2.png", 1)
    found = walk(tmp_path)
    assert found.images == (tmp_path / "ann/1.png",)
    assert [str(path.relative_to(tmp_path)) for path in found.hidden] == [
        *(".git/x.png", "@eaDir/ann/1.png", "ann/.2.png", "ann/.ipynb_checkpoints/1.png"),
    ]
    assert found.left_out[0].startswith("4 hidden images left out (the first,")


def test_links_are_followed_once_and_after_the_tree_itself(tmp_path: Path) -> None:
    save(tmp_path / "root/ann/1.png", 1)
    save(tmp_path / "outside/1.png", 1)
    (tmp_path / "root/bea").symlink_to(tmp_path / "outside")
    (tmp_path / "root/aaa").symlink_to(tmp_path / "root/ann")
    (tmp_path / "root/circle").symlink_to(tmp_path / "root")
    (tmp_path / "root/gone").symlink_to(tmp_path / "nowhere")
    found = walk(tmp_path / "root")
    assert [str(path.relative_to(tmp_path / "root")) for path in found.images] == [
        "ann/1.png",
        "bea/1.png",
    ]
    assert found.again == (
        (tmp_path / "root/aaa", tmp_path / "root/ann"),
        (tmp_path / "root/circle", tmp_path / "root"),
    )
    assert found.dead == (tmp_path / "root/gone",)
    assert found.left_out[0].startswith("1 link to nowhere left out (the first,")


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch) -> None:
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("facerec.data.walk.os.scandir", refuse)
    with pytest.raises(InputError, match="cannot be listed: Permission denied; make it readable"):
        walk(tmp_path)

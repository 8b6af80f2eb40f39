"""The store: decoded once, found by content, changed or damaged files told."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.data import store as module
from facerec.data.decoding import decode, to_face
from facerec.data.settings import DataSettings
from facerec.data.store import Store, open_store
from facerec.errors import InputError
from facerec.runtime import files
from facerec.runtime.files import locked, publish_folder
from tests.helpers.image_files import people, save


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return people(tmp_path / "faces", "Ann Bob Cy Di Ed Flo Gus", 3)


def settings(faces: Path, **options) -> DataSettings:
    options = {"image_size": 16, "cache": str(faces.parent / "cache"), **options}
    return DataSettings(data=str(faces), **options)


def opened(faces: Path, **options) -> Store:
    return open_store(settings(faces, **options), progress=False)


def test_round_trip(faces: Path) -> None:
    got = opened(faces, crop=0.5)
    assert got.images.shape == (21, 16, 16, 3) and got.images.dtype == np.uint8
    assert not got.images.flags.writeable and isinstance(got.images, np.memmap)
    assert (
        got.names == ["Ann", "Bob", "Cy", "Di", "Ed", "Flo", "Gus"] and got.labels.dtype == np.int64
    )
    for i, path in enumerate(got.paths):
        data = (faces / path).read_bytes()
        assert (got.images[i] == to_face(decode(data), 16, 0.5)).all()
        assert got.names[got.labels[i]] == Path(path).parent.name
        assert got.picture_hashes[i] == hashlib.sha256(data).hexdigest()
    parts = [got.indices(part) for part in ("train", "val", "test")]
    assert sorted(np.concatenate(parts)) == list(range(21)) == list(got.indices("all"))
    assert (got.name, got.layout, got.root, got.skipped) == ("faces", "folders", faces, [])
    with pytest.raises(ValueError, match="part="):
        got.indices("dev")


def test_file_names_that_are_not_utf8(faces: Path, capsys) -> None:
    Path(os.fsdecode(os.fsencode(faces / "Ann") + b"/\xe9.jpg")).write_bytes(b"damaged")
    (faces / "Bob").rename(os.fsdecode(os.fsencode(faces) + b"/\xe9\xe8"))
    got = open_store(settings(faces))
    assert r"\xe9\xe8" in got.names and len(got.paths) == 21
    assert all((got.root / path).is_file() for path in got.paths)
    assert r"Ann/\xe9.jpg" in (got.folder / "skipped.txt").read_text("utf-8")
    assert r"the first, Ann/\xe9.jpg: not a picture" in capsys.readouterr().err


def test_how_a_data_set_was_read_is_said(faces: Path, capsys) -> None:
    open_store(settings(faces))
    assert "faces: a folder per person, 21 images of 7 people\n" in capsys.readouterr().err
    opened(faces)
    assert capsys.readouterr().err == ""


def test_a_store_of_before_is_split_as_before(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    people(root, " ".join(f"{first}{k}" for k in range(12) for first in ("Dung", "Dũng")), 2)
    new = opened(root)
    index = json.loads((new.folder / "index.json").read_text("utf-8"))
    assert index.pop("split_version") == 2
    (new.folder / "index.json").write_text(json.dumps(index))
    old = opened(root)
    apart = [
        new.split[new.paths.index(p.replace("ũ", "u"))] != s
        for p, s in zip(new.paths, new.split, strict=True)
    ]
    assert old.split_version == 1 and any(apart)
    for i, path in enumerate(old.paths):  # people of one folded name were one
        assert old.split[i] == old.split[old.paths.index(path.replace("ũ", "u"))]
    assert (old.split_as(2).split == new.split).all() and (new.split_as(1).split == old.split).all()


def test_a_second_start_reads_no_picture(faces: Path, monkeypatch) -> None:
    first = opened(faces)

    def refuse(*_):
        raise AssertionError("a picture was read")

    for name in ("decode", "read_file", "face"):
        monkeypatch.setattr(module, name, refuse)
    second = opened(faces)
    assert (second.images == first.images).all() and second.digest == first.digest


def test_stores_are_found_by_content(faces: Path, tmp_path: Path) -> None:
    first = opened(faces)
    copy = Path(shutil.copytree(faces, tmp_path / "elsewhere"))
    assert opened(copy).folder == first.folder and opened(copy).root == copy
    assert opened(faces, image_size=17).folder != first.folder != opened(faces, crop=0.9).folder
    moved = tmp_path / "deeper"
    shutil.copytree(faces, moved / "train")
    assert opened(moved).digest == first.digest


def test_changed_files_are_refused_until_they_are_accepted(faces: Path, monkeypatch) -> None:
    before = opened(faces)
    save(faces / "Ann/0.png", 999)
    save(faces / "Hal/0.png", 5)
    (faces / "Gus/2.png").unlink()
    with pytest.raises(
        InputError, match="1 files added, 1 removed, 1 altered; pass --rebuild-store true"
    ):
        opened(faces)
    read: list[Path] = []
    real = module.read_file
    monkeypatch.setattr(module, "read_file", lambda path: read.append(path) or real(path))
    after = opened(faces, rebuild_store=True)
    assert {p.relative_to(faces).as_posix() for p in read} == {"Ann/0.png", "Hal/0.png"}
    assert after.folder != before.folder and "Hal" in after.names and len(after.paths) == 21
    assert (opened(faces).images == after.images).all()


def test_a_new_date_alone_is_no_change(faces: Path) -> None:
    first = opened(faces)
    os.utime(faces / "Ann/0.png")
    assert opened(faces).folder == first.folder


def test_a_damaged_store_is_told_and_mended(faces: Path) -> None:
    folder = opened(faces).folder
    pixels = folder / module.PIXELS
    os.truncate(pixels, pixels.stat().st_size - 1)
    with pytest.raises(InputError, match=r"damaged.*--rebuild-store true"):
        opened(faces)
    assert len(opened(faces, rebuild_store=True).images) == 21
    (folder / module.INDEX).write_text("{")
    with pytest.raises(InputError, match="damaged"):
        opened(faces)


def test_an_altered_store_is_told_while_it_is_open_and_afterwards(faces: Path) -> None:
    store = opened(faces)
    store.check_unaltered()
    pixels = store.folder / module.PIXELS
    whole = pixels.read_bytes()
    pixels.write_bytes(bytes(100) + whole[100:])
    with pytest.raises(InputError, match="was altered while it was in use"):
        store.check_unaltered()
    with pytest.raises(InputError, match="damaged"):
        opened(faces)
    pixels.write_bytes(whole)  # as a copy of the cache: another time, the same pictures
    other = opened(faces)
    shutil.rmtree(store.folder)
    other.check_unaltered()
    assert other.images.tobytes() == whole


def test_bad_pictures_are_skipped_counted_and_named(faces: Path, capsys) -> None:
    (faces / "Ann/bad.jpg").write_text("no picture")
    frames = [Image.new("RGB", (20, 20), (i, 0, 0)) for i in range(3)]
    frames[0].save(faces / "Bob/moving.gif", save_all=True, append_images=frames[1:])
    (faces / "Cy/gone.png").symlink_to("nowhere.png")
    for _ in range(2):
        got = opened(faces)
        assert [path for path, _ in got.skipped] == ["Ann/bad.jpg", "Bob/moving.gif", "Cy/gone.png"]
        assert "animated" in got.skipped[1][1] and len(got.images) == len(got.paths) == 21
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and "Skipped 3 of 24 pictures" in lines[0]
        assert (got.folder / "skipped.txt").read_text().count("\n") == 3
        assert str(got.folder / "skipped.txt") in lines[0]


def test_too_few_people_are_refused_and_leave_no_trace(tmp_path: Path) -> None:
    faces = people(tmp_path / "faces", "Ann", 3)
    save(faces / "Bob/0.png", 7)
    (faces / "Bob/1.png").write_bytes(b"not one")
    with pytest.raises(
        InputError, match=r"1 people with two usable pictures \(1 skipped, the first, Bob/1.png"
    ):
        opened(faces)
    save(faces / "Bob/1.png", 8)
    assert Counter(opened(faces).split) == {
        "train": 5
    }  # nothing to accept: no store was built before


def test_the_cache_folder_that_cannot_be_used(faces: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(InputError, match=r"cannot be written.*--cache"):
            opened(faces, cache=str(cache))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="is full"):
        patch.setattr(module.os, "fsync", full)
        opened(faces)
    assert not list((tmp_path / "cache/stores").iterdir())
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"The store needs 6[0-9] MiB"):
        opened(faces)


def _build(faces: Path, gate, queue) -> None:
    gate.wait()
    try:
        got = opened(faces)
        queue.put((got.digest, int(got.images.sum())))
    except BaseException as error:
        queue.put(repr(error))


def test_builders_at_the_same_time_all_succeed(faces: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, queue = context.Barrier(4), context.Queue()
    builders = [context.Process(target=_build, args=(faces, gate, queue)) for _ in range(4)]
    for builder in builders:
        builder.start()
    results = {queue.get(timeout=60) for _ in builders}
    for builder in builders:
        builder.join()
    assert len(results) == 1 and isinstance(next(iter(results)), tuple), results
    cache = faces.parent / "cache"
    assert len(list((cache / "stores").iterdir())) == len(list((cache / "memos").iterdir())) == 1


def _killed_while_writing(folder: Path) -> None:
    with publish_folder(folder) as draft:
        (draft / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_drafts_of_the_killed_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "slow") as living:
        (living / "half").write_text("half")
        killed = multiprocessing.get_context("fork").Process(
            target=_killed_while_writing, args=(tmp_path / "killed",)
        )
        killed.start()
        killed.join(60)
        assert len(list(tmp_path.iterdir())) == 2
        (tmp_path / ".facerec-notes").mkdir()  # somebody's own
        with publish_folder(tmp_path / "quick"):
            pass
        left = {living.name, "quick", ".facerec-notes"}
        assert {p.name for p in tmp_path.iterdir()} == left
    assert (tmp_path / "slow" / "half").read_text() == "half"


def test_drafts_of_other_hosts_stay_also_where_their_locks_are_not_seen(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    left = []
    for host in ("a", "b"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        with publish_folder(tmp_path / "link" / host) as draft:
            left.append(draft.name)
        (tmp_path / "real" / draft.name).mkdir()  # as if it was still being written, without a lock
    with publish_folder(tmp_path / "link" / "c"):
        pass
    assert {p.name for p in (tmp_path / "real").iterdir()} == {"a", "b", "c", left[0]}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_neither_held_nor_taken(tmp_path, monkeypatch, number):
    def flock(handle, how):
        raise OSError(number, "no locks")

    with locked(tmp_path) as first, locked(tmp_path) as second:
        assert (first, second) == ("held", "taken")
    monkeypatch.setattr(files.fcntl, "flock", flock)
    for wait in (True, False):
        with locked(tmp_path, wait) as state:
            assert state == "unknown"


def test_settings_are_checked_and_described() -> None:
    for bad in (
        {"image_size": 15},
        {"image_size": 513},
        {"crop": 0.05},
        {"crop": 1.1},
        {"colour": 1},
    ):
        with pytest.raises(ValueError):
            DataSettings(**bad)
    assert all(field.description for field in DataSettings.model_fields.values())

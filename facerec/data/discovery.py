"""A path or a name to a list of faces: which file shows whom.

`demo`; `lfw` by name; a folder, as layouts.py reads it; a tar archive of one; a CSV of path and identity. Nothing is
decoded here: a listing costs a directory walk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from facerec.data import archives
from facerec.data.csv_list import FOUND, Columns, faces_in_csv
from facerec.data.layouts import counts, layout_of
from facerec.data.names import case_notes
from facerec.data.settings import existing
from facerec.data.walk import Walk, walk
from facerec.errors import InputError
from facerec.runtime.paths import expanded
from facerec.runtime.text import as_utf8, shown

LFW_ARCHIVES = ("lfw-funneled.tgz", "lfw-deepfunneled.tgz", "lfw.tgz")
LFW_LISTS = (
    *("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt", "people.txt"),
    *("peopleDevTrain.txt", "peopleDevTest.txt", "pairs.csv", "people.csv"),
    *("matchpairsDevTrain.csv", "mismatchpairsDevTrain.csv", "peopleDevTrain.csv"),
    *("matchpairsDevTest.csv", "mismatchpairsDevTest.csv", "peopleDevTest.csv"),
)
CSV_SUFFIXES = (".csv", ".tsv")
ARCHIVE_SUFFIXES = (".tgz", ".tar.gz", ".tar")


@dataclass(frozen=True)
class FaceList:
    """Files of a data set and who is on each.

    Attributes:
        name: what to call the data set: `demo`, `lfw`, or the name of its folder or file.
        root: the folder that relative paths start from; LFW's lists are found from here too.
        layout: `demo`, `lfw`, `kaggle-faces`, `csv` or `folders`.
        paths: one per image, with forward slashes, relative to `root` (a CSV may hold absolute ones),
            sorted, none twice.
        identities: the person on each, as `names.identity` has it.
        notes: how the data set was read, what was left out, and names to look at, in sentences.
    """

    name: str
    root: Path
    layout: str
    paths: tuple[str, ...]
    identities: tuple[str, ...]
    notes: tuple[str, ...] = ()


def cache_folder(cache: str | os.PathLike | None = None) -> Path:
    """Folder for what can be made again: `cache`, else $FACEREC_CACHE, else the user's cache folder."""
    chosen = (
        cache or os.environ.get("FACEREC_CACHE") or platformdirs.user_cache_dir("facerec", False)
    )
    return expanded(chosen).absolute()


def find_faces(
    data: str,
    cache: str | os.PathLike | None = None,
    layout: str = "auto",
    columns: Columns = FOUND,
) -> FaceList:
    """List the faces of a data set.

    Args:
        data: `demo`, `lfw` (downloaded through scikit-learn), or the path of a folder, a CSV or an LFW
            archive. A folder that happens to be called demo or lfw is written `./demo`.
        cache: where demo faces and unpacked archives are kept; see `cache_folder`.
        layout: of a folder or archive, as `LayoutSettings.layout`.
        columns: of a CSV.

    Raises:
        InputError: nothing there, nothing usable in it, or who is who is in doubt.
    """
    is_csv = Path(data).suffix.lower() in CSV_SUFFIXES
    if any(columns) and not is_csv:
        raise InputError(f"data={data} is no CSV: leave out --path-column and --label-column")
    if layout != "auto" and (is_csv or data in ("demo", "lfw")):
        raise InputError(f"data={data} is no folder: leave out --layout")
    if data == "demo":
        from facerec.data.demo.render import demo_faces

        faces = _from_folder(demo_faces(cache_folder(cache)), "folders")
        return replace(faces, name="demo", layout="demo")
    if data == "lfw":
        return _from_folder(archives.fetch_lfw(), "lfw")
    path = existing(data)
    if path.is_dir():
        return _from_folder(path, layout, cache)
    if is_csv:
        listed, note = faces_in_csv(path, columns)
        people = counts(name for _, name in listed)
        return _face_list(path.stem, path.parent, "csv", listed, (f"{note}, {people}",))
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return _from_archive(path, cache, layout)
    raise InputError(
        f"data={data} is a file: give a folder with one folder per person, a CSV of path and identity, "
        "or lfw-funneled.tgz."
    )


def _from_folder(root: Path, layout: str, cache: str | os.PathLike | None = None) -> FaceList:
    found = walk(root)
    archive = next((root / name for name in LFW_ARCHIVES if (root / name).is_file()), None)
    if archive and not found.images:
        return _from_archive(archive, cache, layout)
    faces = _from_walk(root, root.name, found, layout)
    if archive and faces.layout != "lfw" and layout == "auto":
        raise InputError(
            f"{root} holds {len(found.images):,} images and the archive {archive.name}: --data {shown(archive)} takes "
            "the archive, --layout folders takes every folder as a person"
        )
    return faces


def _from_archive(path: Path, cache: str | os.PathLike | None, layout: str) -> FaceList:
    folder = archives.unpack(path, cache_folder(cache), LFW_LISTS)
    return _from_walk(folder, path.name.partition(".")[0], walk(folder), layout)


def _from_walk(root: Path, name: str, found: Walk, layout: str) -> FaceList:
    read = layout_of(root, found.images, layout)
    name = "lfw" if read.name == "lfw" else name
    return _face_list(name, root, read.name, read.faces, (read.note, *found.left_out))


def _face_list(
    name: str,
    root: Path,
    layout: str,
    found: Sequence[tuple[Path, str]],
    notes: tuple[str, ...],
) -> FaceList:
    if not found:
        left_out = "".join(f"; {note}" for note in notes[1:])
        raise InputError(f"{root} holds no images: put each person's in one folder{left_out}")
    rows = sorted(
        (p.relative_to(root).as_posix() if p.is_relative_to(root) else p.as_posix(), identity)
        for p, identity in found
    )
    paths, identities = zip(*rows, strict=True)
    name = as_utf8(name)
    notes = (*notes, *case_notes(identities))
    return FaceList(name, root, layout, paths, identities, tuple(f"{name}: {n}" for n in notes))

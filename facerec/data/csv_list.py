"""A CSV of images and people: which columns hold them, and its rows."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from facerec.data.decoding import SUFFIXES
from facerec.data.names import identity
from facerec.errors import InputError
from facerec.runtime.text import shown

# Words of a column's name: `person_id`, `Image Path`. A word of the last kind counts where none of the others is.
PATHS = frozenset(
    ("path", "file", "filename", "filepath", "image", "img", "picture", "pic", "photo")
)
LABELS = frozenset(
    ("identity", "label", "person", "people", "subject", "class", "celebrity", "who", "identities")
)
NAMES = frozenset(("name", "id"))
Row = tuple[int, list[str]]  # line number, cells


class Columns(NamedTuple):
    """Columns that the user names; None leaves one to be found."""

    path: str | None = None
    label: str | None = None


FOUND = Columns()


def faces_in_csv(path: Path, columns: Columns = FOUND) -> tuple[list[tuple[Path, str]], str]:
    """(image file, person) of each row of a CSV, and what was taken from which column, in a sentence.

    Raises:
        InputError: it is no such CSV, a path in it leaves its folder, or which columns are meant is in doubt.
    """
    rows = read_csv(path)
    if not rows:
        raise InputError(f"{path} is empty: it needs lines of path,identity")
    path_at, label_at, note, rows = _columns(path, rows, columns)
    found: dict[Path, str] = {}
    for line, cells in rows:
        if len(cells) <= max(path_at, label_at) or not cells[label_at].strip():
            raise InputError(
                f"{path}, line {line}: expected a path and an identity, not {','.join(cells)[:80]!r}"
            )
        image = inside(path.parent, cells[path_at].strip(), f"{path}, line {line}")
        person = identity(cells[label_at].strip())
        if found.setdefault(image, person) != person:
            raise InputError(
                f"{path}, line {line}: {image} is given to {person} and {found[image]}"
            )
    if not found:
        raise InputError(f"{path} lists no images: it needs lines of path,identity")
    return list(found.items()), note


def _columns(path: Path, rows: Sequence[Row], asked: Columns) -> tuple[int, int, str, list[Row]]:
    """Places of image and person, a sentence on it, and the rows below the heading.

    Raises:
        InputError: which columns are meant is in doubt.
    """
    heading = [cell.strip() for cell in rows[0][1]]
    kinds = [_kind(cell) for cell in heading]
    if not any(asked) and _is_path(path.parent, heading[0]):
        if len(heading) != 2:
            raise InputError(
                f"{path} has no heading, and {len(heading)} in its first line instead of path,identity: give it "
                "one"
            )
        return 0, 1, "the image in column 1, the person in column 2 (no heading)", list(rows)
    if not any(asked) and not any(kinds):
        raise InputError(
            f"{path}: its first line ({', '.join(heading)[:80]}) is neither a heading with a path and an identity, nor "
            "an image and a person: say --path-column and --label-column"
        )
    place: dict[str, int] = {}
    for kind, named in zip(("path", "label"), asked, strict=True):
        place[kind] = _column(path, heading, kinds, named, kind, taken=place.get("path"))
    title = {kind: heading[at] or f"number {at + 1}" for kind, at in place.items()}
    note = f"the image in column {title['path']}, the person in column {title['label']}"
    return place["path"], place["label"], note, list(rows[1:])


def _kind(cell: str) -> str:
    """What a column may hold by its name: `path`, `label`, `id` where it is only that, or nothing."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", cell)}
    if words & LABELS and not words & PATHS:
        return "label"
    if words & PATHS:
        return "path"
    return "id" if words == {"id"} else "label" if words & NAMES else ""


def _column(
    path: Path,
    heading: Sequence[str],
    kinds: Sequence[str],
    asked: str | None,
    kind: str,
    taken: int | None,
) -> int:
    """Place of the column asked for, or else of the one that can be meant.

    Args:
        kinds: of each column, by `_kind`; an `id` is meant where there is nothing else.
        kind: `path` or `label`, as the setting is called.
        taken: the column of paths, when one of labels is looked for.

    Raises:
        InputError: there is none, or there are several.
    """
    if asked is not None:
        found = [at for at, cell in enumerate(heading) if cell.lower() == asked.lower()]
        if len(found) != 1:
            what = f"{len(found)} columns" if found else "no column"
            there = ", ".join(filter(None, heading))
            raise InputError(f"{path}: there is {what} {asked!r}; there are {there}")
        return found[0]
    for wanted in (kind, "id"):
        found = [at for at, known in enumerate(kinds) if known == wanted and at != taken]
        if len(found) == 1:
            return found[0]
        if found:
            break
    what = "hold the path of an image" if kind == "path" else "say who is on an image"
    names = ", ".join(heading[at] for at in found)
    problem = f"{names} could each {what}" if found else f"no column is seen to {what}"
    raise InputError(f"{path}: {problem}: name it with --{kind}-column")


def _is_path(folder: Path, cell: str) -> bool:
    """Whether a cell of the first line is a path, and so that line no heading."""
    image = os.path.splitext(cell)[1].lower() in SUFFIXES
    return image or "/" in cell or "\\" in cell or os.path.isfile(folder / cell)


def read_csv(path: Path) -> list[Row]:
    """Line numbers and cells of a CSV (or TSV), empty lines left out.

    Raises:
        InputError: not there, not text, or no CSV.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{shown(path)} cannot be read as CSV text: {error}.") from None


def inside(folder: Path, path: str, where: str) -> Path:
    """`path` below `folder`, or an absolute path as it is.

    Raises:
        InputError: it is relative and leaves `folder`, or is no path; `where` says whence it came.
    """
    if not path or "\0" in path or "://" in path:
        raise InputError(f"{where}: {path!r} is no path of a picture.")
    pure = PurePosixPath(path.replace("\\", "/"))
    if ".." in pure.parts:
        raise InputError(f"{where}: the path {path} leaves its folder by `..`.")
    return folder / pure

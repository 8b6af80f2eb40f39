"""A CSV of images and people: which columns hold them, and its rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from facerec.data.names import identity
from facerec.data.pictures import SUFFIXES
from facerec.settings import InputError, shown

PATH_COLUMNS = (
    *("path", "file", "filename", "file_path", "filepath", "image", "image_path", "image_id"),
    *("picture", "photo"),
)
IDENTITY_COLUMNS = ("identity", "label", "person", "name", "class", "subject")
EITHER = "id"  # the image where there is no path, the person where there is one
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
    """Places of image and person, a sentence on it, and the rows below the heading."""
    heading = [cell.strip() for cell in rows[0][1]]
    lower = [cell.lower() for cell in heading]
    known = any(asked) or set(lower) & {*PATH_COLUMNS, EITHER}
    if not known and _is_path(path.parent, heading[0]):
        if len(heading) > 2:
            raise InputError(
                f"{path} has {len(heading)} columns and no heading: give it one, such as path,identity"
            )
        return 0, 1, "the image in column 1, the person in column 2 (no heading)", list(rows)
    image = _column(path, lower, asked.path, PATH_COLUMNS, "path")
    if image is None:
        image = lower.index(EITHER) if EITHER in lower else 0
    rest = [cell if at != image else "" for at, cell in enumerate(lower)]
    person = _column(path, rest, asked.label, (*IDENTITY_COLUMNS, EITHER), "label")
    if person is None:
        if known or len(heading) != 2:
            raise InputError(
                f"{path}: no column of {', '.join(heading)} says who is on an image: name it with --label-column"
            )
        person = 1
    note = f"the image in column {heading[image]}, the person in column {heading[person]}"
    return image, person, note, list(rows[1:])


def _column(
    path: Path, heading: Sequence[str], asked: str | None, known: Sequence[str], kind: str
) -> int | None:
    """Place of the column asked for, or else of the one that is known; None without.

    Args:
        heading: in lower case.
        kind: `path` or `label`, as the setting is called.

    Raises:
        InputError: there is none of that name, or several are known.
    """
    if asked is not None:
        if asked.lower() not in heading:
            there = ", ".join(filter(None, heading))
            raise InputError(f"{path}: there is no column {asked!r}; there are {there}")
        return heading.index(asked.lower())
    found = [at for at, cell in enumerate(heading) if cell in known]
    if len(found) > 1:
        names = ", ".join(heading[at] for at in found)
        what = "hold the path of an image" if kind == "path" else "say who is on an image"
        raise InputError(f"{path}: {names} could each {what}: name one with --{kind}-column")
    return found[0] if found else None


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

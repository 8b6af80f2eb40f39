"""A path or a name to a list of faces: which file shows whom.

Layouts: `demo`; `lfw` by name; LFW as Kaggle ships it (a `lfw-deepfunneled` tree with CSVs) and as its
authors do (`lfw-funneled.tgz`, or `lfw_funneled/` with the pairs*.txt beside it, which is scikit-learn's
cache too); Kaggle's "Face Recognition Dataset"; a CSV of path and identity; a folder per person, at any
depth. Nothing is decoded here: a listing costs a directory walk.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import platformdirs

from facerec.data import archives
from facerec.data.pictures import SUFFIXES
from facerec.settings import InputError, expanded

LFW_FOLDERS = ("lfw-deepfunneled", "lfw_funneled", "lfw-funneled", "lfw")
LFW_ARCHIVES = ("lfw-funneled.tgz", "lfw-deepfunneled.tgz", "lfw.tgz")
LFW_LISTS = (
    *("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt", "people.txt"),
    *("peopleDevTrain.txt", "peopleDevTest.txt", "pairs.csv", "people.csv"),
    *("matchpairsDevTrain.csv", "mismatchpairsDevTrain.csv", "peopleDevTrain.csv"),
    *("matchpairsDevTest.csv", "mismatchpairsDevTest.csv", "peopleDevTest.csv"),
)
ARCHIVE_SUFFIXES = (".tgz", ".tar.gz", ".tar")
PARTS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}
PATH_COLUMNS = (  # in order of preference: an `id` is the person where there is a `path`
    *("path", "file", "filename", "file_path", "filepath", "image", "image_path", "image_id"),
    *("picture", "photo", "id"),
)
IDENTITY_COLUMNS = ("identity", "label", "person", "name", "class", "subject", "id")


@dataclass(frozen=True)
class FaceList:
    """Files of a data set and who is on each.

    Attributes:
        name: what to call the data set: `demo`, `lfw`, or the name of its folder or file.
        root: the folder that relative paths start from; LFW's lists are found from here too.
        layout: `demo`, `lfw`, `kaggle-faces`, `csv` or `folders`.
        paths: one per picture, with forward slashes, relative to `root` (a CSV may hold absolute ones),
            sorted, none twice.
        identities: the person on each, as the source spells the name.
    """

    name: str
    root: Path
    layout: str
    paths: tuple[str, ...]
    identities: tuple[str, ...]


def cache_folder(cache: str | os.PathLike | None = None) -> Path:
    """Folder for what can be made again: `cache`, else $FACEREC_CACHE, else the user's cache folder."""
    chosen = (
        cache or os.environ.get("FACEREC_CACHE") or platformdirs.user_cache_dir("facerec", False)
    )
    return expanded(chosen).absolute()


def find_faces(data: str, cache: str | os.PathLike | None = None) -> FaceList:
    """List the faces of a data set.

    Args:
        data: `demo`, `lfw` (downloaded through scikit-learn), or the path of a folder, a CSV or an LFW
            archive. A folder that happens to be called demo or lfw is written `./demo`.
        cache: where demo faces and unpacked archives are kept; see `cache_folder`.

    Raises:
        InputError: nothing there, nothing usable in it, or who is who cannot be told.
    """
    if data == "demo":
        from facerec.data.demo import demo_faces

        return _from_folders(demo_faces(cache_folder(cache)), "demo", "demo")
    if data == "lfw":
        return _from_lfw(archives.fetch_lfw())
    path = _existing(data)
    if path.is_dir():
        return _from_folder(path, cache)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _from_csv(path)
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return _from_archive(path, cache)
    raise InputError(
        f"data={data} is a file: give a folder with one folder per person, a CSV of path and identity, "
        "or lfw-funneled.tgz."
    )


def lfw_pictures(root: Path) -> Path | None:
    """The folder of LFW's person folders in a download, or None if `root` is no LFW download."""
    if root.name in LFW_FOLDERS and _holds_lfw_people(root):
        return root
    for base in (root, root / "lfw_home"):
        for name in LFW_FOLDERS:
            for folder in (*(base / name / inner for inner in LFW_FOLDERS), base / name):
                if folder.is_dir() and _holds_lfw_people(folder):
                    return folder
    return None


def _holds_lfw_people(folder: Path) -> bool:
    """Whether pictures stand as Name/Name_0001.jpg, judged by the first folders."""
    for person, _ in zip(_subfolders(folder), range(20), strict=False):
        if (person / f"{person.name}_0001.jpg").is_file():
            return True
    return False


def _existing(data: str) -> Path:
    if not data.strip():
        raise InputError("data is empty: give demo, lfw, or the path of a folder, CSV or archive.")
    if "://" in data:
        raise InputError(
            f"data={data} is a URL: download it first and give the path of the folder."
        )
    path = expanded(data)
    try:
        if path.exists():
            return path.resolve()
    except (OSError, ValueError) as error:
        raise InputError(f"data={data!r} cannot be opened: {error}.") from None
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    hint = (
        ""
        if path.is_absolute()
        else "; an absolute path is safest, since mlflow run changes folder"
    )
    raise InputError(f"data={data} was not found{where}{hint}.")


def _from_folder(root: Path, cache: str | os.PathLike | None) -> FaceList:
    if lfw_pictures(root) is not None:
        return _from_lfw(root)
    if (root / "Original Images").is_dir() or (root / "Faces").is_dir():
        return _from_kaggle_faces(root)
    for archive in LFW_ARCHIVES:
        if (root / archive).is_file():
            return _from_archive(root / archive, cache)
    return _from_folders(root, root.name, "folders")


def _from_lfw(root: Path) -> FaceList:
    pictures = lfw_pictures(root)
    if pictures is None:
        raise InputError(f"{root} holds none of LFW's folders {', '.join(LFW_FOLDERS)}.")
    return _face_list("lfw", root, "lfw", [(p, p.parent.name) for p in _walk(pictures)])


def _from_kaggle_faces(root: Path) -> FaceList:
    """Kaggle's "Face Recognition Dataset": the originals, or the cut-out faces if only they are there."""
    originals = root / "Original Images"
    if originals.is_dir():
        found = [(p, p.parent.name) for p in _walk(originals)]
    else:
        found = [(p, p.stem.rpartition("_")[0]) for p in _walk(root / "Faces")]
        unnamed = [p for p, name in found if not name]
        if unnamed:
            raise InputError(
                f"{unnamed[0]} is not named <Name>_<number>.jpg, so who is on it is unclear."
            )
    return _face_list("kaggle-faces", root, "kaggle-faces", found)


def _from_archive(path: Path, cache: str | os.PathLike | None) -> FaceList:
    folder = archives.unpack(path, cache_folder(cache), LFW_LISTS)
    if lfw_pictures(folder) is not None:
        return _from_lfw(folder)
    return _from_folders(folder, path.name.partition(".")[0], "folders")


def _from_folders(root: Path, name: str, layout: str) -> FaceList:
    found = [p for p in _walk(root) if p.parent != root]
    if not found and any(True for _ in _walk(root)):
        raise InputError(
            f"{root} holds pictures but no folder per person: put each person's in one folder."
        )
    people: dict[str, PurePosixPath] = {}  # leaf name -> its folder below the parts
    for path in found:
        folder = PurePosixPath(path.parent.relative_to(root).as_posix())
        if len(folder.parts) > 1 and folder.parts[0].lower() in PARTS:
            folder = folder.relative_to(folder.parts[0])
        other = people.setdefault(folder.name, folder)
        if other != folder:
            raise InputError(
                f"{root}: the folders {other} and {folder} have one name, so it is unclear whether they show "
                "one person; rename one, or list the pictures in a CSV of path,identity."
            )
    return _face_list(name, root, layout, [(p, p.parent.name) for p in found])


def _from_csv(path: Path) -> FaceList:
    rows = read_csv(path)
    if not rows:
        raise InputError(f"{path} is empty: it needs lines of path,identity.")
    path_at, identity_at = 0, 1
    heading = [cell.strip().lower() for cell in rows[0][1]]
    named = next((name for name in PATH_COLUMNS if name in heading), None)
    if named:
        person = next((n for n in IDENTITY_COLUMNS if n in heading and n != named), None)
        if person is None:
            raise InputError(f"{path}: the heading names no column `identity` beside `{named}`.")
        path_at, identity_at, rows = heading.index(named), heading.index(person), rows[1:]
    found = {}
    for line, cells in rows:
        if len(cells) <= max(path_at, identity_at) or not cells[identity_at].strip():
            raise InputError(
                f"{path}, line {line}: path,identity is due, not {','.join(cells)[:80]!r}."
            )
        picture = inside(path.parent, cells[path_at].strip(), f"{path}, line {line}")
        identity = cells[identity_at].strip()
        if found.setdefault(picture, identity) != identity:
            raise InputError(
                f"{path}, line {line}: {picture} is given to {identity} and {found[picture]}."
            )
    if not found:
        raise InputError(f"{path} lists no pictures: lines of path,identity are due.")
    return _face_list(path.stem, path.parent, "csv", list(found.items()))


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and cells of a CSV (or TSV), empty lines left out.

    Raises:
        InputError: not there, not text, or no CSV.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV text: {error}.") from None


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


def _face_list(name: str, root: Path, layout: str, found: list[tuple[Path, str]]) -> FaceList:
    if not found:
        raise InputError(f"{root} holds no pictures: one folder of pictures per person is due.")
    rows = sorted(
        (p.relative_to(root).as_posix() if p.is_relative_to(root) else p.as_posix(), identity)
        for p, identity in found
    )
    paths, identities = zip(*rows, strict=True)
    return FaceList(name, root, layout, paths, identities)


def _subfolders(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        yield from (Path(e.path) for e in entries if e.is_dir())


def _walk(folder: Path) -> Iterator[Path]:
    """Picture files below `folder`; hidden ones and macOS's leftovers are passed by, link loops cut."""
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed: {error.strerror}.")

    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = [name for name in folders if name[0] != "." and name != "__MACOSX"]
        for name in files:
            if name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(place, name)

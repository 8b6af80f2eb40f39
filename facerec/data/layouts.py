"""Who is on each image of a folder: LFW, Kaggle's Face Recognition Dataset, or a folder per person.

A known layout is taken only where every image of the folder fits it. Where some fit and some do not, nothing is
guessed: the folder is refused, with the ways to say what is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath

from facerec.data.names import fold_name, identity
from facerec.data.walk import plural
from facerec.errors import InputError
from facerec.runtime.text import shown

LFW_FOLDERS = ("lfw-deepfunneled", "lfw_funneled", "lfw-funneled", "lfw")
LFW_FILE = re.compile(r"(.+)_\d{4}\.jpg")
ORIGINALS, CUTOUTS = "Original Images", "Faces"
PARTS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}


@dataclass(frozen=True)
class Layout:
    """How a folder is read.

    Attributes:
        name: `lfw`, `kaggle-faces` or `folders`.
        faces: (image file, the person on it).
        note: what was recognised and what is left out, in one sentence.
    """

    name: str
    faces: Sequence[tuple[Path, str]]
    note: str


def layout_of(root: Path, images: Sequence[Path], asked: str = "auto") -> Layout:
    """Read a folder.

    Args:
        images: all image files below `root`.
        asked: `auto`, or the layout to take.

    Raises:
        InputError: the layout is in doubt, or is not the one asked for.
    """
    if asked != "folders":
        for known in (_lfw, _kaggle_faces):
            layout = known(root, images, asked)
            if layout is not None:
                return layout
    return _folders(root, images, asked)


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


@cache
def lfw_list(which: str) -> tuple[str, ...]:
    """LFW's DevTrain (`train`) or DevTest (`test`) people, as the package carries them."""
    text = resources.files("facerec.data").joinpath(f"lfw_dev_{which}.txt").read_text("utf-8")
    return tuple(text.split())


@cache
def _lfw_people() -> frozenset[str]:
    return frozenset(fold_name(name) for part in ("train", "test") for name in lfw_list(part))


@cache
def _in_lfw(name: str) -> bool:
    """Whether somebody is one of LFW's 5,749 people."""
    return fold_name(name) in _lfw_people()


def _holds_lfw_people(folder: Path) -> bool:
    """Whether an image stands as Name/Name_0001.jpg."""
    people = (path for path in folder.iterdir() if path.is_dir())
    return any((person / f"{person.name}_0001.jpg").is_file() for person in people)


def _is_lfw(path: Path) -> bool:
    """Whether a file is named as LFW's are, Name/Name_0001.jpg, after one of its people."""
    name = path.parent.name
    numbered = LFW_FILE.fullmatch(path.name)
    return bool(numbered and numbered[1] == name and _in_lfw(name))


def _lfw(root: Path, images: Sequence[Path], asked: str) -> Layout | None:
    pictures = lfw_pictures(root)
    if pictures is None:
        if asked == "lfw":
            raise InputError(f"{root} holds none of LFW's folders {', '.join(LFW_FOLDERS)}")
        return None
    inside = [path for path in images if path.parent.parent == pictures]
    fits = {path for path in inside if _is_lfw(path)}
    strangers = [path for path in images if path not in fits]
    if asked != "lfw":
        if not fits or asked == "kaggle-faces":
            return None
        if strangers:
            beside = all(not path.is_relative_to(pictures) for path in strangers)
            alone = f"--data {shown(pictures)} takes that folder alone, " if beside else ""
            raise InputError(
                f"{root} holds {len(fits):,} images of LFW in {shown(pictures.name)} and {len(strangers):,} that are "
                f"not of it (the first, {shown(strangers[0])}): {alone}--layout folders takes every folder as a "
                "person, --layout lfw takes LFW's folder with LFW's lists"
            )
    faces = [(path, identity(path.parent.name)) for path in inside]
    unlisted = len({name for _, name in faces if not _in_lfw(name)})
    note = f"LFW, {counts(name for _, name in faces)}"
    note += f"; {unlisted:,} of them in none of its lists, taken for training" if unlisted else ""
    return Layout(
        "lfw", faces, note + _left(len(images) - len(inside), "outside its person folders")
    )


def _kaggle_faces(root: Path, images: Sequence[Path], asked: str) -> Layout | None:
    """Kaggle's "Face Recognition Dataset": the originals, or the cut-out faces if only they are there."""
    originals, cutouts, beside = _kaggle_parts(root, images)
    odd = [file for path, file in originals if len(path.parts) != 2]
    odd += [
        file
        for path, file in cutouts
        if len(path.parts) != 1 or not re.fullmatch(r".+_\d+", path.stem)
    ]
    if asked == "kaggle-faces" and (odd or not (originals or cutouts)):
        first = f"; {shown(odd[0])} is neither" if odd else ""
        raise InputError(
            f"{root} is not Kaggle's Face Recognition Dataset: that has {ORIGINALS}/<Name>/<image>, or "
            f"{CUTOUTS}/<Name>_<number>.jpg{first}"
        )
    flat = any(len(path.parts) == 1 for path, _ in cutouts)
    if asked == "auto":
        if not (any(len(path.parts) == 2 for path, _ in originals) or flat):
            return None
        known = originals or (root / "Dataset.csv").is_file() or (root / CUTOUTS / CUTOUTS).is_dir()
        if odd or beside or not known:
            where = ORIGINALS if originals else CUTOUTS
            others = [*odd, *beside]
            first = f" (the first, {shown(others[0])})" if others else ""
            more = f" and {plural(others, 'image')} that do not fit{first}" if others else ""
            raise InputError(
                f"{root} holds the folder {where}, named as in Kaggle's Face Recognition Dataset{more}: --layout "
                "kaggle-faces takes it for that data set alone, --layout folders takes every folder as a person"
            )
    if originals:
        faces = [(file, identity(path.parent.name)) for path, file in originals]
    else:
        faces = [(file, identity(path.stem.rpartition("_")[0])) for path, file in cutouts]
    note = f"Kaggle's Face Recognition Dataset, {counts(name for _, name in faces)}"
    note += _left(len(cutouts) if originals else 0, f"cut out in {CUTOUTS}")
    return Layout("kaggle-faces", faces, note + _left(len(beside), "beside it"))


def _kaggle_parts(
    root: Path, images: Sequence[Path]
) -> tuple[list[tuple[PurePosixPath, Path]], list[tuple[PurePosixPath, Path]], list[Path]]:
    """Originals and cut-outs, each with its path within its folder (Kaggle's zip has that folder twice); the others."""
    parts: dict[str, list[tuple[PurePosixPath, Path]]] = {ORIGINALS: [], CUTOUTS: []}
    beside = []
    for file in images:
        path = PurePosixPath(file.relative_to(root).as_posix())
        part = path.parts[0]
        if part not in parts or len(path.parts) == 1:
            beside.append(file)
            continue
        path = path.relative_to(part)
        if path.parts[0] == part:
            path = path.relative_to(part)
        parts[part].append((path, file))
    return parts[ORIGINALS], parts[CUTOUTS], beside


def _folders(root: Path, images: Sequence[Path], asked: str) -> Layout:
    """A folder per person, at any depth; train/, val/ and test/ at the top may hold the same people."""
    folders = person_folders(root, images)
    loose = sum(not folder.parts for folder in folders)
    if loose and loose == len(images):
        raise InputError(
            f"{root} holds images but no folder per person: put each person's in one folder"
        )
    people: dict[str, PurePosixPath] = {}  # identity -> its folder below the parts
    faces = []
    for path, folder in zip(images, folders, strict=True):
        if not folder.parts:
            continue
        if len(folder.parts) > 1 and folder.parts[0].lower() in PARTS:
            folder = folder.relative_to(folder.parts[0])
        other = people.setdefault(folder.name, folder)
        if other != folder:
            raise InputError(
                f"{root}: the folders {other} and {folder} have one name, so it is unclear whether they show "
                "one person; rename one, or list the images in a CSV of path,identity"
            )
        faces.append((path, folder.name))
    parts = [p for p in sorted(people) if p.lower() in PARTS and len(people[p].parts) == 1]
    if parts and asked == "auto":
        raise InputError(
            f"{root} holds images in {', '.join(parts)}/ itself: put each person's in one folder within it, or, where "
            "somebody is called so, say --layout folders"
        )
    people_counts = counts(name for _, name in faces)
    note = f"a folder per person, {people_counts}{_left(loose, 'in no folder')}"
    return Layout("folders", faces, note)


def person_folders(root: Path, images: Sequence[Path]) -> list[PurePosixPath]:
    """The folder of each image below `root`, its parts spelt as identities are; `.` for an image of the root itself.

    Raises:
        InputError: a folder holds images, and folders with more: whose those are is unclear.
    """
    own = {path.parent for path in images}
    spelt = {
        folder: PurePosixPath(*map(identity, folder.relative_to(root).parts)) for folder in own
    }
    places = set(spelt.values())
    for folder in places:
        for above in folder.parents:
            if above.parts and above in places:
                raise InputError(
                    f"{root}: {shown(above)} holds images and the folder {shown(folder)} with more, so who is on those "
                    "is unclear: put all images of a person in one folder"
                )
    return [spelt[path.parent] for path in images]


def counts(names: Iterable[str]) -> str:
    """How many images of how many people, from the name on each image."""
    names = list(names)
    people = len(set(names))
    return f"{plural(names, 'image')} of {people:,} {'person' if people == 1 else 'people'}"


def _left(number: int, where: str) -> str:
    return f"; {plural(range(number), 'image')} {where} left out" if number else ""

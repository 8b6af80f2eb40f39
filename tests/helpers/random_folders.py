"""Folders of people as they come: names of many scripts, links, hidden folders, duplicates; who is in them is known.

`make` builds one and says what is to be found in it.
"""

from __future__ import annotations

import os
import random
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from facerec.data.discovery import find_faces
from facerec.data.layouts import PARTS
from facerec.data.names import identity
from facerec.data.walk import SYSTEM_FOLDERS
from facerec.errors import InputError
from facerec.inference.gallery import gallery_files

SCRIPTS = (
    *("abcXYZ", "éñüŨűßøÅ", "सीमासोरि", "たいきだがパ", "กิตติุู", "김연아", "عليّ", "王菲刘"),
    *("+#&@~!()'$%", "\u0301\u0303\u0323", "0123456789", " _-.,", "😀👩‍👧", "\u200b\u200f"),
)
SUFFIXES = (".jpg", ".JPG", ".jpeg", ".png", ".webp", ".PNG")
FOUND_ELSEWHERE = (
    "Faces",
    "Original Images",
    "lfw",
    "images",
    "Ünï",
)  # folders around the people's
HIDDEN = (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git", "#recycle", ".thumbnails", "@EADIR")


@dataclass
class Folders:
    """What was built: images of each person as training and as a gallery name them; whether it must be refused."""

    training: Counter[str]
    gallery: Counter[str]
    in_doubt: bool


def name(chance: random.Random) -> str:
    """A folder's name that a person may have."""
    letters = [chance.choice(chance.choice(SCRIPTS)) for _ in range(chance.randint(1, 8))]
    if chance.random() < 0.05:
        letters.append("\udce9")  # a byte of Latin-1
    text = "".join(letters)
    taken = text[0] == "." or text.casefold() in SYSTEM_FOLDERS or text.lower() in PARTS
    return f"p{text}" if taken else text


def names(chance: random.Random, count: int) -> list[str]:
    """Names of different people."""
    found: dict[str, str] = {}
    while len(found) < count:
        text = name(chance)
        found.setdefault(identity(text), text)
    return list(found.values())


def fill(folder: Path, chance: random.Random, count: int) -> None:
    """Images in a folder, some of them copies of others, some links to files elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        tail = chance.choice(("", "é", "\udce9", " (1)"))
        file = folder / f"{len(os.listdir(folder))}_{number}{tail}{chance.choice(SUFFIXES)}"
        if chance.random() < 0.1:
            target = folder.parent.parent / f"file-{file.name}"
            target.write_bytes(b"image")
            target.rename(elsewhere := target.with_suffix(".bin"))
            file.symlink_to(elsewhere)
        else:
            file.write_bytes(b"image" if chance.random() < 0.3 else chance.randbytes(8))


def make(root: Path, outside: Path, chance: random.Random) -> Folders:
    """Build a folder of people in `root`; what links point to lies in `outside`."""
    made = Folders(Counter(), Counter(), False)
    around = chance.choice((*FOUND_ELSEWHERE, "", "", ""))
    for number, person in enumerate(names(chance, chance.randint(1, 6))):
        part = (
            chance.choice(("train", "Test", "val")) if not around and chance.random() < 0.2 else ""
        )
        forms = (
            {person, unicodedata.normalize("NFD", person)} if chance.random() < 0.3 else {person}
        )
        for form in sorted(forms):
            count = chance.randint(1, 3)
            folder = root / around / part / form
            if chance.random() < 0.2:
                fill(outside / f"{number}" / f"{len(form)}", chance, count)
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.symlink_to(outside / f"{number}" / f"{len(form)}")
            else:
                fill(folder, chance, count)
            if chance.random() < 0.2:
                fill(folder / chance.choice(HIDDEN), chance, 1)
            if chance.random() < 0.03:  # a session, or another person?
                fill(folder / "2019", chance, 1)
                made.in_doubt = True
            made.training[identity(person)] += count
            made.gallery[str(PurePosixPath(around, part, identity(person)))] += count
    litter(root, chance, made)
    return made


def litter(root: Path, chance: random.Random, made: Folders) -> None:
    """What lies around: hidden folders, links in a circle or to nowhere, loose images, other files."""
    if chance.random() < 0.3:
        fill(root / chance.choice(HIDDEN) / "somebody", chance, 2)
    if chance.random() < 0.2:
        (root / "~circle").symlink_to(root)
    if chance.random() < 0.2:
        (root / "~nowhere").symlink_to(root / "not there")
    if chance.random() < 0.2:
        (root / "notes.txt").write_text("no image")
    if chance.random() < 0.2:
        (root / "~loose.jpg").write_bytes(b"image")
        made.gallery["~loose"] += 1
        made.in_doubt |= (root / "Original Images").exists()  # Kaggle's set, and more?


def check(folder: Path, chance: random.Random) -> None:
    """Builds a folder of people in `folder` and finds in it who is there, or it is refused where it is in doubt.

    Raises:
        AssertionError: somebody or an image is missing or too many, or it is refused without a reason.
    """
    root, outside = folder / "root", folder / "outside"
    root.mkdir(), outside.mkdir()
    made = make(root, outside, chance)
    try:
        faces, gallery = find_faces(str(root)), gallery_files(root)
    except InputError as error:
        assert made.in_doubt, f"refused: {error}"
        raise
    assert not made.in_doubt, "a person's folder with folders of images is in doubt"
    assert Counter(faces.identities) == made.training
    assert Counter(person for person, _ in gallery.people) == made.gallery
    assert all((root / path).is_file() for path in faces.paths)
    "".join((faces.name, *faces.identities, *faces.notes, *gallery.notes)).encode()

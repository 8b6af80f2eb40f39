"""Known people to search among: embedded once, searched by cosine similarity.

Axes: G gallery, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facerec.data.layouts import counts, person_folders
from facerec.data.names import case_notes, identity
from facerec.data.walk import walk
from facerec.errors import InputError
from facerec.runtime.text import shown


@dataclass(frozen=True)
class Match:
    """A person of a gallery: the probe's similarity to the nearest of the person's pictures, and which one."""

    name: str
    similarity: float
    picture: str


@dataclass(frozen=True)
class Gallery:
    """Known people.

    Attributes:
        model: SHA-256 of the weights that embedded them.
        names: G names, one per picture.
        pictures: G paths of the pictures, or their places in what was given.
        embeddings: (G, E) float32, unit length.
        skipped: (picture, reason) of those that could not be used.
        notes: what else was left out, and names to look at, in sentences.
    """

    model: str
    names: tuple[str, ...]
    pictures: tuple[str, ...]
    embeddings: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def search(self, probe: np.ndarray, top: int) -> list[Match]:
        """The people most like the probe, best first, each once, at most `top`.

        Args:
            probe: (E,) unit length.

        Raises:
            InputError: `top` is not at least 1.
        """
        if top < 1:
            raise InputError(f"top={top}: at least 1 is due")
        similarity = np.clip(self.embeddings @ probe, -1, 1)
        best: dict[str, Match] = {}
        for i in np.argsort(-similarity, kind="stable"):
            if len(best) >= top:
                break
            name = self.names[i]
            best.setdefault(name, Match(name, float(similarity[i]), self.pictures[i]))
        return list(best.values())


@dataclass(frozen=True)
class GalleryFiles:
    """What lies in a folder of people.

    Attributes:
        people: (identity, image file), sorted.
        notes: how many there are, what is left out, and names to look at, in sentences.
    """

    people: tuple[tuple[str, Path], ...]
    notes: tuple[str, ...]


def gallery_files(folder: Path) -> GalleryFiles:
    """The images of a gallery: a person is the folder of an image, or an image that lies loose.

    Folders may lie within others, as those of training data; the name then is the path to them. Links are followed.

    Raises:
        InputError: no such folder, a file, or one that cannot be listed; or who is on an image is in doubt.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"gallery {folder}: a file, where a folder is due")
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise InputError(f"gallery {folder}: there is no such folder{where}")
    found = walk(folder)
    places = person_folders(folder, found.images)
    people = [
        (place.as_posix() if place.parts else identity(path.stem), path)
        for place, path in zip(places, found.images, strict=True)
    ]
    names = [name for name, _ in people]
    notes = (counts(names), *found.left_out, *case_notes(names))
    title = shown(folder.resolve().name)
    return GalleryFiles(tuple(people), tuple(f"{title}: {note}" for note in notes))

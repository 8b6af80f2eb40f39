"""Known people to search among: embedded once, searched by cosine similarity.

Axes: G gallery, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facerec.data.pictures import SUFFIXES
from facerec.settings import InputError


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
    """

    model: str
    names: tuple[str, ...]
    pictures: tuple[str, ...]
    embeddings: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()

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


def gallery_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of the pictures of a gallery: a person is the folder of a picture, or a picture that lies loose.

    Folders may lie within others, as those of training data; the name then is the path to them.

    Links that lead out of the folder are left out.

    Raises:
        InputError: no such folder, or a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"gallery {folder}: a file, where a folder is due")
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise InputError(f"gallery {folder}: there is no such folder{where}")
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if path.resolve().is_relative_to(root):
            person = path.parent.relative_to(folder)
            yield (person.as_posix() if person.parts else path.stem), path

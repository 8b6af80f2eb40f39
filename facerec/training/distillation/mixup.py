"""Blends: a face that is half one person's and half another's, and so nobody's, for a student to learn from.

Its teacher is asked who that would be. A student has only so many people to learn from; this makes more of them. After
Beyer et al., "Knowledge distillation: A good teacher is patient and consistent" (CVPR 2022), who
mix the pictures that both see.

Axes: N training pictures, M blends, S side of a face, E embedding.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import cv2
import numpy as np

from facerec.data.align import warp
from facerec.data.store import Store
from facerec.training.distillation.dlib import EMBEDDING_DIM
from facerec.training.distillation.teacher import (
    centred,
    kept_answers,
    teacher_answers,
    teacher_rows,
)
from facerec.training.settings import TrainSettings


class Blends(NamedTuple):
    """pictures: (M, S, S, 3) uint8. rows: (M, E) float32 of unit length, what the student is to say of them."""

    pictures: np.ndarray
    rows: np.ndarray


def ask_teacher(settings: TrainSettings, store: Store) -> None:
    """Asks a teacher all that its student is to learn, so that the answers are there when they are needed."""
    teacher_rows(settings, store, "train")
    if settings.blends:
        blend_answers(settings, store)


def lessons(
    settings: TrainSettings, store: Store, progress: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    """What a teacher's student is to say of the training pictures, then of the blends; and the blends, if any."""
    rows = teacher_rows(settings, store, "train", progress)
    if not settings.blends:
        return rows, None
    blends = blended(settings, store, progress)
    return np.concatenate([rows, blends.rows]), blends.pictures


def blended(settings: TrainSettings, store: Store, progress: bool = True) -> Blends:
    """Blends of the training people: `settings.blends` for each of their pictures, the same for the same pictures.

    Args:
        settings: TrainSettings with a teacher.

    Raises:
        InputError: as `kept_answers`.
    """
    pairs, answers = blend_answers(settings, store, progress)
    of_people = teacher_answers(settings, store, store.indices("train"), progress)
    rows = centred(answers[:, :EMBEDDING_DIM], of_people)
    points = answers[:, EMBEDDING_DIM:].reshape(-1, 2, 5, 2)
    places = (points / settings.crop + 0.5) * settings.image_size
    store.check_unaltered()
    pictures = np.empty((len(pairs), *store.images.shape[1:]), np.uint8)
    for picture, pair, (onto, of_other) in zip(pictures, pairs, places, strict=True):
        face, other = store.images[pair]
        if settings.align == "none":  # else both are in place already
            other = laid_over(other, of_other, onto)
        cv2.addWeighted(face, 0.5, other, 0.5, 0, dst=picture)
    return Blends(pictures, rows)


def blend_answers(
    settings: TrainSettings, store: Store, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(M, 2) rows of `store` that are blended, and (M, A) what the teacher says of each blend: see `dlib_blend`."""
    train = store.indices("train")
    pairs = train[partners(store.labels[train], settings.blends)].T
    hashes, files = store.picture_hashes, [store.root / path for path in store.paths]
    keys = [blend_key(hashes[a], hashes[b]) for a, b in pairs]
    questions = {
        key: (hashes[a], files[a], hashes[b], files[b])
        for key, (a, b) in zip(keys, pairs, strict=True)
    }
    known = kept_answers(settings, "-blends", questions, progress)
    return pairs, np.stack([known[key] for key in keys])


def partners(labels: np.ndarray, rounds: int) -> np.ndarray:
    """(2, rounds * N) positions of pictures to blend: each picture, `rounds` times, with one of another person."""
    rng = np.random.default_rng(0)
    others = []
    for _ in range(rounds):
        other = rng.permutation(len(labels))
        while len(same := np.flatnonzero(labels[other] == labels)):
            other[same] = rng.integers(len(labels), size=len(same))
        others.append(other)
    return np.stack([np.tile(np.arange(len(labels)), rounds), np.concatenate(others)])


def blend_key(digest: str, other: str) -> str:
    """Name of a blend in the teacher's cache."""
    return hashlib.sha256(f"{digest} {other}".encode()).hexdigest()


def laid_over(face: np.ndarray, points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8: a face turned, scaled and shifted so that its points (5, 2) come onto others, all in pixels."""
    size = len(face)
    return warp(face, points - 0.5, size, 1.0, onto / size)

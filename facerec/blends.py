"""Blends: a face that is half one person's and half another's, and so nobody's, for a student to learn from.

Its teacher is asked who that would be. A student has only so many people to learn from, and half of those in LFW have
one picture; after Beyer et al., "Knowledge distillation: A good teacher is patient and consistent" (CVPR 2022), who
mix the pictures that both see.

Axes: N training pictures, M blends, S side of a face, E embedding.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import cv2
import numpy as np

from facerec.data.align import warp
from facerec.data.store import Store
from facerec.dlib_teacher import EMBEDDING_DIM
from facerec.teacher import centred, kept_answers, teacher_answers


class Blends(NamedTuple):
    """pictures: (M, S, S, 3) uint8. rows: (M, E) float32 of unit length, what the student is to say of them."""

    pictures: np.ndarray
    rows: np.ndarray


def blended(settings: Any, store: Store, progress: bool = True) -> Blends:
    """Blends of the training people, `settings.blends` for each of their pictures, the same in every run.

    Args:
        settings: TrainSettings with a teacher.

    Raises:
        InputError: as `kept_answers`.
    """
    train = store.indices("train")
    first, second = train[partners(store.labels[train], settings.blends)]
    keys = [
        blend_key(store.picture_hashes[a], store.picture_hashes[b])
        for a, b in zip(first, second, strict=True)
    ]
    questions = {
        key: tuple(
            part for i in pair for part in (store.picture_hashes[i], store.root / store.paths[i])
        )
        for key, pair in zip(keys, zip(first, second, strict=True), strict=True)
    }
    known = kept_answers(settings, "-blends", questions, progress)
    answers = np.stack([known[key] for key in keys])
    embeddings, points = answers[:, :EMBEDDING_DIM], answers[:, EMBEDDING_DIM:].reshape(-1, 2, 5, 2)
    if settings.align == "none":
        places = (points / settings.crop + 0.5) * settings.image_size
    else:  # in place already
        places = np.broadcast_to(points[:1, :1], points.shape)
    store.check_unaltered()
    pictures = np.stack(
        [
            blend(store.images[a], store.images[b], *pair)
            for a, b, pair in zip(first, second, places, strict=True)
        ]
    )
    return Blends(pictures, centred(embeddings, teacher_answers(settings, store, train, progress)))


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


def blend(
    face: np.ndarray, other: np.ndarray, points: np.ndarray, other_points: np.ndarray
) -> np.ndarray:
    """(S, S, 3) uint8: the mean of a face and another that is laid over it, points (5, 2) in pixels on points."""
    size = len(face)
    laid = warp(other, other_points - 0.5, size, 1.0, points / size)
    return cv2.addWeighted(face, 0.5, laid, 0.5, 0)

"""Batches: identity-balanced sampling, and augmentation of a whole batch on the device.

Everything random is a function of (seed, epoch) or of a generator seeded by (seed, step): nothing has to be
remembered to go on where a run stopped.

Axes: B batch, H W picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from facerec.data.settings import BatchSettings
from facerec.errors import InputError


def epoch_batches(labels: np.ndarray, settings: BatchSettings, seed: int, epoch: int) -> np.ndarray:
    """Which pictures form the batches of an epoch.

    With m = images_per_identity > 1 every batch holds batch_size / m different identities with m pictures each;
    an identity with fewer pictures repeats some (they differ by augmentation alone). People come equally often,
    however many pictures they have.

    Args:
        labels: (N,) identity of every training picture.
        seed, epoch: fix the answer, on every machine.

    Returns:
        (steps, batch_size) int64 positions in `labels`, steps = N // batch_size.
    """
    rng = np.random.default_rng([seed, epoch])
    size, per_identity = settings.batch_size, settings.images_per_identity
    steps = len(labels) // size
    if per_identity == 1:
        return rng.permutation(len(labels))[: steps * size].reshape(steps, size)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    people = identity_stream(len(members), size // per_identity, steps, rng)
    draws = [draw(members[p], per_identity, rng) for p in people.ravel()]
    return np.concatenate(draws).reshape(steps, size)


def confusable_batches(
    labels: np.ndarray, nearest: np.ndarray, settings: BatchSettings, seed: int, epoch: int
) -> np.ndarray:
    """Batches in which people meet those whom they are confused with.

    A batch is filled from persons drawn at random, each followed by the next persons in its row of `nearest`, half a
    batch at most from one row, so that a batch holds two groups of look-alikes at least.

    Args:
        labels: (N,) identity of every training picture, 0 ... C - 1.
        nearest: (C, k) the most confusable identities of each, most confusable first.

    Returns:
        (steps, batch_size) int64 positions in `labels`, as `epoch_batches`.
    """
    rng = np.random.default_rng([seed, epoch])
    per_batch = settings.batch_size // settings.images_per_identity
    steps = len(labels) // settings.batch_size
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    starts = identity_stream(len(members), per_batch, steps, rng)
    rows = []
    for people in starts:
        chosen: dict[int, None] = {}
        for person in people:
            group = [int(person), *nearest[person]][: max(2, per_batch // 2)]
            chosen.update(dict.fromkeys(int(p) for p in group))
            if len(chosen) >= per_batch:
                break
        rows.append(
            [draw(members[p], settings.images_per_identity, rng) for p in list(chosen)[:per_batch]]
        )
    return np.concatenate([np.concatenate(row) for row in rows]).reshape(steps, settings.batch_size)


def identity_stream(
    identities: int, per_batch: int, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """(steps, per_batch) identities: one shuffle after another, none twice within a batch."""
    rows, pool = [], np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(pool) < per_batch:
            fresh = rng.permutation(identities)
            pool = np.concatenate([pool, fresh[~np.isin(fresh, pool)], fresh[np.isin(fresh, pool)]])
        rows.append(pool[:per_batch])
        pool = pool[per_batch:]
    return np.stack(rows) if rows else np.empty((0, per_batch), dtype=np.int64)


def draw(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of `members`, each as equally often as can be."""
    repeats = -(-count // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(repeats)])[:count]


def check_batches(labels: np.ndarray, settings: BatchSettings) -> None:
    """Raises InputError where the batch cannot be filled from the training pictures."""
    people = len(np.unique(labels))
    size, per_identity = settings.batch_size, settings.images_per_identity
    if size % per_identity:
        raise InputError(
            f"batch_size {size} is no multiple of images_per_identity {per_identity}: "
            f"set batch_size to {max(1, size // per_identity) * per_identity}"
        )
    if settings.confusable and per_identity == 1:
        raise InputError(
            "confusable=true wants images_per_identity 2 or more: people meet with several pictures each"
        )
    if size > len(labels):
        raise InputError(
            f"batch_size {size} is larger than the {len(labels)} training pictures: "
            f"set it to {len(labels) // 2} or less"
        )
    if per_identity > 1 and size // per_identity > people:
        raise InputError(
            f"a batch of {size} wants {size // per_identity} people with {per_identity} pictures each, "
            f"and there are {people} to train on: set batch_size to {people * per_identity} or less"
        )
    if per_identity > 1 and size // per_identity < 2:
        raise InputError(
            f"a batch of {size} with images_per_identity {per_identity} holds one person: "
            f"set batch_size to {2 * per_identity} or more"
        )


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))

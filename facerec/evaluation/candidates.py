"""Columns of an evaluation: a protocol's pictures as features, of a model or of a reference line.

Axes: N pictures of the protocol, E features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from facerec.data.align import face
from facerec.data.decoding import PictureError, decode
from facerec.data.store import Store
from facerec.evaluation.baselines import RAW, Reference, fit_references, raw_reference, thinned
from facerec.evaluation.overlap import Leak, leak, split_leak
from facerec.evaluation.pair_counts import all_pairs
from facerec.evaluation.protocols import Pictures
from facerec.evaluation.retrieval import unit
from facerec.inference.embedder import FaceEmbedder

BATCH = 256
MAX_RAW = 30_000  # pictures whose raw pixels are kept: 276 MB of features


@dataclass
class Column:
    """A model or a reference line.

    Attributes:
        features: (N, E).
        usable: (N,) bool, where there are features.
        threshold: similarity that tells one person from two, learnt on validation people; None without.
        leak: whom it has met of the probes; None where it has learnt nothing.
        failed: path → why it has no features.
        is_model: or else a reference line.
    """

    features: np.ndarray
    usable: np.ndarray
    threshold: float | None
    leak: Leak | None = None
    failed: dict[str, str] = field(default_factory=dict)
    is_model: bool = True


def model_column(
    embedder: FaceEmbedder, pictures: Pictures, store: Store | None, flip: bool
) -> Column:
    """A model's embeddings, its own threshold, and its leak.

    Args:
        store: the pictures, cut out as the model was trained; None where they are files.
        flip: average with the mirrored picture.
    """
    count, failed = len(pictures.paths), dict[str, str]()
    features = np.zeros((count, embedder.config.network.embedding_dim), np.float32)
    usable = np.zeros(count, bool)
    if store is not None:
        rows = store_rows(store, pictures)
        at = np.flatnonzero(rows >= 0)
        usable[at] = True
        for part in batches(len(at)):
            faces = store.images[rows[at[part]]]
            features[at[part]] = embedder.embed_faces(faces, flip=flip)
    else:
        for part in batches(count):
            paths = pictures.paths[part]
            found, kept, errors = embedder.embed_usable([Path(path) for path in paths], flip=flip)
            places = part.start + np.array(kept, dtype=int)
            features[places], usable[places] = found, True
            failed |= {paths[i]: str(error) for i, error in errors.items()}
    balanced = embedder.calibration.balanced
    threshold = None if balanced is None else balanced.threshold
    met = leak(embedder.provenance, pictures, store.digest if store is not None else None)
    return Column(features, usable, threshold, met, failed)


def reference_columns(
    embedder: FaceEmbedder, pictures: Pictures, store: Store | None
) -> dict[str, Column]:
    """Reference lines on the pictures as a model sees them; learnt from the store's training people.

    Raw pixels are 18 times as long as embeddings: beyond 30,000 pictures they are left out, see `left_out`.

    Args:
        store: the pictures; None where they are files, and then there is nobody to learn from.
    """
    raw = len(pictures.paths) <= MAX_RAW
    if store is None:
        return {RAW: _raw_column(embedder, pictures)} if raw else {}
    rows, val = store_rows(store, pictures), thinned(store.indices("val"), MAX_RAW)
    met = split_leak(store, rows[pictures.probes])
    fitted = fit_references(store.images, store.labels, store.indices("train"))
    return {
        name: Column(
            reference.features(store.images, rows),
            np.ones(len(rows), bool),
            _threshold(reference, store, val),
            leak=None if name == RAW else met,
            is_model=False,
        )
        for name, reference in fitted.items()
        if raw or name != RAW
    }


def left_out(pictures: Pictures) -> str:
    """What a table says of the reference line that has too many pictures; empty where it has not."""
    count = len(pictures.paths)
    if count <= MAX_RAW:
        return ""
    return (
        f"Raw pixels are measured on at most {MAX_RAW:,} pictures and left out for these {count:,}."
    )


def store_rows(store: Store, pictures: Pictures) -> np.ndarray:
    """(N,) rows of the pictures in a store, -1 where it lacks one."""
    place = {path: row for row, path in enumerate(store.paths)}
    return np.array([place.get(path, -1) for path in pictures.paths], dtype=int)


def _threshold(reference: Reference, store: Store, rows: np.ndarray) -> float | None:
    """The threshold that is best on validation people; None where they have no two kinds of pair."""
    if len(rows) == 0:
        return None
    try:
        features = unit(reference.features(store.images, rows))
        return all_pairs(features, store.labels[rows]).balanced_threshold
    except ValueError:
        return None


def _raw_column(embedder: FaceEmbedder, pictures: Pictures) -> Column:
    """Raw pixels of pictures that are in no store."""
    size = embedder.config.image_size
    faces = np.zeros((len(pictures.paths), size, size, 3), np.uint8)
    usable = np.zeros(len(faces), bool)
    for i, path in enumerate(pictures.paths):
        try:
            faces[i], usable[i] = face(decode(Path(path)), embedder.config), True
        except PictureError:
            continue
    return Column(raw_reference()[RAW].features(faces), usable, None, is_model=False)


def batches(count: int) -> Iterator[slice]:
    """Slices of a range, with a bar."""
    with tqdm(total=count, desc="embedding", unit="face", leave=False) as bar:
        for start in range(0, count, BATCH):
            part = slice(start, min(start + BATCH, count))
            yield part
            bar.update(part.stop - part.start)

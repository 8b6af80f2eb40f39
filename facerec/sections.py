"""The sections of a page about embeddings: map, metrics, pairs, occlusion, notice.

Each returns HTML that is already escaped.

Axes: N faces, E embedding size, K neighbours, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from facerec.explore import neighbours, pca, tsne
from facerec.page import asset, sprite_css

TSNE_NOTE = (
    "t-SNE keeps neighbourhoods: faces close together are similar, while the size of a cluster "
    "and the distance between clusters mean little."
)


@dataclass(frozen=True)
class MapSection:
    """The map: its HTML, the CSS with the faces, and what the script reads."""

    html: str
    styles: str
    data: dict[str, Any]


def check_faces(
    embeddings: np.ndarray, labels: np.ndarray, names: Sequence[str], images: np.ndarray
) -> None:
    """Refuse arrays that do not belong together.

    Raises:
        ValueError: naming the array that does not fit.
    """
    if len(labels) != len(embeddings) or np.ndim(labels) != 1:
        raise ValueError(f"{np.shape(labels)} labels for {len(embeddings)} embeddings")
    if images.shape[:1] != (len(embeddings),) or images.shape[3:] != (3,):
        raise ValueError(f"images must be ({len(embeddings)}, H, W, 3), not {images.shape}")
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    if len(labels) and not 0 <= np.min(labels) <= np.max(labels) < len(names):
        raise ValueError(f"labels reach {np.max(labels)}, but there are {len(names)} names")


def map_section(
    embeddings: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    images: np.ndarray,
    *,
    total: int | None = None,
    near: int = 12,
    thumbnail: int = 64,
    dimensions: Sequence[int] = (2, 3),
    seed: int = 0,
) -> MapSection:
    """The map of the embeddings with search, thumbnails and neighbours.

    Args:
        embeddings: (N, E) of unit length.
        labels: (N,) index into `names`.
        names: of the people.
        images: (N, H, W, 3) uint8.
        total: faces that there were before sampling; N where None.
        near: neighbours a face.
        thumbnail: longest side of a thumbnail in pixels.
        dimensions: of the maps to offer, 2 first.
        seed: of t-SNE.
    """
    index, similarity = neighbours(embeddings, near)
    people, labels = np.unique(labels, return_inverse=True)
    styles, faces = sprite_css(images, "sheet", size=thumbnail)
    data = {
        "people": [names[person].replace("_", " ") for person in people],
        "labels": labels.tolist(),
        "faces": faces,
        "near": {
            "count": index.shape[1],
            "index": index.ravel().tolist(),
            "similarity": np.rint(similarity * 1000).astype(int).ravel().tolist(),
        },
        "views": _views(embeddings, dimensions, seed),
    }
    height, width = images.shape[1:3]
    ratio = f":root{{--face-ratio:{width}/{height}}}"
    note = _map_note(len(embeddings), len(people), total or len(embeddings))
    html = asset("map.html").replace("{{note}}", escape(note))
    return MapSection(html, f"{asset('map.css')}{ratio}\n{styles}", data)


def _map_note(faces: int, people: int, total: int) -> str:
    shown = f"{faces:,} faces of {people:,} people"
    if total > faces:
        shown += f", drawn at random from {total:,} faces; neighbours are sought among these"
    return f"{shown}. Each point is a face, at the place of its embedding."


def _views(embeddings: np.ndarray, dimensions: Sequence[int], seed: int) -> list[dict[str, Any]]:
    components, shares = pca(embeddings, 3)
    axes = [f"PC {n} ({share:.1%} of the variance)" for n, share in enumerate(shares, start=1)]
    views = []
    for d in dimensions:
        kept = f"The first {d} principal components keep {shares[:d].sum():.1%} of the variance."
        views.append(_view("PCA", components[:, :d], axes[:d], kept))
        views.append(_view("t-SNE", tsne(embeddings, d, seed=seed), [""] * d, TSNE_NOTE))
    return views


def _view(method: str, points: np.ndarray, axes: list[str], note: str) -> dict[str, Any]:
    """A projection as the script reads it, with four digits across its range."""
    extent = float(np.abs(points).max()) or 1.0
    columns = [[round(float(v), 4) for v in column] for column in points.T / extent]
    return {
        "method": method,
        "dimensions": points.shape[1],
        "points": columns,
        "axes": axes,
        "note": note,
    }

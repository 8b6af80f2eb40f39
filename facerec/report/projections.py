"""What a page shows of a set of embeddings: places on a map, neighbours, pairs, occlusion.

Plain NumPy and scikit-learn; every figure here is a picture's raw material, never a benchmark
(those are in metrics.py).

Axes: N faces, E embedding size, K neighbours, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

CHUNK = 1024  # probes compared with everything at once: 1,024 x 100,000 similarities are 400 MB


@dataclass(frozen=True)
class Pairs:
    """Pairs of faces, the most telling first."""

    left: np.ndarray  # (P,) int
    right: np.ndarray  # (P,) int
    similarity: np.ndarray  # (P,)


def normalise(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (N, E) as float32 of unit length; a zero vector stays zero.

    Raises:
        ValueError: if the array is not (N, E) with N of at least 2, or holds a non-finite number.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"embeddings must be (N, E) with N >= 2, not {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings hold a number that is not finite")
    return unit_rows(embeddings)


def sample_faces(labels: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """Indices, ascending, of at most `limit` faces: whole people, drawn at random.

    Args:
        labels: (N,) identity of each face.
        limit: most faces to keep; the last person drawn may be cut.
        seed: of the draw.
    """
    labels = np.asarray(labels)
    if len(labels) <= limit:
        return np.arange(len(labels))
    people = np.random.default_rng(seed).permutation(np.unique(labels))
    rank = np.empty(len(people), dtype=np.int64)
    rank[np.argsort(people)] = np.arange(len(people))
    order = np.argsort(rank[np.searchsorted(np.sort(people), labels)], kind="stable")
    return np.sort(order[:limit])


def pca(embeddings: np.ndarray, dimensions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Principal components: coordinates (N, dimensions), and each one's share of the variance.

    Fewer components than asked for (few faces, a small embedding) are filled with zeros.
    """
    if not np.ptp(embeddings, axis=0).any():
        return np.zeros((len(embeddings), dimensions), np.float32), np.zeros(dimensions, np.float32)
    count = min(dimensions, *embeddings.shape)
    model = PCA(count, svd_solver="full" if min(embeddings.shape) < 512 else "auto", random_state=0)
    points = np.zeros((len(embeddings), dimensions), dtype=np.float32)
    shares = np.zeros(dimensions, dtype=np.float32)
    points[:, :count] = model.fit_transform(embeddings)
    shares[:count] = model.explained_variance_ratio_
    return points, shares


def tsne(embeddings: np.ndarray, dimensions: int = 2, *, seed: int = 0) -> np.ndarray:
    """t-SNE coordinates (N, dimensions), begun from PCA, the same for the same seed.

    On unit vectors the Euclidean distance that t-SNE keeps is monotone in cosine similarity.
    Fewer than 5 faces have no neighbourhoods to keep: they get their principal components.
    """
    if len(embeddings) < 5 or not np.ptp(embeddings, axis=0).any():
        return pca(embeddings, dimensions)[0]
    reduced = pca(embeddings, min(32, *embeddings.shape))[0]
    if reduced.shape[1] < dimensions:
        return pca(embeddings, dimensions)[0]
    model = TSNE(
        dimensions,
        init="pca",
        perplexity=min(30.0, (len(embeddings) - 1) / 3),
        learning_rate="auto",
        max_iter=500 if dimensions == 3 else 750,
        angle=0.5 if dimensions == 2 else 0.8,
        random_state=seed,
    )
    return model.fit_transform(reduced)


def neighbours(embeddings: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Each face's most similar other faces.

    Args:
        embeddings: (N, E) of unit length.
        count: neighbours a face, at most N - 1.

    Returns:
        Their indices (N, K) and cosine similarities (N, K), the nearest first.
    """
    count = min(count, len(embeddings) - 1)
    index = np.empty((len(embeddings), count), dtype=np.int64)
    similarity = np.empty((len(embeddings), count), dtype=np.float32)
    for start in range(0, len(embeddings), CHUNK):
        block = embeddings[start : start + CHUNK] @ embeddings.T
        rows = np.arange(len(block))
        block[rows, start + rows] = -np.inf
        near = np.argpartition(-block, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(block, near, axis=1), axis=1, kind="stable")
        near = np.take_along_axis(near, order, axis=1)
        index[start : start + CHUNK] = near
        similarity[start : start + CHUNK] = np.take_along_axis(block, near, axis=1)
    return index, np.clip(similarity, -1, 1)


def extreme_pairs(
    embeddings: np.ndarray, labels: np.ndarray, count: int = 12
) -> tuple[Pairs, Pairs]:
    """The hardest genuine pairs and the most confusable impostor pairs.

    Args:
        embeddings: (N, E) of unit length.
        labels: (N,) identity of each face.
        count: pairs to keep of either kind; no face is in two pairs of a kind, so that one bad
            photograph does not fill the list.

    Returns:
        Genuine pairs, the lowest similarity first, and impostor pairs, the highest first.
    """
    labels = np.asarray(labels)
    found: list[list[np.ndarray]] = [[], []]
    for start in range(0, len(embeddings) - 1, CHUNK):
        block = np.clip(embeddings[start : start + CHUNK] @ embeddings[start:].T, -1, 1)
        upper = np.triu(np.ones(block.shape, dtype=bool), k=1)
        same = labels[start : start + CHUNK, None] == labels[None, start:]
        found[0].append(_extreme(block, upper & same, start, 16 * count, sign=1))
        found[1].append(_extreme(block, upper & ~same, start, 16 * count, sign=-1))
    genuine, impostor = (np.concatenate(parts, axis=1) for parts in found)
    return _distinct(genuine, count, sign=1), _distinct(impostor, count, sign=-1)


def _extreme(block: np.ndarray, mask: np.ndarray, start: int, keep: int, sign: int) -> np.ndarray:
    """(3, P): left, right and similarity where sign * similarity is lowest among the masked."""
    rows, columns = np.nonzero(mask)
    values = block[rows, columns]
    if keep < len(values):
        order = np.argpartition(sign * values, keep)[:keep]
        rows, columns, values = rows[order], columns[order], values[order]
    return np.stack([rows + start, columns + start, values]).astype(np.float64)


def _distinct(found: np.ndarray, count: int, sign: int) -> Pairs:
    used: set[int] = set()
    chosen: list[int] = []
    for at in np.argsort(sign * found[2], kind="stable"):
        ends = {int(found[0, at]), int(found[1, at])}
        if len(chosen) < count and not ends & used:
            used |= ends
            chosen.append(at)
    left, right, similarity = found[:, chosen]
    return Pairs(left.astype(np.int64), right.astype(np.int64), similarity)


def occlusion_map(
    embed: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    patch: int = 16,
    stride: int | None = None,
    mate: np.ndarray | None = None,
    batch: int = 64,
) -> np.ndarray:
    """How much each place matters: the similarity lost when a plain patch covers it.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014).

    Args:
        embed: pictures (n, H, W, 3) uint8 -> embeddings (n, E).
        image: (H, W, 3) uint8.
        patch: side of the patch in pixels.
        stride: step between patches; half a patch where None.
        mate: (E,) embedding to be compared with, such as another picture of the same person; the
            picture's own where None.
        batch: pictures embedded at once.

    Returns:
        (H', W') float32, H' = ceil(H / stride): the loss with the patch centred on each cell of an
        even grid over the picture; positive where covering lowers the similarity.

    Raises:
        ValueError: if the patch is not between 1 and the picture's sides.
    """
    height, width = image.shape[:2]
    stride = stride or max(1, patch // 2)
    if not 1 <= patch <= min(height, width):
        raise ValueError(f"a patch of {patch} does not fit a picture of {height} x {width}")
    grid = (math.ceil(height / stride), math.ceil(width / stride))
    whole = unit_rows(embed(image[None]))[0]
    reference = whole if mate is None else unit_rows(np.asarray(mate)[None])[0]
    covered = _covered(image, grid, patch)
    similarity = np.concatenate(
        [
            unit_rows(embed(covered[start : start + batch])) @ reference
            for start in range(0, len(covered), batch)
        ]
    )
    return (whole @ reference - similarity).reshape(grid).astype(np.float32)


def _covered(image: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    """(H' W', H, W, 3): the picture with its mean colour over a patch about each cell's centre."""
    covered = np.repeat(image[None], grid[0] * grid[1], axis=0)
    mean = np.rint(image.reshape(-1, 3).mean(axis=0)).astype(np.uint8)
    for at, cell in enumerate(np.ndindex(grid)):
        place = []
        for index, cells, side in zip(cell, grid, image.shape[:2], strict=True):
            first = round((index + 0.5) * side / cells - patch / 2)
            place.append(slice(max(first, 0), first + patch))
        covered[at][tuple(place)] = mean
    return covered


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (n, E) as float32 of unit length; a row of zeros stays one."""
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

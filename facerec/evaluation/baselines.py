"""Reference lines: what can be had without a network, from the same pictures.

Raw pixels (48 x 48 grey), whitened principal components (Turk and Pentland, "Eigenfaces for Recognition", 1991), and
Fisherfaces (Belhumeur et al., "Eigenfaces vs. Fisherfaces", 1997), the two learnt from the training people. A network
that does not beat them has learnt nothing about faces.

Axes: N pictures, S side, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from facerec.data.demo.render import raw_pixels

RAW, WHITENED, FISHER = "raw pixels", "whitened PCA", "Fisherfaces"
WHITENED_SIZE = 200
FISHER_PCA, FISHER_SIZE = 300, 100
SHRINKAGE = 0.1
MAX_TRAINING = 20_000  # pictures; more change little and cost memory


@dataclass(frozen=True)
class Reference:
    """A linear map of raw pixels.

    Attributes:
        mean: (2304,) subtracted first.
        axes: (2304, D) multiplied by then; None leaves the pixels as they are.
    """

    mean: np.ndarray
    axes: np.ndarray | None

    def features(self, images: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """(N, S, S, 3) uint8 → (N, D) float32, to be compared by cosine similarity.

        Args:
            images: of which the `rows` are taken, all without; they may be mapped from disk, 1,024 are read at a time.
        """
        rows = np.arange(len(images)) if rows is None else rows
        parts = (raw_pixels(images[rows[i : i + 1024]]) for i in range(0, len(rows), 1024))
        if self.axes is None:
            return np.concatenate(list(parts))
        return np.concatenate([(part - self.mean) @ self.axes for part in parts])


def raw_reference() -> dict[str, Reference]:
    """The reference line that needs no training pictures, by name."""
    return {RAW: Reference(np.zeros(1, np.float32), None)}


def fit_references(
    images: np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None
) -> dict[str, Reference]:
    """All reference lines, by name.

    Args:
        images: (N, S, S, 3) uint8.
        labels: (N,) identities; Fisherfaces need two people with two pictures and are absent without.
        rows: pictures of the training people, all without; beyond 20,000 every so-manieth is taken.
    """
    rows = np.arange(len(images)) if rows is None else rows
    rows = thinned(rows, MAX_TRAINING)
    pixels, labels = raw_reference()[RAW].features(images, rows), np.asarray(labels)[rows]
    size = min(FISHER_PCA, len(pixels) - 1)
    fitted = PCA(size, random_state=0).fit(pixels)
    rank = int(np.sum(fitted.explained_variance_ > fitted.explained_variance_[0] * 1e-6))
    axes, spread = fitted.components_[:rank].T, np.sqrt(fitted.explained_variance_[:rank])
    found = raw_reference()
    found[WHITENED] = Reference(fitted.mean_, axes[:, :WHITENED_SIZE] / spread[:WHITENED_SIZE])
    fisher = fisher_axes((pixels - fitted.mean_) @ axes, labels)
    if fisher is not None:
        found[FISHER] = Reference(fitted.mean_, (axes @ fisher).astype(np.float32))
    return found


def thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """Every so-manieth row, so that at most `most` are left."""
    return rows[:: max(1, -(-len(rows) // most))]


def fisher_axes(points: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """Directions in which people differ most against how their own pictures do, by shrunk LDA.

    Args:
        points: (N, D).
        labels: (N,) identities; people with one picture say nothing about scatter and are left out.

    Returns:
        (D, at most 100), best first; None where fewer than two people have two pictures.
    """
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = counts[codes] > 1
    if np.sum(counts > 1) < 2:
        return None
    discriminant = LinearDiscriminantAnalysis(solver="eigen", shrinkage=SHRINKAGE)
    discriminant.fit(points[kept], codes[kept])
    return discriminant.scalings_[:, : min(FISHER_SIZE, np.sum(counts > 1) - 1)]

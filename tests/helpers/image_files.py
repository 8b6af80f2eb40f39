"""Picture files that the data tests build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def save(path: Path, seed: int, side: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, side)).save(path)
    return path


def people(root: Path, names: str = "Ann Bob Cy", pictures: int = 3) -> Path:
    """A folder per person, lossless pictures."""
    for i, name in enumerate(names.split()):
        for k in range(pictures):
            save(root / name / f"{k}.png", 100 * i + k)
    return root

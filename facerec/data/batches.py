"""Batches: identity-balanced sampling, and augmentation of a whole batch on the device.

Everything random is a function of (seed, epoch) or of a generator seeded by (seed, step): nothing has to be
remembered to go on where a run stopped.

Axes: B batch, H W picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from facerec.settings import InputError, Settings

LUMA = (0.299, 0.587, 0.114)


class BatchSettings(Settings):
    """What a batch holds, and how its pictures are varied."""

    group: ClassVar[str] = "Batches"

    batch_size: int = Field(
        128, ge=2, le=65536, description="Pictures in a batch; under torchrun, of each rank."
    )
    images_per_identity: int = Field(
        4,
        ge=1,
        le=1024,
        description="Pictures of one person in a batch; 1 = every picture once an epoch, shuffled.",
    )
    confusable: bool = Field(
        False,
        description="Fill batches with people whom the network confuses, looked for anew each epoch.",
    )
    flip: float = Field(0.5, ge=0, le=1, description="Share of pictures mirrored.")
    rotate: float = Field(
        10.0, ge=0, le=180, description="Rotation up to so many degrees either way."
    )
    zoom: float = Field(0.1, ge=0, lt=1, description="Scaling by up to this share either way.")
    shift: float = Field(
        0.05, ge=0, lt=1, description="Shift by up to this share of the side either way."
    )
    color: float = Field(
        0.2, ge=0, le=1, description="Change of brightness, contrast and saturation either way."
    )
    tint: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Change of each colour channel either way, as by coloured light.",
    )
    gray: float = Field(0.05, ge=0, le=1, description="Share of pictures turned grey.")
    erase: float = Field(0.1, ge=0, le=1, description="Share of pictures with a rectangle erased.")


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


def to_input(pictures: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    return pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def augment(pictures: Tensor, settings: BatchSettings, generator: torch.Generator) -> Tensor:
    """Varies every picture of a batch in its own way.

    Args:
        pictures: (B, 3, H, W) float in [-1, 1].
        generator: on the device of `pictures`; its state fixes the answer.

    Returns:
        (B, 3, H, W) float in [-1, 1].
    """
    uniform = Uniform(len(pictures), pictures.device, generator)
    pictures = warp(pictures, settings, uniform)
    pictures = recolor(pictures, settings, uniform)
    return erase(pictures, settings.erase, uniform)


class Uniform:
    """Draws (B, channels, 1, 1) uniform numbers from one generator."""

    def __init__(self, batch: int, device: torch.device, generator: torch.Generator) -> None:
        self.batch, self.device, self.generator = batch, device, generator

    def __call__(self, low: float, high: float, channels: int = 1) -> Tensor:
        unit = torch.rand(self.batch, channels, 1, 1, device=self.device, generator=self.generator)
        return low + (high - low) * unit


def warp(pictures: Tensor, settings: BatchSettings, uniform: Uniform) -> Tensor:
    """Mirror, rotation, scaling and shift in one resampling; what comes from outside repeats the border."""
    mirror = 1 - 2 * (uniform(0, 1) < settings.flip).float()
    angle = uniform(-settings.rotate, settings.rotate) * torch.pi / 180
    zoom = 1 / (1 + uniform(-settings.zoom, settings.zoom))
    across, down = (uniform(-2 * settings.shift, 2 * settings.shift) for _ in range(2))
    if settings.rotate == settings.zoom == settings.shift == 0:
        return torch.where(mirror < 0, pictures.flip(3), pictures)
    rows = [
        torch.cat([mirror * zoom * angle.cos(), -mirror * zoom * angle.sin(), across], 3),
        torch.cat([zoom * angle.sin(), zoom * angle.cos(), down], 3),
    ]
    matrix = torch.cat(rows, 2).squeeze(1)  # (B, 2, 3)
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def recolor(pictures: Tensor, settings: BatchSettings, uniform: Uniform) -> Tensor:
    """Tint, brightness, contrast and saturation, then grey for some."""
    gain, contrast, saturation = (uniform(1 - settings.color, 1 + settings.color) for _ in range(3))
    is_gray = uniform(0, 1) < settings.gray
    if settings.tint > 0:
        pictures = (pictures + 1) * uniform(1 - settings.tint, 1 + settings.tint, channels=3) - 1
    if settings.color > 0:
        pictures = (pictures + 1) * gain - 1
        mean = pictures.mean((1, 2, 3), keepdim=True)
        pictures = (pictures - mean) * contrast + mean
    if settings.color > 0 or settings.gray > 0:
        gray = sum(weight * pictures[:, i : i + 1] for i, weight in enumerate(LUMA))
        saturation = torch.where(is_gray, torch.zeros_like(saturation), saturation)
        pictures = gray + (pictures - gray) * saturation
    return pictures.clamp(-1, 1)


def erase(pictures: Tensor, share: float, uniform: Uniform) -> Tensor:
    """Sets a rectangle of a sixth to a half of each side to mid grey in a `share` of pictures (Zhong et al., 2020)."""
    if share == 0:
        return pictures
    _, _, height, width = pictures.shape
    rows = torch.arange(height, device=pictures.device).view(1, 1, -1, 1) / height
    columns = torch.arange(width, device=pictures.device).view(1, 1, 1, -1) / width
    tall, wide = uniform(1 / 6, 1 / 2), uniform(1 / 6, 1 / 2)
    top, left = uniform(0, 1) * (1 - tall), uniform(0, 1) * (1 - wide)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    return pictures.masked_fill(inside & (uniform(0, 1) < share), 0.0)


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))

"""Augmentation of a whole batch on the device; uint8 pictures to what a network takes.

Axes: B batch, H W picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from facerec.data.settings import BatchSettings

LUMA = (0.299, 0.587, 0.114)


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

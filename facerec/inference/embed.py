"""Embeddings of many faces, without gradient, a chunk at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from facerec.data.augmentation import to_input
from facerec.data.sampling import chunks
from facerec.runtime.device import autocast, to_device


@torch.inference_mode()
def embed_pictures(
    network: nn.Module,
    pictures: np.ndarray,
    rows: np.ndarray,
    device: torch.device,
    precision: str = "fp32",
    batch: int = 256,
) -> Tensor:
    """Embeddings of stored pictures, without gradient.

    Args:
        pictures: (P, H, W, 3) uint8, memory-mapped or not; read a batch at a time.
        rows: (N,) which of them.

    Returns:
        (N, E) float32 on the CPU.
    """
    was_training = network.training
    network.eval()
    embeddings = []
    with autocast(precision, device):
        for part in chunks(len(rows), batch):
            embeddings.append(network(to_input(to_device(pictures[rows[part]], device))))
    network.train(was_training)
    return torch.cat(embeddings).cpu()

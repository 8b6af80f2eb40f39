"""The triplet loss over a whole batch, with its miner, so that the host never waits for the device.

pytorch-metric-learning's miner and loss hand over index tensors, whose length the host has to wait for in every step.
Here each pair of one person's pictures meets all pictures of the batch, and a mask says which triplets count: the same
loss and the same count, both left on the device.

Axes: B batch, E embedding_dim, P pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

MINERS = ("all", "semihard", "hard", "none")


class TripletLoss(nn.Module):
    """Mean of max(0, d(a, p) - d(a, n) + margin) over the mined triplets where it is not 0 (Schroff et al., 2015).

    Args:
        margin: Euclidean distance of unit embeddings, for mining and for the loss.
        miner: `all` that violate the margin (`none` gives the same loss), or of these those whose negative is nearer
            than the positive (`hard`) or farther (`semihard`).
    """

    def __init__(self, margin: float, miner: str) -> None:
        super().__init__()
        self.margin, self.miner = margin, miner

    def forward(self, embeddings: Tensor, labels: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, how many triplets were mined), two scalars.

        Args:
            embeddings: (B, E) float32, unit length.
            labels: (B,) identities.
            pairs: (2, P) positions of anchors and of positives, see `positive_pairs`.
        """
        anchors, positives = pairs
        distances = torch.cdist(embeddings, embeddings)
        gap = distances[anchors] - distances[anchors, positives][:, None]  # (P, B)
        # Said by what is left out, so that a NaN stays in and the loss tells of it.
        left_out = (labels[anchors][:, None] == labels) | (gap > self.margin)
        if self.miner == "hard":
            left_out |= gap > 0
        elif self.miner == "semihard":
            left_out |= gap <= 0
        losses = (self.margin - gap).masked_fill(left_out, 0.0)
        return losses.sum() / (losses > 0).sum().clamp(min=1), (~left_out).sum()


def positive_pairs(labels: np.ndarray) -> np.ndarray:
    """(2, P) positions of every picture in `labels` (B,) with every other picture of its person."""
    return np.stack(np.nonzero(np.equal.outer(labels, labels) & ~np.eye(len(labels), dtype=bool)))

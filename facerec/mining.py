"""Miners: which pairs and triplets of a batch count, told by masks, so that the host never waits for the device.

pytorch-metric-learning's miners of the same names hand over index tensors, whose length the host has to wait for in
every step. A mask says the same, and stays on the device. It is told by what is left out, so that a NaN stays in and
the loss tells of it.

Axes: B batch, P pairs of one person's pictures.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SIMILARITY_SLACK = 0.1  # epsilon of the multi-similarity miner, cosine


def positive_pairs(labels: np.ndarray) -> np.ndarray:
    """(2, P) positions of every picture in `labels` (B,) with every other picture of its person."""
    return np.stack(np.nonzero(np.equal.outer(labels, labels) & ~np.eye(len(labels), dtype=bool)))


def positives_and_negatives(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, B) bool each: which pictures are others of the row's person, and which are of other people."""
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def triplets_left_out(
    miner: str, margin: float, distances: Tensor, labels: Tensor, pairs: Tensor
) -> Tensor:
    """Which triplets do not count.

    Args:
        miner: `all` that violate the margin (`none` leaves out the same), or of these those whose negative is nearer
            than the positive (`hard`) or farther (`semihard`); `batch_hard`: each picture with its farthest positive
            and its nearest negative (Hermans et al., 2017); `multi_similarity`: those of the pairs that count, see
            `pairs_left_out`.
        margin: Euclidean distance; of `all`, `hard`, `semihard` and `none`.
        distances: (B, B) Euclidean, of unit embeddings.
        labels: (B,) identities.
        pairs: (2, P) positions of anchors and positives.

    Returns:
        (P, B) bool, pairs and negatives.
    """
    anchors, positives = pairs
    positive, negative = positives_and_negatives(labels)
    left_out = ~negative[anchors]
    if miner == "multi_similarity":
        near, far = similar_left_out(distances, positive, negative)
        return left_out | near[anchors, positives][:, None] | far[anchors]
    if miner == "batch_hard":
        farthest = distances.masked_fill(~positive, -1.0).argmax(1)
        nearest = distances.masked_fill(~negative, torch.inf).argmin(1)
        others = torch.arange(len(labels), device=labels.device)
        left_out |= (positives != farthest[anchors])[:, None]
        return left_out | (others != nearest[anchors][:, None])
    gap = distances[anchors] - distances[anchors, positives][:, None]
    left_out |= gap > margin
    if miner == "hard":
        left_out |= gap > 0
    elif miner == "semihard":
        left_out |= gap <= 0
    return left_out


def similar_left_out(
    distances: Tensor, positive: Tensor, negative: Tensor
) -> tuple[Tensor, Tensor]:
    """Positives and negatives that the multi-similarity miner leaves out (Wang et al., 2019, equations 6 and 7).

    A positive counts where it is less similar than the picture's most similar negative and SIMILARITY_SLACK, a
    negative where it is more similar than the least similar positive without it.

    Args:
        distances: (B, B) Euclidean, of unit embeddings.
        positive, negative: (B, B) bool.

    Returns:
        (B, B) bool each.
    """
    cosine = 1 - distances.square() / 2
    most = cosine.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    least = cosine.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    return cosine - SIMILARITY_SLACK >= most, cosine + SIMILARITY_SLACK <= least


def pairs_that_count(
    miner: str, margin: float, distances: Tensor, labels: Tensor, pairs: Tensor
) -> tuple[Tensor, Tensor]:
    """Positives and negatives that count: all (`all`, `none`), the miner's own, or those of the triplets that count.

    Args:
        as of `triplets_left_out`.

    Returns:
        (B, B) bool each.
    """
    positive, negative = positives_and_negatives(labels)
    if miner in ("all", "none"):
        return positive, negative
    if miner == "multi_similarity":
        near, far = similar_left_out(distances, positive, negative)
        return positive & ~near, negative & ~far
    triplets = ~triplets_left_out(miner, margin, distances, labels, pairs)
    anchors, positives = pairs
    mined = torch.zeros_like(positive).index_put((anchors, positives), triplets.any(1))
    of_anchor = torch.zeros_like(negative, dtype=torch.int32)
    return mined, of_anchor.index_add(0, anchors, triplets.int()) > 0

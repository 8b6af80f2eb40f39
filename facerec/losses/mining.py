"""Mining: which pairs and triplets of a batch count, and which people of the whole training set are confused.

Miners tell by masks, so that the host never waits for the device.
pytorch-metric-learning's miners of the same names hand over index tensors, whose length the host has to wait for in
every step. A mask says the same, and stays on the device. It tells what is left out, so that a NaN stays in and the
loss tells of it.

Axes: B batch, P pairs of one person's pictures, N pictures of C people, E embedding_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from facerec.data.sampling import chunks

SIMILARITY_SLACK = 0.1  # epsilon of the multi-similarity miner, cosine


class Batch(NamedTuple):
    """What a miner looks at.

    distances: (B, B) Euclidean, of unit embeddings. positive, negative: (B, B) bool, which pictures are others of the
    row's person, and which are of other people. pairs: (2, P) positions of anchors and positives. margin: Euclidean.
    """

    distances: Tensor
    positive: Tensor
    negative: Tensor
    pairs: Tensor
    margin: float

    def gap(self) -> Tensor:
        """(P, B) by how much each picture is farther from the pair's anchor than the positive is."""
        anchors, positives = self.pairs
        return self.distances[anchors] - self.distances[anchors, positives][:, None]


def look_at(embeddings: Tensor, labels: Tensor, pairs: Tensor, margin: float) -> Batch:
    """The batch of unit embeddings (B, E) of identities `labels` (B,) with their `positive_pairs` (2, P)."""
    same = labels[:, None] == labels
    other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return Batch(torch.cdist(embeddings, embeddings), same & other, ~same, pairs, margin)


def positive_pairs(labels: np.ndarray) -> np.ndarray:
    """(2, P) positions of every picture in `labels` (B,) with every other picture of its person."""
    return np.stack(np.nonzero(np.equal.outer(labels, labels) & ~np.eye(len(labels), dtype=bool)))


def all_left_out(batch: Batch) -> Tensor:
    """(P, B) triplets that keep the margin."""
    return ~batch.negative[batch.pairs[0]] | (batch.gap() > batch.margin)


def hard_left_out(batch: Batch) -> Tensor:
    """(P, B) triplets whose negative is not nearer than the positive."""
    return ~batch.negative[batch.pairs[0]] | (batch.gap() > 0)


def semihard_left_out(batch: Batch) -> Tensor:
    """(P, B) triplets that keep the margin, or whose negative is not farther than the positive."""
    gap = batch.gap()
    return ~batch.negative[batch.pairs[0]] | (gap > batch.margin) | (gap <= 0)


def batch_hard_left_out(batch: Batch) -> Tensor:
    """(P, B) triplets but for each picture's with its farthest positive and nearest negative (Hermans et al., 2017)."""
    anchors, positives = batch.pairs
    farthest = batch.distances.masked_fill(~batch.positive, -1.0).argmax(1)
    nearest = batch.distances.masked_fill(~batch.negative, torch.inf).argmin(1)
    others = torch.arange(len(nearest), device=nearest.device)
    left_out = (positives != farthest[anchors])[:, None] | (others != nearest[anchors][:, None])
    return ~batch.negative[anchors] | left_out


def similar_left_out(batch: Batch) -> Tensor:
    """(P, B) triplets of which a pair is left out by `similar_pairs_left_out`."""
    anchors, positives = batch.pairs
    near, far = similar_pairs_left_out(batch)
    return ~batch.negative[anchors] | near[anchors, positives][:, None] | far[anchors]


def similar_pairs_left_out(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, B) positives and negatives left out by the multi-similarity miner (Wang et al., 2019, equations 6 and 7).

    A positive counts where it is less similar than the picture's most similar negative and SIMILARITY_SLACK, a
    negative where it is more similar than the least similar positive without it.
    """
    cosine = 1 - batch.distances.square() / 2
    most = cosine.masked_fill(~batch.negative, -torch.inf).amax(1, keepdim=True)
    least = cosine.masked_fill(~batch.positive, torch.inf).amin(1, keepdim=True)
    return cosine - SIMILARITY_SLACK >= most, cosine + SIMILARITY_SLACK <= least


TRIPLETS_LEFT_OUT = {
    "all": all_left_out,
    "none": all_left_out,  # the others have no loss
    "hard": hard_left_out,
    "semihard": semihard_left_out,
    "batch_hard": batch_hard_left_out,
    "multi_similarity": similar_left_out,
}


def pairs_that_count(miner: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Positives and negatives that count: all (`all`, `none`), the miner's own, or those of the triplets that count.

    Returns:
        (B, B) bool each.
    """
    if miner in ("all", "none"):
        return batch.positive, batch.negative
    if miner == "multi_similarity":
        near, far = similar_pairs_left_out(batch)
        return batch.positive & ~near, batch.negative & ~far
    triplets = ~TRIPLETS_LEFT_OUT[miner](batch)
    anchors, positives = batch.pairs
    mined = torch.zeros_like(batch.positive).index_put((anchors, positives), triplets.any(1))
    of_anchor = torch.zeros_like(batch.negative, dtype=torch.int32)
    return mined, of_anchor.index_add(0, anchors, triplets.int()) > 0


def confusable_people(embeddings: Tensor, labels: np.ndarray, count: int = 64) -> np.ndarray:
    """(C, count) identities whose mean embeddings lie nearest to each identity's, nearest first.

    Args:
        embeddings: (N, E) unit length.
        labels: (N,) identities 0 ... C - 1.
    """
    people = int(labels.max()) + 1
    sums = torch.zeros(people, embeddings.shape[1]).index_add_(
        0, torch.from_numpy(labels), embeddings
    )
    centres = nn.functional.normalize(sums, dim=1)
    rows = []
    for part in chunks(people, 1024):
        similarity = centres[part] @ centres.T
        similarity[torch.arange(len(similarity)), torch.arange(people)[part]] = -2.0
        rows.append(similarity.topk(min(count, people - 1), dim=1).indices)
    return torch.cat(rows).numpy()

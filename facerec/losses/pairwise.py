"""Losses over a batch's pairs and triplets; their miners are in `mining`.

The same values and gradients as pytorch-metric-learning's losses of these names, without its index tensors.

Axes: B batch, E embedding_dim, P pairs of one person's pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerec.losses.mining import TRIPLETS_LEFT_OUT, look_at, pairs_that_count

ALPHA, BETA, BASE = 2.0, 50.0, 0.5  # of the multi-similarity loss


class TripletLoss(nn.Module):
    """Mean of max(0, d(a, p) - d(a, n) + margin) over the mined triplets where it is not 0 (Schroff et al., 2015).

    Args:
        margin: Euclidean distance of unit embeddings, for mining and for the loss.
        miner: of TRIPLETS_LEFT_OUT.
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
        batch = look_at(embeddings, labels, pairs, self.margin)
        with torch.no_grad():
            left_out = TRIPLETS_LEFT_OUT[self.miner](batch)
        losses = F.relu(self.margin - batch.gap()).masked_fill(left_out, 0.0)  # (P, B)
        return mean_of_positive(losses), (~left_out).sum()


class PairLoss(nn.Module):
    """A loss of cosines: `multi_similarity` (Wang et al., 2019) or `supcon` (Khosla et al., 2020).

    Args:
        miner: see `pairs_that_count`.
        margin: Euclidean distance, of the miners of triplets.
        temperature: of `supcon`.
    """

    def __init__(self, name: str, miner: str, margin: float, temperature: float) -> None:
        super().__init__()
        self.name, self.miner, self.margin, self.temperature = name, miner, margin, temperature

    def forward(self, embeddings: Tensor, labels: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, over how many pairs of one person's pictures), two scalars; arguments as of `TripletLoss`."""
        with torch.no_grad():
            batch = look_at(embeddings, labels, pairs, self.margin)
            positive, negative = pairs_that_count(self.miner, batch)
        cosine = embeddings @ embeddings.T
        if self.name == "multi_similarity":
            loss = multi_similarity(cosine, positive, negative)
        else:
            loss = supervised_contrastive(cosine / self.temperature, positive, negative)
        return loss, positive.sum()


def multi_similarity(cosine: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Wang et al. (2019), equation 8, of cosines (B, B) and the pairs that count: their mean over B pictures."""
    pull = log_one_plus_sum(ALPHA * (BASE - cosine), positive) / ALPHA
    push = log_one_plus_sum(BETA * (cosine - BASE), negative) / BETA
    return (pull + push).mean()


def log_one_plus_sum(logits: Tensor, counts: Tensor) -> Tensor:
    """log(1 + the sum of exp(logits) where `counts`) of each row of (B, B): (B,)."""
    return F.pad(logits.masked_fill(~counts, -torch.inf), (0, 1)).logsumexp(1)


def supervised_contrastive(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Khosla et al. (2020), equation 2, of logits (B, B) and the pairs that count; 0 in a batch without either kind."""
    left_out = ~(positive | negative)
    others = logits.masked_fill(left_out, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
    likelihood = (logits - others).masked_fill(~positive, 0.0).sum(1)
    losses = -likelihood / positive.sum(1).clamp(min=1)
    return mean_of_positive(losses) * (positive.any() & negative.any())


def mean_of_positive(losses: Tensor) -> Tensor:
    """Mean of the losses above 0, and 0 where there is none; NaN where one is."""
    return losses.sum() / (losses > 0).sum().clamp(min=1)

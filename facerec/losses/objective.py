"""What a training minimises: a loss and a miner by name, those of pytorch-metric-learning; or a teacher's embeddings.

Margins have the unit of their loss: Euclidean distance of unit embeddings for `triplet`, cosine for `cosface`,
radians for `arcface` and `subcenter_arcface`. The triplet loss and its miner share the one margin; miners of triplets
have MINER_MARGIN where they pick pairs for `multi_similarity` and `supcon`.

Axes: B batch, E embedding_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from facerec.errors import InputError
from facerec.losses.margin_softmax import MarginSoftmax
from facerec.losses.mining import positive_pairs
from facerec.losses.pairwise import PairLoss, TripletLoss
from facerec.losses.settings import DEFAULT_MARGIN, MINING, ObjectiveSettings

MINER_MARGIN = 0.2  # of a miner of triplets whose loss has none
COLLAPSED_SPREAD = 1e-3  # root mean square distance of unit embeddings from their mean


class LossOfBatch(NamedTuple):
    """loss: scalar with gradient. mined: how many triplets, positive pairs or pictures it is of (0-d tensor)."""

    loss: Tensor
    mined: Tensor


class Objective(nn.Module):
    """Loss + miner. Losses over all identities hold a weight a class, so this is a module with parameters.

    Args:
        targets: (N, E) unit length, what `distill` is to say of each training picture.

    Attributes:
        by_picture: whether the labels of `forward` are rows of `targets` instead of identities.
    """

    def __init__(
        self,
        settings: ObjectiveSettings,
        identities: int,
        embedding_dim: int,
        targets: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.name, self.by_picture = settings.loss, settings.loss == "distill"
        self.margin = settings.margin or DEFAULT_MARGIN.get(settings.loss)
        self.margin_warmup_epochs = settings.margin_warmup_epochs
        self.loss = make_loss(settings, self.margin, identities, embedding_dim, targets)
        self.full_margin = self.loss.margin if isinstance(self.loss, MarginSoftmax) else 0.0

    def at_epoch(self, epoch: float) -> None:
        """Sets the margin of arcface and cosface for a (fractional) epoch of the warm-up."""
        if isinstance(self.loss, MarginSoftmax) and self.margin_warmup_epochs > 0:
            self.loss.margin = self.full_margin * min(1.0, epoch / self.margin_warmup_epochs)

    def pairs(self, labels: np.ndarray) -> np.ndarray | None:
        """What `forward` may be given beside the labels (B,) of a batch: see there."""
        return positive_pairs(labels) if self.name in MINING else None

    def forward(
        self, embeddings: Tensor, labels: Tensor, pairs: Tensor | None = None
    ) -> LossOfBatch:
        """Loss of a batch.

        Args:
            embeddings: (B, E) float32, unit length.
            labels: (B,) int64, 0 ... identities - 1; with `by_picture` 0 ... N - 1.
            pairs: what `pairs` says of the labels; where it is missing, labels are read back from the device.
        """
        if self.name not in MINING:
            return LossOfBatch(self.loss(embeddings, labels), torch.tensor(len(labels)))
        if pairs is None:
            pairs = torch.from_numpy(positive_pairs(labels.cpu().numpy())).to(labels.device)
        return LossOfBatch(*self.loss(embeddings, labels, pairs))


class Distillation(nn.Module):
    """Mean of 1 - cosine between a picture's embedding and its row of `targets` (N, E)."""

    targets: Tensor

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        self.register_buffer("targets", targets, persistent=False)

    def forward(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        return 1 - (embeddings * self.targets[rows]).sum(1).mean()


def make_loss(
    settings: ObjectiveSettings,
    margin: float | None,
    identities: int,
    embedding_dim: int,
    targets: Tensor | None = None,
) -> TripletLoss | PairLoss | MarginSoftmax | Distillation:
    """The loss that the settings name; `margin` and `targets` where it needs them."""
    match settings.loss:
        case "triplet":
            assert margin is not None
            return TripletLoss(margin, settings.miner)
        case "multi_similarity" | "supcon":
            return PairLoss(settings.loss, settings.miner, MINER_MARGIN, settings.temperature)
        case "arcface" | "cosface" | "subcenter_arcface":
            assert margin is not None
            return MarginSoftmax(settings.loss, margin, settings.scale, identities, embedding_dim)
        case "distill":
            assert targets is not None
            return Distillation(targets)


def check_objective(settings: ObjectiveSettings) -> None:
    """Raises InputError for a margin of a loss that has none."""
    if settings.margin is not None and settings.loss not in DEFAULT_MARGIN:
        raise InputError(f"loss {settings.loss} has no margin: leave margin out")


def spread(embeddings: Tensor) -> float:
    """Root mean square distance of embeddings (B, E) from their mean: 0 where all are one point, at most 1."""
    return float((embeddings - embeddings.mean(0)).square().sum(1).mean().sqrt())

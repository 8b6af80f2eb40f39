"""Softmax over all training identities with a margin on the true one, so that the host never waits for the device.

pytorch-metric-learning's losses of the same names pick the true class by a mask, for whose size the host has to wait
in every step; here it is gathered: the same loss, and the same weights `W`.

Axes: B batch, E embedding_dim, C identities, S centres of an identity.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Only the direction of a class weight counts, and AdamW moves each element by about lr a step: from the usual standard
# deviation of 1 the directions would hardly turn within a short training.
CLASS_WEIGHT_STD = 0.05
SUB_CENTRES = 3
SMALLEST_SINE = 1e-6  # keeps the gradient of the root finite where an embedding meets its class


class MarginSoftmax(nn.Module):
    """Cross entropy of scale * cosine to the class weights, the true class's made smaller by a margin.

    Args:
        name: `cosface`: cos - margin (Wang et al., 2018). `arcface`: cos(angle + margin) (Deng et al., 2019), or
            cos - margin sin(margin) where that angle would exceed pi. `subcenter_arcface`: the same with the nearest
            of SUB_CENTRES weights a class (Deng et al., 2020).
        margin: cosine for `cosface`, radians otherwise.

    Attributes:
        W: (E, C * S) class weights; the centres of a class lie side by side.
        margin: may be set between steps.
    """

    def __init__(
        self, name: str, margin: float, scale: float, identities: int, embedding_dim: int
    ) -> None:
        super().__init__()
        self.name, self.margin, self.scale, self.identities = name, margin, scale, identities
        self.centres = SUB_CENTRES if name == "subcenter_arcface" else 1
        self.W = nn.Parameter(torch.empty(embedding_dim, identities * self.centres))
        nn.init.normal_(self.W, std=CLASS_WEIGHT_STD)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of embeddings (B, E) with labels (B,) in [0, C)."""
        cosine = F.normalize(embeddings, dim=1) @ F.normalize(self.W, dim=0)
        if self.centres > 1:
            cosine = cosine.view(-1, self.identities, self.centres).max(2).values
        true = labels[:, None]
        logits = cosine.scatter(1, true, self.with_margin(cosine.gather(1, true)))
        return F.cross_entropy(self.scale * logits, labels)

    def with_margin(self, cosine: Tensor) -> Tensor:
        """Cosines (B, 1) to the true class, made smaller."""
        if self.name == "cosface":
            return cosine - self.margin
        sine = (1 - cosine.square()).clamp(min=SMALLEST_SINE**2).sqrt()
        turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosine - self.margin * math.sin(self.margin)
        return torch.where(cosine >= -math.cos(self.margin), turned, beyond)

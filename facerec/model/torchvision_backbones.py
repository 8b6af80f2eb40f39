"""torchvision's ResNet-18 and ViT behind the same interface as ours, so that only the backbone differs.

(B, 3, H, W) float in [-1, 1] → (B, embedding_dim) float32 of unit length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    from facerec.model.settings import NetworkSettings

VIT_HEAD_CHANNELS = 64


class Baseline(nn.Module):
    """A torchvision backbone whose classifier is replaced by the embedding layer."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.normalize(self.backbone(pictures).float(), dim=-1)


def resnet(settings: NetworkSettings) -> nn.Module:
    """ResNet-18 without its max-pooling and with a 3x3 first convolution, as suits pictures under 112 pixels."""
    backbone = resnet18(weights=None, num_classes=settings.embedding_dim)
    backbone.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
    backbone.maxpool = nn.Identity()
    return backbone.to(memory_format=torch.channels_last)


def vit(settings: NetworkSettings, image_size: int) -> nn.Module:
    """ViT of `depth` layers and `d_model` channels, 64 channels a head (Dosovitskiy et al., 2021)."""
    backbone = VisionTransformer(
        image_size=image_size,
        patch_size=settings.patch_size,
        num_layers=settings.depth,
        num_heads=max(1, settings.d_model // VIT_HEAD_CHANNELS),
        hidden_dim=settings.d_model,
        mlp_dim=4 * settings.d_model,
        dropout=settings.dropout,
        num_classes=settings.embedding_dim,
    )
    # torchvision starts this layer at zero, which has no direction to normalise.
    nn.init.trunc_normal_(backbone.heads.head.weight, std=0.02)
    return backbone


def build_baseline(settings: NetworkSettings, image_size: int) -> nn.Module:
    """The torchvision backbone that `settings.backbone` names, fresh weights."""
    if settings.backbone == "resnet18":
        return Baseline(resnet(settings))
    return Baseline(vit(settings, image_size))

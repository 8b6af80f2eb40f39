"""The network: convolutional stem, patch embedding, mixer blocks, head.

`build_network(settings)` gives a module (B, 3, H, W) float in [-1, 1] → (B, E) float32 of unit length, whatever
the backbone. Mamba blocks are pre-norm residual; a block reads the tokens forward, backward, or both ways.

Axes: B batch, H W picture, L tokens (row by row), D d_model, E embedding_dim.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from facerec.errors import InputError
from facerec.model.mamba import Mamba
from facerec.model.settings import NetworkSettings

MAX_ACTIVATIONS = 2**30  # bytes an image at inference; a network of configs/ takes up to 5 MiB


class DropPath(nn.Module):
    """Stochastic depth per picture (Huang et al., 2016): the branch is dropped with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:  # (B, L, D)
        if not self.training or self.rate == 0:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * keep.to(branch.dtype) / (1 - self.rate)


class MambaBlock(nn.Module):
    """Pre-norm residual Mamba mixer: x + drop_path(mixer(norm(x))); two mixers where it reads both ways."""

    def __init__(self, settings: NetworkSettings, index: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.d_model)
        make = lambda: Mamba(  # noqa: E731
            settings.d_model,
            d_state=settings.d_state,
            expand=settings.expand,
            layer_idx=index,
            scan_backend=settings.scan_backend,
        )
        self.mixer = make()
        self.mixer_back = make() if settings.direction == "bidirectional" else None
        self.reverse = settings.direction == "alternate" and index % 2 == 1
        self.drop_path = DropPath(settings.drop_path * index / max(1, settings.depth - 1))

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, D) → (B, L, D)
        normed = self.norm(tokens)
        mixed = self.mixer(normed, reverse=self.reverse)
        if self.mixer_back is not None:
            mixed = mixed + self.mixer_back(normed, reverse=True)
        return tokens + self.drop_path(mixed)


class AttentionBlock(nn.Module):
    """A pre-norm transformer layer of the same width, to compare the mixers and nothing else."""

    def __init__(self, settings: NetworkSettings, index: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            settings.d_model,
            nhead=attention_heads(settings.d_model),
            dim_feedforward=4 * settings.d_model,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.drop_path = DropPath(settings.drop_path * index / max(1, settings.depth - 1))

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, D) → (B, L, D)
        return tokens + self.drop_path(self.layer(tokens) - tokens)


def norm2d(kind: str, channels: int) -> nn.Module:
    """Norm of a stem block: over the batch, or over groups of eight channels."""
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(channels // 8, channels)


class StemBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., 2016): (B, C, H, W) → (B, C', H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = norm2d(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm2d(norm, channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, stride, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(y)) + self.shortcut(x))


class PatchEmbedding(nn.Module):
    """Stem and patch convolution: (B, 3, H, W) → (B, L, D) with L = (H / patch_size) * (W / patch_size).

    The first two stem blocks halve the picture and double the channels (at patch size 4 only the first does), the
    others keep both; the patch convolution strides over what is left of the patch.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels, width, stride = 3, settings.stem_width, 1
        for _ in range(settings.stem_depth):
            step = 2 if stride < min(4, settings.patch_size // 2) else 1
            width = width * step if blocks else width
            blocks.append(StemBlock(channels, width, step, settings.norm))
            channels, stride = width, stride * step
        self.stem = nn.Sequential(*blocks)
        rest = settings.patch_size // stride
        self.patch = nn.Conv2d(channels, settings.d_model, rest, rest)

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.patch(self.stem(pictures.contiguous(memory_format=torch.channels_last)))
        return features.flatten(2).transpose(1, 2).contiguous()


class MambaNetwork(nn.Module):
    """Patch embedding + learned positions → blocks → norm → pooling → linear → unit length."""

    def __init__(self, settings: NetworkSettings, image_size: int) -> None:
        super().__init__()
        length = (image_size // settings.patch_size) ** 2
        block = MambaBlock if settings.mixer == "mamba" else AttentionBlock
        self.pooling = settings.pooling
        self.embed = PatchEmbedding(settings)
        self.positions = nn.Parameter(torch.randn(1, length, settings.d_model) * 0.02)
        self.blocks = nn.ModuleList(block(settings, i) for i in range(settings.depth))
        self.norm = nn.LayerNorm(settings.d_model)
        self.dropout = nn.Dropout(settings.dropout)
        features = settings.d_model * (length if settings.pooling == "flatten" else 1)
        self.head = nn.Linear(features, settings.embedding_dim)
        # Spreads the embeddings from the first step on: triplets start from points that are not one point.
        self.head_norm = (
            nn.BatchNorm1d(settings.embedding_dim) if settings.norm == "batch" else nn.Identity()
        )

    def forward(self, pictures: Tensor) -> Tensor:  # (B, 3, H, W) in [-1, 1] → (B, E)
        tokens = self.embed(pictures) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)  # (B, L, D)
        pooled = tokens.mean(1) if self.pooling == "mean" else tokens.flatten(1)
        return unit_length(self.head_norm(self.head(self.dropout(pooled))))


def unit_length(features: Tensor) -> Tensor:
    """(B, E) of any float type → float32 of L2 norm 1."""
    return F.normalize(features.float(), dim=-1)


def attention_heads(d_model: int) -> int:
    """Heads of about 64 channels."""
    return max(1, d_model // 64)


def check_sizes(settings: NetworkSettings, image_size: int) -> None:
    """Raises InputError where patch and picture do not fit, or one picture would take too much memory."""
    heads = attention_heads(settings.d_model)
    if (settings.backbone == "vit" or settings.mixer == "attention") and settings.d_model % heads:
        raise InputError(
            f"d_model {settings.d_model} does not divide into {heads} heads: use a multiple of 64"
        )
    if image_size % settings.patch_size:
        near = max(
            settings.patch_size, round(image_size / settings.patch_size) * settings.patch_size
        )
        raise InputError(
            f"patch_size {settings.patch_size} does not divide image_size {image_size}: "
            f"set image_size to {near}, or another patch_size (4, 8 or 16)"
        )
    if (needed := activation_bytes(settings, image_size)) > MAX_ACTIVATIONS:
        raise InputError(
            f"an image of {image_size} pixels takes up to {needed / 2**20:,.0f} MiB of activations in this network, "
            f"above {MAX_ACTIVATIONS / 2**20:,.0f} MiB: take a larger patch_size, or a smaller image_size, "
            "stem_width or d_model"
        )


def activation_bytes(settings: NetworkSettings, image_size: int) -> int:
    """Memory that the network takes for one image at inference beside its weights, in float32, from above.

    Counted are the tensors that are there at once: eight of the image's size, six of the first and largest of the
    stem, and of the widest block those of its tokens, of inner channels and of attention scores. Measured on a CPU
    were 0.35 to 0.75 of it, and 0.1 where the attention keeps no scores.
    """
    image = 8 * 3 * image_size**2
    width = {"resnet18": 64, "mamba": settings.stem_width * (settings.stem_depth > 0), "vit": 0}
    stem = 6 * width[settings.backbone] * (image_size // 2) ** 2
    length, d_model = (image_size // settings.patch_size) ** 2 + 1, settings.d_model
    if settings.backbone == "resnet18":
        block = 0
    elif settings.backbone == "vit" or settings.mixer == "attention":
        block = 20 * length * d_model + 2 * attention_heads(d_model) * length**2
    else:
        projected = d_model // 16 + 1 + 2 * settings.d_state
        block = length * (8 * d_model + 8 * settings.expand * d_model + 2 * projected)
    return 4 * (image + stem + block)


class _Float32(TorchFunctionMode):
    """New tensors are float32 within this block, whatever torch's default is, which is one for all threads."""

    factories = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.factories and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


@runtime_checkable
class _WithImageSize(Protocol):
    """Settings of an entry point, which say how large the picture is."""

    @property
    def image_size(self) -> int: ...


def build_network(settings: NetworkSettings, image_size: int | None = None) -> nn.Module:
    """The network that the settings describe, with fresh weights from torch's global generator.

    A block of `torch.device` around the call says where it is made, as for any module. Torch's default dtype and a
    block of `torch.inference_mode` change nothing.

    Args:
        settings: NetworkSettings; image_size is read from it where it has one (an entry point's settings do).
        image_size: side of the square picture, pixels.

    Returns:
        Module: (B, 3, image_size, image_size) float in [-1, 1] → (B, embedding_dim) float32, unit L2 norm.

    Raises:
        InputError: if the patch size does not divide the picture.
    """
    if image_size is not None:
        size = image_size
    else:
        assert isinstance(settings, _WithImageSize), "image_size is missing"
        size = settings.image_size
    check_sizes(settings, size)
    with torch.inference_mode(False), _Float32():
        if settings.backbone != "mamba":
            from facerec.model.torchvision_backbones import build_baseline

            return build_baseline(settings, size)
        return MambaNetwork(settings, size)


def parameter_count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)

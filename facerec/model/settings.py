"""What the network is, as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from facerec.config.settings import Settings


class NetworkSettings(Settings):
    """What the network is; together with `image_size` it fixes every weight's shape."""

    group: ClassVar[str] = "Network"

    backbone: Literal["mamba", "resnet18", "vit"] = Field(
        "mamba",
        description="Network family: ours, or torchvision's ResNet-18 or ViT for comparison.",
    )
    mixer: Literal["mamba", "attention"] = Field(
        "mamba",
        description="What mixes tokens within a block: a selective scan, or attention with an MLP.",
    )
    direction: Literal["forward", "alternate", "bidirectional"] = Field(
        "alternate",
        description="Order in which blocks scan the tokens; alternate turns every second block round.",
    )
    patch_size: Literal[4, 8, 16] = Field(
        8,
        description="Side of a token's patch, pixels; the total stride of stem and patch embedding.",
    )
    d_model: int = Field(128, ge=8, le=2048, multiple_of=8, description="Channels of a token.")
    d_state: int = Field(16, ge=1, le=256, description="State of the scan per channel.")
    expand: int = Field(
        2, ge=1, le=4, description="Inner channels of a Mamba mixer per channel of a token."
    )
    depth: int = Field(4, ge=1, le=64, description="Blocks.")
    stem_depth: int = Field(
        2, ge=0, le=8, description="Convolutional residual blocks before the tokens; 0 = none."
    )
    stem_width: int = Field(
        32,
        ge=8,
        le=512,
        multiple_of=8,
        description="Channels of the first stem block; doubled at each stride.",
    )
    norm: Literal["batch", "group"] = Field(
        "batch",
        description="Norm of the stem and of the embedding; group keeps no statistics of the batch, and has none "
        "of the embedding.",
    )
    pooling: Literal["mean", "flatten"] = Field(
        "mean", description="Head: mean of the tokens, or all of them side by side."
    )
    embedding_dim: int = Field(128, ge=2, le=4096, description="Length of the embedding.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the last linear layer.")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="Stochastic depth of the last block; rises linearly to it."
    )
    scan_backend: Literal["auto", "numba", "triton", "mamba-ssm", "reference"] = Field(
        "auto", description="Kernels of the scan; auto takes the fastest for the device."
    )

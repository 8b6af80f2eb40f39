"""Without a card the Triton kernels are interpreted; Triton decides at its first import, so this comes first."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

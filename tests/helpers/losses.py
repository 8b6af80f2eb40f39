"""Losses and miners that several tests go through."""

from __future__ import annotations

MINERS = ["all", "semihard", "hard", "batch_hard", "multi_similarity", "none"]

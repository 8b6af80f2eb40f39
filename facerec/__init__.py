"""facerec: face embeddings from Mamba networks, trained, tracked, tuned and served on any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facerec.inference.embedder import FaceEmbedder as FaceEmbedder

__version__ = "0.1.0"
__all__ = ["FaceEmbedder"]


def __getattr__(name: str) -> Any:
    """FaceEmbedder on first use: `facerec --help` must not wait for torch."""
    if name == "FaceEmbedder":
        from facerec.inference.embedder import FaceEmbedder

        return FaceEmbedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

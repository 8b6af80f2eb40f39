"""What users hand over as a picture: a path, bytes, a PIL image or an array, all to the same pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from PIL import Image

from facerec.data.decoding import MIN_SIDE, PictureError, decode, from_pil
from facerec.runtime.paths import expanded, is_uri
from facerec.runtime.text import shown

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Picture = Union[str, "PathLike[str]", bytes, Image.Image, np.ndarray]


def is_picture(value: Any) -> TypeIs[Picture]:
    """Whether this is one picture, and not several, as an array of four dimensions is."""
    if isinstance(value, np.ndarray):
        return value.ndim != 4
    kinds = (str, PathLike, bytes, bytearray, Image.Image)
    return isinstance(value, kinds) or hasattr(value, "read")  # an open file is none, nor several


def as_list(images: Picture | Sequence[Picture]) -> list[Picture]:
    """One picture or several, as a list; whatever else was handed over is taken for one."""
    if is_picture(images):
        return [images]
    return list(images) if isinstance(images, Iterable) else [images]


def label(picture: Picture, index: int) -> str:
    """What to call a picture in a message: its path, or its place."""
    if isinstance(picture, (str, PathLike)):
        return shown(picture)
    return f"picture {index + 1}"


def pixels(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture of any kind.

    Raises:
        PictureError: it cannot be used.
    """
    if isinstance(picture, (str, PathLike)):
        return _from_path(Path(picture) if is_uri(picture) else expanded(picture))
    if isinstance(picture, (bytes, bytearray)):
        return decode(bytes(picture))
    if isinstance(picture, Image.Image):
        return from_pil(picture)
    if not isinstance(picture, np.ndarray):
        kind = type(picture).__name__
        raise PictureError(f"a {kind}, where a path, bytes, PIL image or uint8 array is due")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise PictureError(
            f"an array {picture.shape} {picture.dtype}, where (H, W, 3) uint8 is due"
        )
    if min(picture.shape[:2]) < MIN_SIDE:
        raise PictureError(
            f"too small: {picture.shape[1]} x {picture.shape[0]}, a side must be {MIN_SIDE} or more"
        )
    return picture


def _from_path(path: Path) -> np.ndarray:
    try:
        return decode(path)
    except PictureError as error:
        if str(error) == "no such file" and not path.is_absolute():
            raise PictureError(f"no such file in {Path.cwd()}") from None
        raise

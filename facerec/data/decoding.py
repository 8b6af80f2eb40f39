"""One picture file or byte string to pixels, and pixels to the square that the network sees.

The store and the embedder both come through here, so training and serving cannot differ. Files come
from strangers: only a few raster formats are opened, and size is judged from the header before
anything is decoded.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import (  # Pillow opens by name only what has been imported
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from facerec.errors import InputError
from facerec.runtime.untrusted import read_up_to

MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 80_000_000  # 240 MB decoded; phones' 64-megapixel photographs pass
MIN_SIDE = 8
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
URLS = ("http:/", "https:/", "ftp:/", "file:/", "s3:/", "data:")  # if there is no such file
START_OF_SCAN = b"\xff\xda"  # marker of a JPEG, which nothing that is compressed contains
BACKDROP = 128  # what shows through transparent pixels
DIMMEST_16_BITS = 2**12  # brightest value under which an image of 16 bits may be one of 8, 10 or 12
DEEPEST_14_BITS = 2**14 - 1

# Names that are taken for pictures when a folder is listed. HEIC and AVIF are not decoded; they are
# listed so that the owner is told of each one skipped.
SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff"),
        *("ppm", "pgm", "gif", "heic", "heif", "avif"),
    )
)


# Of odd metadata, each harmless or raised as well. For good: catch_warnings would take other threads' filters.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_one_at_a_time = threading.Lock()


class PictureError(InputError):
    """A picture that cannot be used; the message is the one reason."""


def decode(source: bytes | Path) -> np.ndarray:
    """Pixels of one still picture, upright, whatever its file format and colour mode.

    EXIF rotation is applied, 16-bit grey is scaled to 8 bits, and transparent pixels are laid over
    mid grey. Of a phone's multi-picture JPEG the main picture is taken. Grey of 16 bits that would fit into 12
    is refused: it may be an image of fewer bits, and would be almost black.

    Args:
        source: the file's bytes (at most 64 MiB), or its path.

    Returns:
        (H, W, 3) uint8 RGB, writable and contiguous; both sides at least 8, H * W at most 80 million.

    Raises:
        PictureError: missing, empty, truncated, not a picture, animated, too large or too small.
    """
    data = source if isinstance(source, bytes) else read_file(source)
    with _in_a_sentence():
        return _pixels(_open(data))


def measure(data: bytes) -> tuple[int, int]:
    """What decoding an image file would cost, from its header and markers alone.

    Returns:
        Its pixels; and those times the scans of a JPEG, each of which is another pass over all of them.

    Raises:
        PictureError: as of `decode`, where the header says so.
    """
    with _in_a_sentence():
        image = _open(data)
        pixels = image.width * image.height
        jpeg = image.format in ("JPEG", "MPO")
        return pixels, pixels * max(1, data.count(START_OF_SCAN) if jpeg else 1)


def from_pil(image: Image.Image) -> np.ndarray:
    """As `decode`, of a PIL image, whose file need not have been read yet.

    Modes `I` and `F` of an image that is in memory alone do not say which value is white. It is 1 (mode `F`), 255
    or 65535, by the brightest value in it; where that fits none of them, the image is refused.

    One at a time: two threads that read one image's file would disturb each other.
    """
    with _one_at_a_time, _in_a_sentence():
        return _pixels(_checked(image))


@contextlib.contextmanager
def _in_a_sentence() -> Iterator[None]:
    """Whatever Pillow raises on hostile bytes becomes a PictureError."""
    try:
        yield
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(f"gigantic: more than {MAX_PIXELS:,} pixels") from None
    except MemoryError:
        raise PictureError("too large for this machine's memory") from None
    except Exception as error:  # Pillow's decoders raise what they like on hostile bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "truncated" in reason.lower() or isinstance(error, EOFError):
            raise PictureError("truncated: the file ends before the picture does") from None
        raise PictureError(f"damaged: {reason[:120]}") from None


def read_file(path: Path) -> bytes:
    """Bytes of a picture file, its size checked before reading.

    Raises:
        PictureError: no such file, a folder, a pipe or a device, a URL, unreadable, or above 64 MiB.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PictureError("no regular file, where a picture is due: a pipe or a device")
            data = read_up_to(MAX_FILE_BYTES + 1, file)
    except IsADirectoryError:
        raise PictureError("a folder, not a picture") from None
    except (OSError, ValueError) as error:
        if str(path).startswith(URLS):
            reason = "a URL where a path is due: download the picture first"
        elif isinstance(error, FileNotFoundError):
            reason = "no such file"
        else:
            reason = f"cannot be read: {getattr(error, 'strerror', error)}"
        raise PictureError(reason) from None
    if len(data) > MAX_FILE_BYTES:
        raise PictureError(f"a file of more than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _open_at_once(path: str, flags: int) -> int:
    """A pipe that nobody writes to must not block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def to_face(picture: np.ndarray, image_size: int, crop: float) -> np.ndarray:
    """The centred square of a picture, resampled without aliasing.

    Args:
        picture: (H, W, 3) uint8.
        image_size: side of the result in pixels.
        crop: side of the square as a share of the shorter side, in (0, 1].

    Returns:
        (image_size, image_size, 3) uint8, contiguous, never a view of `picture`.
    """
    height, width = picture.shape[:2]
    side = max(1, round(min(height, width) * crop))
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    if side == image_size:
        return square.copy()
    how = cv2.INTER_AREA if side > image_size else cv2.INTER_LINEAR
    return cv2.resize(square, (image_size, image_size), interpolation=how)


def _open(data: bytes) -> Image.Image:
    """Header only; refuses what must not be decoded."""
    if not data:
        raise PictureError("the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise PictureError(f"{len(data) / 2**20:.0f} MiB, more than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return _checked(Image.open(io.BytesIO(data), formats=FORMATS))
    except Image.UnidentifiedImageError:
        kinds = "JPEG, PNG, WebP, BMP, TIFF, PPM or GIF"
        raise PictureError(f"not a picture, or none of {kinds}") from None


def _checked(image: Image.Image) -> Image.Image:
    """The same, if what its header says can be taken."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"gigantic: {width:,} x {height:,}, above the {MAX_PIXELS:,} pixels of an image"
        )
    if min(width, height) < MIN_SIDE:
        raise PictureError(f"too small: {width} x {height}, a side must be {MIN_SIDE} or more")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        what = "several pages" if image.format == "TIFF" else "animated"
        raise PictureError(f"{what}: one still picture is due")
    return image


def _pixels(image: Image.Image) -> np.ndarray:
    image.load()
    kind = image.format  # which a copy, such as an upright one, does not have
    with contextlib.suppress(Exception):  # broken EXIF says nothing about the pixels, now decoded
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_grey(image, kind)
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, (BACKDROP, BACKDROP, BACKDROP, 255))
        image = Image.alpha_composite(backdrop, image)
    return np.array(image.convert("RGB"))


def _from_deep_grey(image: Image.Image, kind: str | None) -> np.ndarray:
    """(H, W, 3) uint8 of an image of mode `I`, `I;16...` or `F`; kind: its file's format, None without a file."""
    grey = np.asarray(image)
    if kind == "TIFF" and image.mode in ("I", "F"):  # whose white nobody knows
        what = "32-bit grey" if image.mode == "I" else "floating-point pixels"
        raise PictureError(f"{what}: save it with 8 or 16 bits a channel")
    undeclared = kind is None and image.mode in ("I", "F")
    dimmest = DEEPEST_14_BITS + 1 if kind is None else DIMMEST_16_BITS
    if not undeclared and 0 < grey.max() < dimmest:
        raise PictureError(
            f"16-bit grey whose brightest value is {grey.max()} of 65535: almost black, or an image of fewer bits; "
            "scale it to 8 bits a channel"
        )
    white = _white(grey) if undeclared else 65535
    scaled = np.rint(grey.astype(np.float32) * (255 / white)).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _white(grey: np.ndarray) -> int:
    """Which value is white, 1 (floats alone), 255 or 65535, in an image that does not say so.

    Raises:
        PictureError: the values fit none of them.
    """
    least, most = float(grey.min()), float(grey.max())
    if least >= 0 and most == 0:
        return 255  # black by any measure
    ranges: list[tuple[float, int]] = [(16, 255), (DEEPEST_14_BITS + 1, 65535)]
    ranges += [(1 / 16, 1)] if grey.dtype.kind == "f" else []
    for dimmest, white in ranges:
        if least >= 0 and dimmest <= most <= white:  # never with NaN
            return white
    known = "0 to 1, 0 to 255" if grey.dtype.kind == "f" else "0 to 255"
    raise PictureError(
        f"grey values from {least:.9g} to {most:.9g}, which are not clearly {known} or 0 to 65535: scale them to 0 "
        "to 255 and convert to mode L"
    )

"""Pictures from strangers: each kind decodes as it should, or is refused for one clear reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.data import decoding as pictures
from facerec.data.decoding import PictureError, decode, from_pil, to_face
from tests.helpers.image_files import noise


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes: a bomb, were it decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(10_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


GREY = Image.fromarray(np.full((20, 30), 200, np.uint8))
FRAMES = [Image.fromarray(noise(i)) for i in range(3)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is no picture at all", "not a picture"),
        (encoded(Image.fromarray(noise(0, 64)), "JPEG")[:900], "truncated"),
        (encoded(Image.fromarray(noise(0, 64)), "JPEG", progressive=True)[:900], "truncated"),
        (encoded(Image.fromarray(noise(0, 64)), "PNG")[:900], "truncated"),
        (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "animated"),
        (encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "animated"),
        (encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "animated"),
        (encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), "pages"),
        (png_header(20_000, 20_000), "gigantic"),
        (png_header(10_000, 10_000), "gigantic"),
        (png_header(1_000_000, 8), "damaged|truncated"),
        (png_header(1, 1), "too small"),
        (encoded(Image.fromarray(noise(0, 7)), "PNG"), "too small"),
        (encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not a picture"),
    ],
)
def test_refused_for_one_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


def test_files_are_limited_before_they_are_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 1000)
    (tmp_path / "big.png").write_bytes(encoded(Image.fromarray(noise(0)), "PNG"))
    for path, reason in (("big.png", "more than"), ("none.png", "no such file"), (".", "a folder")):
        with pytest.raises(PictureError, match=reason):
            decode(tmp_path / path)
    with pytest.raises(PictureError, match="URL"):
        decode(Path("https://example.org/a.jpg"))


def test_every_colour_mode_becomes_rgb() -> None:
    deep = np.linspace(0, 65535, 100).astype(np.uint16).reshape(10, 10)
    got = decode(encoded(Image.fromarray(deep), "PNG"))
    assert (got[..., 0] == np.round(deep / 257)).all() and (got[..., 0] == got[..., 2]).all()
    assert (decode(encoded(GREY, "PNG")) == 200).all()
    assert (decode(encoded(GREY.convert("1"), "PNG")) % 255 == 0).all()
    cmyk = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert abs(cmyk[8, 8].astype(int) - [255, 0, 0]).max() < 8
    palette = Image.fromarray(noise(1)).quantize(16)
    assert (decode(encoded(palette, "PNG")) == np.asarray(palette.convert("RGB"))).all()
    assert decode(encoded(palette, "GIF")).shape == (24, 24, 3)


def test_transparency_shows_mid_grey() -> None:
    assert (decode(encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG")) == 128).all()
    half = decode(encoded(Image.new("LA", (9, 9), (228, 128)), "PNG"))
    assert abs(half.astype(int) - 178).max() <= 1
    keyed = encoded(Image.new("RGB", (9, 9), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert (decode(keyed) == 128).all()


def test_exif_rotation_is_applied_and_broken_exif_ignored() -> None:
    upright = np.zeros((20, 40, 3), np.uint8)
    upright[:, :20] = 255
    stored = Image.fromarray(np.rot90(upright, 1).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    got = decode(encoded(stored, "JPEG", exif=exif, quality=95))
    assert got.shape == upright.shape and abs(got.astype(int) - upright).max() < 30
    assert decode(encoded(stored, "JPEG", exif=b"Exif\0\0MM\0*garbage")).shape == (40, 20, 3)


def test_to_face_takes_the_centred_square_and_averages() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[10:30, 30:50] = 200
    assert (to_face(picture, 16, 0.5) == 200).all()
    assert to_face(picture, 16, 1.0).mean() == pytest.approx(50, abs=1)
    checks = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    assert (
        abs(to_face(np.stack([checks.astype(np.uint8)] * 3, 2), 16, 1.0).astype(int) - 128).max()
        <= 1
    )
    same = to_face(picture, 40, 1.0)
    assert not np.shares_memory(same, picture) and same.flags.c_contiguous
    assert to_face(picture, 64, 0.1).shape == (64, 64, 3)


SHADES = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)


def grey(white: float, kind: type) -> np.ndarray:
    """(16, 16) grey values from 0 to `white`."""
    return np.round(SHADES * white).astype(kind) if kind is not np.float32 else SHADES * white


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(grey(255, np.uint8)).convert("I"),
        Image.fromarray(grey(65535, np.int32)),
        Image.fromarray(grey(1, np.float32)),
        Image.fromarray(grey(255, np.uint8)).convert("F"),
        Image.fromarray(grey(65535, np.float32)),
        Image.fromarray(grey(65535, np.uint16)),
        Image.frombytes("I;16B", (16, 16), grey(65535, np.uint16).astype(">u2").tobytes()),
        Image.fromarray(grey(255, np.uint8)).convert("LA").convert("La"),
    ],
)
def test_grey_is_scaled_by_its_white(image: Image.Image) -> None:
    got = from_pil(image).astype(int)
    assert abs(got - grey(255, np.uint8)[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (grey(255, np.uint16), "brightest value is 255 of 65535"),
        (grey(4095, np.uint16), "brightest value is 4095 of 65535"),
        (grey(1023, np.int32), "grey values from 0 to 1023"),
        (grey(16383, np.int32), "grey values from 0 to 16383"),
        (grey(255, np.int32) - 128, "grey values from -128 to 127"),
        (grey(2**24, np.int32), "scale them to 0 to 255"),
        (grey(1.03, np.float32), "not clearly 0 to 1, 0 to 255 or"),
        (grey(2, np.float32) - 1, "grey values from -1 to 1"),
        (grey(np.nan, np.float32), "scale them to 0 to 255"),
    ],
)
def test_grey_whose_white_is_unclear_is_refused(values: np.ndarray, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        from_pil(Image.fromarray(values))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_files_of_deep_grey_are_as_their_format_says(kind: str) -> None:
    whole = encoded(Image.fromarray(grey(65535, np.uint16)), kind)
    assert (decode(whole)[..., 0] == grey(255, np.uint8)).all()
    assert (from_pil(Image.open(io.BytesIO(whole)))[..., 0] == grey(255, np.uint8)).all()
    assert not decode(
        encoded(Image.new("I;16", (9, 9)), kind)
    ).any()  # black is black by any measure
    dim = encoded(Image.fromarray(grey(255, np.uint16)), kind)
    for image in (decode, lambda data: from_pil(Image.open(io.BytesIO(data)))):
        with pytest.raises(PictureError, match="16-bit grey"):
            image(dim)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_tiffs_whose_white_nobody_knows_are_refused(kind: type) -> None:
    file = encoded(Image.fromarray(grey(255, kind)), "TIFF")
    for image in (decode, lambda data: from_pil(Image.open(io.BytesIO(data)))):
        with pytest.raises(PictureError, match=r"32-bit grey|floating-point"):
            image(file)

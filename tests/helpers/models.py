"""Small models and pictures that several tests make."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from facerec.data.settings import AlignSettings, DataSettings
from facerec.data.splits import fold_name
from facerec.inference.calibration import Calibration, Curve, Threshold
from facerec.inference.model_io import write_model
from facerec.inference.provenance import Provenance, Seen
from facerec.model.network import build_network
from facerec.model.settings import NetworkSettings

CALIBRATION = Calibration(
    genuine=500,
    impostor=20_000,
    thresholds=[
        Threshold(far=0.1, threshold=0.2, tar=0.9, false_accepts=2000, measurable=True),
        Threshold(far=1e-3, threshold=0.5, tar=0.5, false_accepts=20, measurable=True),
        Threshold(far=1e-4, threshold=0.8, false_accepts=2, measurable=False),
    ],
    probability=Curve(slope=8.0, intercept=-4.0),
)


class Recipe(NetworkSettings, DataSettings, AlignSettings):
    """What a model folder is written from."""


def recipe(**changes: Any) -> Recipe:
    fixed = {"d_model": 16, "depth": 1, "d_state": 4, "stem_depth": 1, "stem_width": 8}
    return Recipe(**{**fixed, "embedding_dim": 8, "image_size": 16, **changes})


def seen(*names: str, **more: Any) -> Provenance:
    """The provenance of a model of before that has trained on these people."""
    hashes = [hashlib.sha256(f"s:{fold_name(name)}".encode()).hexdigest() for name in names]
    train = Seen(people=len(names), people_hashes=hashes, picture_hashes=[])
    val = Seen(people_hashes=[], picture_hashes=[])
    return Provenance(salt="s", train=train, val=val, **more)


def make_model(folder: Path, provenance: Provenance | None = None, **changes: Any) -> nn.Module:
    """Write a model with fresh weights; returns its network in eval mode."""
    settings = recipe(**changes)
    torch.manual_seed(0)
    network = build_network(settings).eval()
    write_model(
        folder,
        network,
        settings,
        calibration=CALIBRATION,
        provenance=provenance or seen(),
        card="# A model\n",
    )
    return network


def picture(seed: int, side: int = 40) -> np.ndarray:
    """(side, side, 3) uint8 with some large-scale structure."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def photographs(root: Path, people: int, shots: int = 3) -> Path:
    """A folder for each of so many people, with noisy images of one picture each: `Person_3/0.png`."""
    for person in range(people):
        folder = root / f"Person_{person}"
        folder.mkdir(parents=True)
        for shot in range(shots):
            noise = np.random.default_rng(10 * person + shot).normal(0, 12, (40, 40, 3))
            pixels = np.clip(picture(person) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{shot}.png")
    return root


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **how)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    )


def hostile_pictures() -> dict[str, bytes]:
    """Bytes that are no usable picture, by what is wrong with them."""
    jpeg = encoded(picture(0, 64), "JPEG")
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    return {
        "empty": b"",
        "text": b"Lorem ipsum dolor sit amet\n" * 20,
        "truncated": jpeg[: len(jpeg) // 2],
        "animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "one pixel": encoded(picture(0, 1)),
        "gigantic": png_of_size(20_000, 20_000),
        "bomb": png_of_size(2**31 - 1, 2**31 - 1),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    }


def odd_pictures() -> dict[str, bytes]:
    """Bytes of pictures that are usable, if unusual, by what is odd about them."""
    face = Image.fromarray(picture(0, 64))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = np.asarray(face.convert("L")).astype(np.uint16) * 257
    return {
        "CMYK": encoded(face.convert("CMYK"), "JPEG"),
        "16-bit grey": encoded(deep),
        "alpha": encoded(face.convert("RGBA")),
        "EXIF rotation": encoded(face, "JPEG", exif=turned),
        "one-frame GIF": encoded(face, "GIF"),
    }


def many_scans(scans: int, side: int) -> bytes:
    """A progressive JPEG of a grey square with so many scans more than it needs."""
    data = encoded(Image.new("L", (side, side), 77), "JPEG", progressive=True)
    marker = b"\xff\xda"
    start = data.index(marker, data.index(marker) + 1)
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data[:-2] + (data[start:end] + bytes(8)) * scans + data[-2:]

"""The demo data set: cartoon people, rendered on first use, the same on every machine.

It needs no download and is hard enough to be worth learning: light, background, pose, expression and
occlusion change from picture to picture, so that neither raw pixels nor colours tell who it is.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from facerec.data.demo import parts
from facerec.data.demo.canvas import Canvas
from facerec.data.demo.person import Dice, Moment, Person, mix
from facerec.runtime.files import publish_folder

PEOPLE, PICTURES = 480, 8
VERSION = 1  # raise whenever a pixel changes
SEED = 20_260_000
SIDE = 96
LARGE = 4 * SIDE  # drawn this large, then averaged down


def demo_faces(cache: Path) -> Path:
    """Folder of the demo faces, one folder per person, rendered there on first use (a few seconds).

    Args:
        cache: the cache folder; the pictures take about 60 MB of it.
    """
    folder = cache / f"demo-{VERSION}-{PEOPLE}x{PICTURES}"
    if not folder.is_dir():
        with publish_folder(folder) as draft, ThreadPoolExecutor() as pool:
            list(pool.map(lambda number: _write_person(draft, number), range(PEOPLE)))
    return folder


def _write_person(folder: Path, number: int) -> None:
    home = folder / f"person_{number:03d}"
    home.mkdir()
    person = Person(SEED, number)
    for k in range(PICTURES):
        _, png = cv2.imencode(".png", render(person, number, k)[:, :, ::-1])
        (home / f"{k}.png").write_bytes(png.tobytes())


def render(person: Person, number: int, k: int) -> np.ndarray:
    """Picture `k` of a person: (96, 96, 3) uint8 RGB."""
    d = Dice(SEED, number, k + 1)
    pixels = _background(d)
    canvas = Canvas(_moment(d), person)
    parts.draw_face(canvas, person, _cloth(d))
    _occlude(canvas, person, d)
    canvas.draw(pixels)
    for _ in range(2):  # exact: each 2 x 2 block to its rounded mean
        pixels = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return _expose(pixels, d)


def _moment(d: Dice) -> Moment:
    return Moment(
        yaw=d.bell(0.2),
        pitch=d.bell(0.09),
        roll=d.bell(0.08),
        scale=d.uniform(0.98, 1.16),
        shift=(d.uniform(-0.06, 0.06), d.uniform(-0.05, 0.05)),
        smile=d.uniform(-0.5, 1.0),
        open=d.uniform(0.1, 1.0) if d.chance(0.4) else 0.0,
        lids=d.uniform(0.45, 1.1),
        brows=d.uniform(-0.5, 1.0),
        gaze=(d.uniform(-1, 1), d.uniform(-1, 1)),
        sun=(d.uniform(-1, 1), d.uniform(-1, 0.3)),
    )


def _background(d: Dice) -> np.ndarray:
    pixels = np.empty((LARGE, LARGE, 3), np.uint8)
    cv2.rectangle(pixels, (0, 0), (LARGE, LARGE), _cloth(d), -1)
    for _ in range(d.below(6)):
        colour, kind = _cloth(d), d.below(3)
        x, y, size = d.below(LARGE), d.below(LARGE), LARGE // 8 + d.below(LARGE // 2)
        if kind == 0:
            cv2.circle(pixels, (x, y), size // 2, colour, -1)
        elif kind == 1:
            cv2.rectangle(pixels, (x, y), (x + size, y + size * 2), colour, -1)
        else:
            foot, far, wide = LARGE - x, LARGE - y + size, 4 + size // 12
            beam = [(x - wide, 0), (x + wide, 0), (foot + wide, far), (foot - wide, far)]
            cv2.fillConvexPoly(pixels, np.array(beam, np.int32), colour)
    return pixels


def _occlude(canvas: Canvas, person: Person, d: Dice) -> None:
    """In a third of the pictures something stands before the face."""
    what, colour = d.uniform(), _cloth(d)
    if what < 0.08:
        red, green, blue = (c // 4 for c in colour)
        parts.draw_sunglasses(canvas, person, (red, green, blue))
    elif what < 0.16:
        parts.draw_scarf(canvas, d.uniform(0.42, 0.66), colour)
    elif what < 0.24:
        side = 1 if d.chance(0.5) else -1
        parts.draw_hand(canvas, person, side, d.uniform(0.35, 0.5), d.uniform(0.3, 0.6))
    elif what < 0.32:
        for _ in range(1 + d.below(3)):
            x, slope, width = d.uniform(-1, 1), d.uniform(-0.4, 0.4), d.uniform(0.06, 0.16)
            parts.draw_bar(canvas, x, slope, width, colour)


def _cloth(d: Dice) -> tuple[int, int, int]:
    """A colour of clothes and walls: any, but never shrill."""
    return mix(d.colour(10, 245), (140, 136, 146), 0.22)


def _expose(small: np.ndarray, d: Dice) -> np.ndarray:
    """Light, lens and sensor, in integers: gain, colour cast and slope, blur, noise."""
    half = SIDE // 2
    ramp = np.arange(SIDE, dtype=np.int32) - half
    gain = d.uniform(0.8, 1.14)
    slope_x, slope_y = int(d.bell(420) / half), int(d.bell(500) / half)
    field = 1024 + slope_x * ramp[None, :] + slope_y * ramp[:, None]
    cast = np.array([int(1024 * gain * d.uniform(0.93, 1.07)) for _ in range(3)], np.int32)
    veil = int(d.uniform(0, 12))
    pixels = ((small.astype(np.int32) * field[:, :, None] >> 10) * cast >> 10) + veil
    for _ in range(d.below(4)):
        pixels = _blur(pixels)
    noise = d.bytes((2, SIDE, SIDE, 3)).astype(np.int32).sum(0) - 255
    pixels = pixels + (noise * int(d.uniform(2, 18)) >> 8)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _blur(pixels: np.ndarray) -> np.ndarray:
    """Binomial 1-2-1 in both directions."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), "edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:] + 8 >> 4


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """Reference features: 48 x 48 grey pixels, mean removed, unit norm.

    Args:
        images: (N, S, S, 3) uint8.

    Returns:
        (N, 2304) float32; cosine similarity compares them.
    """
    grey = [
        cv2.cvtColor(cv2.resize(x, (48, 48), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        for x in images
    ]
    flat = np.asarray(grey, np.float32).reshape(len(images), -1)
    return _unit(flat - flat.mean(1, keepdims=True))


def color_histogram(images: np.ndarray) -> np.ndarray:
    """Reference features: square roots of an 8 x 8 x 8 colour histogram, unit norm.

    Args:
        images: (N, S, S, 3) uint8.

    Returns:
        (N, 512) float32; their cosine similarity is the Bhattacharyya coefficient.
    """
    bins = np.empty((len(images), 512), np.float32)
    for i, image in enumerate(images):
        codes = (image >> 5).astype(np.int64) @ np.array([64, 8, 1])
        bins[i] = np.bincount(codes.ravel(), minlength=512)
    return _unit(np.sqrt(bins))


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

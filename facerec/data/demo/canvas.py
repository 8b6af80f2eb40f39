"""Shapes in a head's own frame, posed and filled the same way on every machine.

The frame: x to the right, y down, z to the viewer; the skull is about one unit from centre to crown.
Features lie on a bulging surface and turn with the head, so that yaw moves the nose further than the
eyes. Corners are rounded to 1/16 pixel, then OpenCV fills convex pieces in fixed point; of its drawing
functions those for concave polygons and thick curves differ between versions, and are not used.
"""

from __future__ import annotations

import cv2
import numpy as np

from facerec.data.demo.person import Colour, Moment, Person

BULGE = 0.62  # how far the middle of the face stands out
UNIT = np.round(
    np.stack([np.cos(np.arange(40) * (np.pi / 20)), np.sin(np.arange(40) * (np.pi / 20))], 1), 9
)
SMALL = UNIT[::4]
RUN = np.arange(9) / 8


class Canvas:
    """Shapes in the head's frame, collected back to front, then posed and filled all at once."""

    def __init__(self, moment: Moment, person: Person) -> None:
        self.moment, self.person = moment, person
        self._shapes: list[tuple[np.ndarray, bool, Colour, float, float]] = []

    def fill(
        self, points: np.ndarray, colour: Colour, lift: float | None = None, out: float = 0.0
    ) -> None:
        """Add a filled convex outline (n, 2).

        `lift` None lets the points ride on the surface of the face, `out` above it; a number is a fixed z,
        whose outline turns little.
        """
        self._shapes.append((points, False, colour, np.nan if lift is None else lift, out))

    def band(
        self,
        one: np.ndarray,
        other: np.ndarray,
        colour: Colour,
        lift: float | None = None,
        out: float = 0.0,
    ) -> None:
        """Add what lies between two lines of as many points, (n, 2) each."""
        both = np.concatenate([one, other])
        self._shapes.append((both, True, colour, np.nan if lift is None else lift, out))

    def stroke(
        self, points: np.ndarray, width: float, colour: Colour, lift: float | None = None
    ) -> None:
        """Add a line (n, 2), open or closed, of some width."""
        step = points[1:] - points[:-1]
        step = np.concatenate([step[:1], step[1:] + step[:-1], step[-1:]])
        if (points[0] == points[-1]).all():
            step[0] = step[-1] = step[0] + step[-1]
        length = np.sqrt(step[:, :1] ** 2 + step[:, 1:] ** 2) + 1e-9
        normal = step[:, ::-1] * [-1, 1] / length * (width / 2)
        self.band(points + normal, points - normal, colour, lift)

    def draw(self, pixels: np.ndarray) -> None:
        """Fill all shapes, in order, into (H, H, 3) uint8."""
        sizes = [len(shape[0]) for shape in self._shapes]
        corners = self._place(
            np.concatenate([shape[0] for shape in self._shapes]),
            np.repeat([shape[3] for shape in self._shapes], sizes),
            np.repeat([shape[4] for shape in self._shapes], sizes),
            len(pixels),
        )
        end = 0
        for (_, paired, colour, _, _), size in zip(self._shapes, sizes, strict=True):
            start, end = end, end + size
            pieces = corners[None, start:end]
            if paired:
                one, other = corners[start : start + size // 2], corners[start + size // 2 : end]
                pieces = np.stack([one[:-1], one[1:], other[1:], other[:-1]], 1)
            for piece in pieces:
                cv2.fillConvexPoly(pixels, piece, colour, cv2.LINE_8, 4)

    def _place(
        self, points: np.ndarray, lift: np.ndarray, out: np.ndarray, side: int
    ) -> np.ndarray:
        """Head frame (n, 2) -> pixels (n, 2) int32, in sixteenths."""
        m, p = self.moment, self.person
        x, y = points[:, 0], points[:, 1]
        riding = np.isnan(lift)
        reach = np.where(y < 0, p.crown, p.chin)
        dome = BULGE * np.sqrt(np.maximum(0.0, 1 - (x / p.width) ** 2 - (y / reach) ** 2)) + out
        z, turn = np.where(riding, dome, lift), np.where(riding, 1.0, 0.25)
        (cos_yaw, sin_yaw), (cos_pitch, sin_pitch) = _rotation(m.yaw), _rotation(m.pitch)
        cos_roll, sin_roll = _rotation(m.roll)
        x = x * (1 + turn * (cos_yaw - 1)) + z * sin_yaw
        y = y * (1 + turn * (cos_pitch - 1)) + z * sin_pitch
        x, y = x * cos_roll - y * sin_roll, x * sin_roll + y * cos_roll
        half, unit = side / 2, side / 2 * 0.68 * m.scale
        at = np.stack(
            [half * (1 + m.shift[0]) + unit * x, half * (1.02 + m.shift[1]) + unit * y], 1
        )
        return np.floor(at * 16 + 0.5).astype(np.int32)


def _rotation(half_turn: float) -> tuple[float, float]:
    """Cosine and sine of an angle given by the tangent of its half: plain arithmetic, exact everywhere."""
    t = half_turn
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> np.ndarray:
    """Outline (n, 2); `tilt` is the slope of its long axis."""
    unit = SMALL if rx + ry < 0.2 else UNIT
    points = unit * (rx, ry)
    if tilt:
        points[:, 1] += tilt * points[:, 0]
    return points + np.array((x, y))


def line(*points: tuple[float, float]) -> np.ndarray:
    """(9, 2) of a quadratic curve through three points, or (2, 2) of a straight line."""
    if len(points) == 2:
        return np.array(points)
    start, middle, end = np.array(points)
    t = RUN[:, None]
    return (1 - t) * (1 - 2 * t) * start + 4 * t * (1 - t) * middle + t * (2 * t - 1) * end

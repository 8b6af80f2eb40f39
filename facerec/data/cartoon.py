"""Drawing of one cartoon face: a person's geometry, a moment's pose and light, 96 x 96 pixels.

Shapes live in the head's own frame: x to the right, y down, z to the viewer; the skull is about one unit
from centre to crown. Features lie on a bulging surface and turn with the head, so that yaw moves the nose
further than the eyes. Corners are rounded to 1/16 pixel before OpenCV fills them in fixed point; all later
steps are integer arithmetic, so that a picture is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 96
SCALE = 4  # drawn this much larger, then averaged down
BULGE = 0.62  # how far the middle of the face stands out
UNIT = np.round(
    np.stack([np.cos(np.arange(40) * (np.pi / 20)), np.sin(np.arange(40) * (np.pi / 20))], 1), 9
)
Colour = tuple[int, int, int]

SKINS = (
    (255, 224, 196),
    (241, 194, 154),
    (224, 172, 124),
    (198, 134, 84),
    (150, 94, 58),
    (96, 60, 40),
)
HAIRS = (
    *((28, 24, 26), (60, 38, 26), (104, 64, 34), (154, 104, 52), (214, 172, 96), (182, 78, 36)),
    *(
        (160, 158, 156),
        (226, 222, 214),
        (150, 40, 60),
        (60, 70, 130),
        (40, 110, 100),
        (190, 90, 150),
    ),
)
IRISES = ((82, 52, 30), (126, 84, 38), (66, 104, 60), (60, 104, 152), (110, 124, 132), (30, 28, 32))


class Dice:
    """Random numbers that NumPy promises never to change: raw PCG64 output, scaled exactly."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def chance(self, p: float) -> bool:
        return self.uniform() < p

    def below(self, n: int) -> int:
        return int(self.uniform() * n)

    def bell(self, spread: float) -> float:
        """Sum of three uniforms: within +-1.5 spread, mostly near zero."""
        return (self.uniform() + self.uniform() + self.uniform() - 1.5) * spread

    def colour(self, low: int, high: int) -> Colour:
        return tuple(low + self.below(high - low + 1) for _ in range(3))

    def bytes(self, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        raw = self._bits.random_raw((count + 7) // 8).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """`a` at t = 0, `b` at t = 1."""
    return tuple(min(255, max(0, int(x + (y - x) * t + 0.5))) for x, y in zip(a, b, strict=True))


def dark(colour: Colour, t: float) -> Colour:
    return mix(colour, (30, 12, 24), t)


def light(colour: Colour, t: float) -> Colour:
    return mix(colour, (255, 248, 235), t)


class Person:
    """Everything that stays the same from picture to picture, drawn from one seed."""

    def __init__(self, seed: int, number: int) -> None:
        d = Dice(seed, number)
        u = d.uniform
        tone = u(0, len(SKINS) - 1.001)
        at = int(tone)
        self.skin = mix(mix(SKINS[at], SKINS[at + 1], tone - at), d.colour(120, 230), 0.10)
        self.hair = mix(HAIRS[d.below(len(HAIRS))], d.colour(10, 220), 0.14)
        self.iris = mix(IRISES[d.below(len(IRISES))], d.colour(20, 150), 0.15)
        self.lips = mix(self.skin, (190, 50, 70), u(0.25, 0.75))
        # skull and jaw
        self.width, self.crown, self.chin = u(0.62, 0.84), u(0.86, 1.02), u(0.82, 1.18)
        self.jaw_a, self.jaw_b = u(1.7, 4.2), u(0.42, 0.8)
        # eyes and brows
        self.eye_x, self.eye_y = u(0.26, 0.38), u(-0.10, 0.06)
        self.eye_w, self.eye_h, self.eye_tilt = u(0.12, 0.20), u(0.06, 0.125), u(-0.28, 0.28)
        self.iris_r = u(0.055, 0.085)
        self.brow_gap, self.brow_w, self.brow_h = u(0.15, 0.27), u(0.13, 0.22), u(0.016, 0.06)
        self.brow_tilt, self.brow_arch = u(-0.3, 0.3), u(0.0, 0.09)
        self.brow = mix(self.hair, (40, 26, 24), u(0.2, 0.8))
        # nose and mouth
        self.nose_len, self.nose_w, self.nose_bridge = u(0.24, 0.46), u(0.09, 0.21), u(0.03, 0.07)
        self.mouth_y, self.mouth_w = u(0.50, 0.66), u(0.16, 0.34)
        self.lip_top, self.lip_low = u(0.02, 0.075), u(0.03, 0.10)
        # ears
        self.ear_h, self.ear_out, self.ear_y = u(0.14, 0.27), u(0.02, 0.15), u(-0.05, 0.12)
        self.earring = d.colour(90, 250) if d.chance(0.2) else None
        self._choose_hair(d)
        self._choose_extras(d)

    def _choose_hair(self, d: Dice) -> None:
        u = d.uniform
        self.bald = d.chance(0.07)
        self.volume, self.quiff = u(0.03, 0.22), u(0.0, 0.22)
        self.hairline, self.part, self.slant = u(-0.72, -0.34), u(-0.45, 0.45), u(-0.28, 0.28)
        self.peak = u(-0.16, 0.28)  # hairline rises (or dips) at the parting
        self.zigzag = u(0.04, 0.10) if d.chance(0.3) else 0.0
        self.teeth = 3 + d.below(5)
        self.burns = u(-0.35, 0.35)
        self.back = ("none", "long", "none", "bob", "afro", "bun", "tails", "long")[d.below(8)]
        self.back_end, self.back_w, self.wave = u(0.75, 1.5), u(1.08, 1.4), u(0.0, 0.07)
        self.streak = light(self.hair, u(0.12, 0.3))

    def _choose_extras(self, d: Dice) -> None:
        u = d.uniform
        self.beard = ("none", "none", "none", "none", "full", "goatee", "moustache", "chinstrap")[
            d.below(8)
        ]
        self.beard_size = u(0.6, 1.0)
        self.beard_colour = mix(self.hair, self.skin, u(0.0, 0.35))
        self.glasses = ("none", "none", "none", "round", "square")[d.below(5)]
        self.frame, self.frame_w, self.frame_r = d.colour(10, 190), u(0.022, 0.045), u(0.19, 0.25)
        self.freckles = [
            (u(-0.45, 0.45), u(0.08, 0.36))
            for _ in range(10 + d.below(14) if d.chance(0.22) else 0)
        ]
        self.moles = [(u(-0.48, 0.48), u(-0.42, 0.82), u(0.022, 0.045)) for _ in range(d.below(4))]
        self.scar = (
            (u(-0.42, 0.42), u(-0.4, 0.6), u(-1, 1), u(0.14, 0.3)) if d.chance(0.18) else None
        )
        self.blush = u(0.1, 0.5) if d.chance(0.4) else 0.0


@dataclass
class Moment:
    """What changes from picture to picture."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: tuple[float, float]
    smile: float
    open: float
    lids: float
    brows: float
    gaze: tuple[float, float]
    sun: tuple[float, float]  # direction of the light on the face, each in [-1, 1]


class Canvas:
    """A picture four times too large, and the pose with which shapes reach it."""

    def __init__(self, moment: Moment, person: Person, colour: Colour) -> None:
        self.pixels = np.empty((SIDE * SCALE, SIDE * SCALE, 3), np.uint8)
        self.pixels[:] = colour
        self.moment, self.person = moment, person

    def place(self, points: np.ndarray, lift: float | None, out: float = 0.0) -> np.ndarray:
        """Head frame (n, 2) -> fixed-point pixels (n, 2) int32.

        `lift` None lets the points ride on the surface of the face, `out` above it; a number is a fixed z
        whose outline turns little.
        """
        m, p = self.moment, self.person
        x, y = points[:, 0], points[:, 1]
        if lift is None:
            below = np.where(y < 0, p.crown, p.chin)
            z = BULGE * np.sqrt(np.maximum(0.0, 1 - (x / p.width) ** 2 - (y / below) ** 2)) + out
            turn = 1.0
        else:
            z, turn = np.full_like(x, lift), 0.25
        cos_yaw, sin_yaw = _rotation(m.yaw)
        cos_pitch, sin_pitch = _rotation(m.pitch)
        cos_roll, sin_roll = _rotation(m.roll)
        x, y = (
            x * (1 + turn * (cos_yaw - 1)) + z * sin_yaw,
            y * (1 + turn * (cos_pitch - 1)) + z * sin_pitch,
        )
        x, y = x * cos_roll - y * sin_roll, x * sin_roll + y * cos_roll
        half = SIDE * SCALE / 2
        unit = half * 0.68 * m.scale
        at = np.stack(
            [half * (1 + m.shift[0]) + unit * x, half * (1.02 + m.shift[1]) + unit * y], 1
        )
        return np.floor(at * 16 + 0.5).astype(np.int32)

    def fill(
        self, points: np.ndarray, colour: Colour, lift: float | None = None, out: float = 0.0
    ) -> None:
        cv2.fillPoly(self.pixels, [self.place(points, lift, out)], colour, shift=4)

    def stroke(
        self, points: np.ndarray, width: float, colour: Colour, lift: float | None = None
    ) -> None:
        """A band of constant width along an open line."""
        step = np.gradient(points, axis=0)
        length = np.sqrt((step**2).sum(1, keepdims=True)) + 1e-9
        normal = np.stack([-step[:, 1], step[:, 0]], 1) / length * (width / 2)
        self.fill(np.concatenate([points + normal, (points - normal)[::-1]]), colour, lift)


def _rotation(half_turn: float) -> tuple[float, float]:
    """Cosine and sine of an angle given by the tangent of its half: plain arithmetic, exact everywhere."""
    t = half_turn
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> np.ndarray:
    px, py = UNIT[:, 0] * rx, UNIT[:, 1] * ry
    return np.stack([x + px, y + py + tilt * px], 1)


def line(*points: tuple[float, float], n: int = 12) -> np.ndarray:
    """A quadratic curve through three points, or a straight line through two."""
    t = np.linspace(0, 1, n)[:, None]
    p = np.array(points)
    if len(p) == 2:
        return p[0] + (p[1] - p[0]) * t
    control = 2 * p[1] - (p[0] + p[2]) / 2
    return (1 - t) ** 2 * p[0] + 2 * t * (1 - t) * control + t**2 * p[2]


def head_outline(p: Person, grow: float = 1.0, down: float = 0.0) -> np.ndarray:
    """Cranium and jaw, `grow` times as large about the eyes."""
    cos, sin = UNIT[:, 0], UNIT[:, 1]
    fall = np.maximum(0.0, 1 - np.maximum(sin, 0) ** p.jaw_a) ** p.jaw_b
    x = np.where(sin < 0, p.width * cos, p.width * fall * np.sign(cos))
    y = np.where(sin < 0, p.crown * sin, p.chin * sin)
    return np.stack([x, y + down], 1) * grow


def draw_back(c: Canvas, p: Person) -> None:
    """What lies behind the head: long hair, a bun, an afro."""
    if p.bald or p.back == "none":
        return
    shade, w = dark(p.hair, 0.25), p.width * p.back_w
    if p.back == "afro":
        c.fill(ellipse(0, -0.28, w * 1.2, p.crown * 1.12), p.hair, -0.1)
    elif p.back == "bun":
        c.fill(ellipse(p.part * 0.4, -p.crown - 0.14, 0.32, 0.26), p.hair, -0.15)
        c.stroke(
            line((-0.2 + p.part * 0.4, -p.crown - 0.2), (0.2 + p.part * 0.4, -p.crown - 0.1)),
            0.04,
            shade,
            -0.15,
        )
    elif p.back == "tails":
        for side in (-1, 1):
            c.fill(
                ellipse(side * (w + 0.08), 0.3, 0.2, 0.55 * p.back_end, side * 0.2), p.hair, -0.15
            )
    else:
        end = p.back_end if p.back == "long" else 0.5
        y = np.linspace(-0.5, end, 16)
        x = w * (1 + p.wave * np.where(np.arange(16) % 4 < 2, 1.0, -1.0))
        x[:3] *= np.array([0.8, 0.92, 0.98])
        sides = np.stack([x, y], 1)
        c.fill(np.concatenate([sides, (sides * [-1, 1])[::-1]]), shade, -0.2)


def draw_body(c: Canvas, p: Person, shirt: Colour) -> None:
    neck = np.array([(-0.3, 0.4), (0.3, 0.4), (0.34, 1.5), (-0.34, 1.5)])
    c.fill(ellipse(0, 2.05, 1.25, 0.85), shirt, -0.3)
    c.fill(neck, dark(p.skin, 0.28), -0.2)
    c.fill(ellipse(0, 1.5, 0.36, 0.16), dark(p.skin, 0.28), -0.2)
    c.stroke(line((-0.42, 1.35), (0, 1.72), (0.42, 1.35)), 0.09, dark(shirt, 0.3), -0.2)


def draw_head(c: Canvas, p: Person) -> None:
    sun = c.moment.sun
    for side in (-1, 1):
        x = side * (p.width * 0.97 + p.ear_out * 0.5)
        c.fill(ellipse(x, p.ear_y, 0.07 + p.ear_out * 0.6, p.ear_h), dark(p.skin, 0.12), -0.06)
        c.fill(
            ellipse(x, p.ear_y, 0.03 + p.ear_out * 0.35, p.ear_h * 0.6), dark(p.skin, 0.32), -0.06
        )
        if p.earring:
            c.fill(ellipse(x, p.ear_y + p.ear_h, 0.055, 0.055), p.earring, -0.05)
    c.fill(head_outline(p), dark(p.skin, 0.22), 0.0)
    for grow, share in ((0.95, 0.10), (0.88, 0.0)):
        lit = head_outline(p, grow) + np.array(sun) * (1 - grow) * 0.75
        c.fill(lit, dark(p.skin, share), 0.0)
    glow = ellipse(sun[0] * 0.2, -0.45 + sun[1] * 0.12, p.width * 0.5, 0.24)
    c.fill(glow, light(p.skin, 0.14))
    if p.blush:
        for side in (-1, 1):
            c.fill(ellipse(side * 0.4, 0.27, 0.13, 0.09), mix(p.skin, (225, 80, 90), p.blush * 0.6))


def draw_marks(c: Canvas, p: Person) -> None:
    for x, y in p.freckles:
        c.fill(ellipse(x, y, 0.016, 0.016), dark(mix(p.skin, (150, 70, 30), 0.4), 0.15))
    for x, y, r in p.moles:
        c.fill(ellipse(x, y, r, r), dark(p.skin, 0.68))
    if p.scar:
        x, y, slope, size = p.scar
        ends = line((x - size / 2, y - size / 2 * slope), (x + size / 2, y + size / 2 * slope))
        c.stroke(ends, 0.035, mix(p.skin, (200, 90, 90), 0.55))


def draw_beard(c: Canvas, p: Person) -> None:
    if p.beard in ("full", "chinstrap"):
        outline = head_outline(p, 1.02)
        low = outline[outline[:, 1] > 0.12]
        low = low[np.argsort(low[:, 0], kind="stable")]
        rise = 0.36 if p.beard == "full" else 0.62 + 0.2 * p.beard_size
        top = line((low[-1, 0], low[-1, 1]), (0, rise * p.chin), (low[0, 0], low[0, 1]))
        c.fill(np.concatenate([low, top]), p.beard_colour, 0.12)
    if p.beard == "goatee":
        c.fill(ellipse(0, p.chin * 0.86, 0.2 * p.beard_size, 0.2), p.beard_colour)
    if p.beard in ("full", "goatee", "moustache"):
        y, w = p.mouth_y - p.lip_top - 0.05, p.mouth_w * (0.7 + 0.5 * p.beard_size)
        for side in (-1, 1):
            c.fill(
                ellipse(side * w * 0.5, y, w * 0.58, 0.065, side * 0.3), p.beard_colour, None, 0.06
            )


def draw_mouth(c: Canvas, p: Person) -> None:
    m, y, w = c.moment, p.mouth_y, p.mouth_w * (1 + 0.18 * c.moment.smile)
    lift = -0.11 * m.smile
    left, right, middle = (-w, y + lift), (w, y + lift), (0, y)
    gap = 0.13 * m.open
    upper = np.concatenate(
        [
            line(left, (-w * 0.35, y - p.lip_top * 0.75), (0, y - p.lip_top * 0.6), n=8),
            line((0, y - p.lip_top * 0.6), (w * 0.35, y - p.lip_top * 0.75), right, n=8),
            line(right, middle, left),
        ]
    )
    lower = np.concatenate([line(left, (0, y + gap + p.lip_low), right), line(right, middle, left)])
    c.fill(upper, dark(p.lips, 0.14))
    c.fill(lower, p.lips)
    hole = np.concatenate([line(left, (0, y + gap), right), line(right, middle, left)]) * [
        0.92,
        1,
    ] + [0, 0.005]
    if gap > 0.03:
        c.fill(hole, (92, 26, 34))
        teeth = np.concatenate(
            [line(left, (0, y + gap * 0.45), right), line(right, middle, left)]
        ) * [0.78, 1] + [0, 0.01]
        c.fill(teeth, (246, 240, 230))
    else:
        c.stroke(line(left, middle, right), 0.025, dark(p.lips, 0.55))


def draw_nose(c: Canvas, p: Person) -> None:
    top, tip, w = p.eye_y + 0.03, p.eye_y + 0.06 + p.nose_len, p.nose_w
    away = -1 if c.moment.sun[0] > 0 else 1
    side = np.array([(away * p.nose_bridge, top), (away * w, tip), (0, tip + 0.02), (0, top)])
    c.fill(side, dark(p.skin, 0.13), None, 0.05)
    c.fill(ellipse(0, tip - 0.02, w * 0.62, w * 0.5), light(p.skin, 0.08), None, 0.13)
    for s in (-1, 1):
        c.fill(ellipse(s * w * 0.72, tip, w * 0.34, w * 0.34), dark(p.skin, 0.07), None, 0.05)
        c.fill(
            ellipse(s * w * 0.46, tip + w * 0.22, w * 0.2, w * 0.12), dark(p.skin, 0.6), None, 0.07
        )


def draw_eyes(c: Canvas, p: Person) -> None:
    m = c.moment
    for s in (-1, 1):
        x, y, h = s * p.eye_x, p.eye_y, p.eye_h * m.lids
        tilt = s * p.eye_tilt
        c.fill(ellipse(x, y - 0.015, p.eye_w * 1.18, p.eye_h * 1.35, tilt), dark(p.skin, 0.16))
        c.fill(ellipse(x, y, p.eye_w, h, tilt), (250, 246, 240))
        r = min(p.iris_r, h * 1.02)
        gx, gy = x + m.gaze[0] * p.eye_w * 0.35, y + m.gaze[1] * h * 0.25
        c.fill(ellipse(gx, gy, min(p.iris_r, p.eye_w * 0.7), r), p.iris)
        c.fill(ellipse(gx, gy, r * 0.5, r * 0.5), (16, 12, 16))
        c.fill(ellipse(gx + 0.022, gy - 0.022, 0.016, 0.016), (255, 255, 255))
        ends = [(x - p.eye_w, y - tilt * p.eye_w), (x, y - h), (x + p.eye_w, y + tilt * p.eye_w)]
        c.stroke(line(*ends), 0.035, dark(p.skin, 0.8))
        brow_y, w = p.eye_y - p.brow_gap - 0.07 * m.brows, p.brow_w
        slope = s * p.brow_tilt * w
        brow = line((x - w, brow_y - slope), (x, brow_y - p.brow_arch), (x + w, brow_y + slope))
        c.stroke(brow, p.brow_h * 2, p.brow)


def draw_hair(c: Canvas, p: Person) -> None:
    """The cap of hair over the forehead: an outer arc and a hairline with its own shape."""
    if p.bald:
        return
    arc = UNIT[20 : 41 - 1]  # left temple over the crown to the right one
    grow = np.array([p.width + p.volume * 0.8, p.crown + p.volume])
    outer = arc * grow
    outer[:, 1] -= p.quiff * np.maximum(0.0, 1 - np.abs(outer[:, 0] - p.part * 0.6) / 0.6)
    outer = np.concatenate([[(-grow[0] * 0.98, p.burns)], outer, [(grow[0] * 0.98, p.burns)]])
    x = np.linspace(p.width * 0.93, -p.width * 0.93, 2 * p.teeth * 2 + 1)
    bend = np.abs(x - p.part) / p.width
    y = (
        p.hairline
        - p.peak * np.maximum(0.0, 1 - bend * 1.6)
        + p.slant * x
        + 0.22 * (x / p.width) ** 4
    )
    y = y + p.zigzag * np.where(np.arange(len(x)) % 2, 1.0, -1.0)
    front = np.stack([x, np.maximum(y, -p.crown * 0.97)], 1)
    front[0, 1] = front[-1, 1] = max(p.burns, p.hairline)
    c.fill(np.concatenate([outer, front]), p.hair, 0.1)
    for k in range(3):
        a = -0.5 + 0.4 * k + p.part * 0.3
        top = -(p.crown + p.volume) * (0.96 - 0.25 * a * a)
        c.stroke(
            line(
                (a * 0.8, top),
                (a * 0.95, (top + p.hairline) / 2 - 0.05),
                (a, min(top + 0.34, p.hairline - 0.1)),
            ),
            0.035,
            p.streak,
            0.12,
        )


def draw_glasses(c: Canvas, p: Person, tint: Colour | None = None) -> None:
    """Frames, or with `tint` sunglasses that hide the eyes."""
    frame, r = (p.frame, p.frame_r) if tint is None else (tint, 0.25)
    for s in (-1, 1):
        ring = ellipse(s * p.eye_x, p.eye_y + 0.01, r, r * 0.88)
        if p.glasses == "square" and tint is None:
            ring = np.array([s * p.eye_x, p.eye_y]) + r * np.clip(UNIT * 1.25, -1, 1) * [1, 0.78]
        if tint is not None:
            c.fill(ring, tint, None, 0.08)
        place = c.place(np.concatenate([ring, ring[:1]]), None, 0.08)
        width = max(1, int(p.frame_w * SIDE * SCALE * 0.34 * c.moment.scale + 0.5))
        cv2.polylines(c.pixels, [place], False, frame, width, cv2.LINE_8, 4)
        c.stroke(line((s * (p.eye_x + r), p.eye_y), (s * p.width, p.eye_y - 0.04)), 0.05, frame)
    inner = max(0.03, p.eye_x - r)
    c.stroke(line((-inner, p.eye_y), (0, p.eye_y - 0.05), (inner, p.eye_y)), 0.05, frame)


def draw_face(c: Canvas, p: Person, shirt: Colour) -> None:
    """The whole person, back to front."""
    draw_back(c, p)
    draw_body(c, p, shirt)
    draw_head(c, p)
    draw_marks(c, p)
    draw_beard(c, p)
    draw_nose(c, p)
    draw_mouth(c, p)
    draw_eyes(c, p)
    draw_hair(c, p)
    if p.glasses != "none":
        draw_glasses(c, p)

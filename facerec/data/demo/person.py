"""Who is drawn in the demo data set: a person's looks, and what changes from picture to picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
        red, green, blue = (low + self.below(high - low + 1) for _ in range(3))
        return red, green, blue

    def bytes(self, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        raw = self._bits.random_raw((count + 7) // 8).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """`a` at t = 0, `b` at t = 1."""
    red, green, blue = (
        min(255, max(0, int(x + (y - x) * t + 0.5))) for x, y in zip(a, b, strict=True)
    )
    return red, green, blue


def dark(colour: Colour, t: float) -> Colour:
    """Towards shade by t in [0, 1]."""
    return mix(colour, (30, 12, 24), t)


def light(colour: Colour, t: float) -> Colour:
    """Towards light by t in [0, 1]."""
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
        self.lock = 1 + d.below(3)  # width of a strand of the fringe
        self.burns = u(-0.35, 0.35)
        self.back = ("none", "long", "none", "bob", "afro", "bun", "tails", "long")[d.below(8)]
        self.back_end, self.back_w, self.wave = u(0.75, 1.5), u(1.08, 1.4), u(0.0, 0.07)
        self.streak = light(self.hair, u(0.06, 0.2))

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

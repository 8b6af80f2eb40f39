"""The model as MLflow runs it: a models-from-code file, logged by registry.py with the package beside it.

A frame with a column `image` gives embeddings, one with `image_a` and `image_b` gives verdicts, each a frame with the
index of what was asked; behind MLflow's server embeddings are lists of numbers in the same order. Within a process
an image is a path, the bytes of a picture file, or base64; behind an HTTP server, and for `mlflow models predict`,
which poses as one, it is base64 and nothing else, so that no request can read the server's files.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PythonModel

from facerec.data.decoding import PictureError
from facerec.errors import InputError
from facerec.inference.embedder import FaceEmbedder
from facerec.serving.bounded import BoundedEmbedder
from facerec.serving.decoder import NoDecoder, TooSlow
from facerec.serving.limits import PREFIX, Limits

SHORTEST = 64  # characters of a picture file in base64
# Any of these says that requests come through MLflow; who serves in another way sets FACEREC_SERVING=1.
SERVER_VARIABLES = ("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "__pyfunc_model_path__")
SERVER_MODULES = ("mlflow.pyfunc.scoring_server.app", "mlserver", "mlserver_mlflow")


class FaceModel(PythonModel):
    """FaceEmbedder behind MLflow's predict.

    Attributes:
        limits: of a request, from the environment.
    """

    def load_context(self, context: Any) -> None:
        """Load the model folder, on CUDA where there is one, or on FACEREC_DEVICE."""
        device = os.environ.get("FACEREC_DEVICE", "auto")
        self.load(context.artifacts["face_model"], device, is_served())

    def load(self, source: str | PathLike[str], device: str, served: bool) -> None:
        """Load a model; `source` and `device` as of FaceEmbedder.load, the limits from the environment.

        Args:
            served: to requests, so that images must be decodable in another process.
        """
        self.limits = Limits.from_environment()
        self._embedder = FaceEmbedder.load(source, device)
        self._bounded = BoundedEmbedder(self._embedder, self.limits)
        if served:
            self._bounded.check()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame | np.ndarray:
        """Embeddings or verdicts, a row for each row of the input.

        Args:
            model_input: DataFrame with `image`, or with `image_a` and `image_b`; of a server within its limits.
            params: `far`, the false accept rate of a verdict; `flip`, `align` and `choice` as FaceEmbedder.embed
                takes them.

        Returns:
            A DataFrame with the input's index. For `image` its columns are embedding_0 to embedding_{E-1}, float32 of
            unit length; for pairs similarity, probability, same_person. Behind MLflow's server, whose answers have no
            index, embeddings are (N, E) float32.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, with one sentence; of a server TEMPORARILY_UNAVAILABLE where the
                request takes longer than its limit.
        """
        try:
            return self._predict(model_input, params or {})
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        except TooSlow:
            raise MlflowException(
                "the request was given up: its images take too long to decode, or the server is busy; send fewer at a "
                f"time, or try again later (a request has {self.limits.seconds:g} seconds, {PREFIX}SECONDS)",
                TEMPORARILY_UNAVAILABLE,
            ) from None
        except NoDecoder as error:
            raise MlflowException(
                f"images cannot be decoded: {error}", TEMPORARILY_UNAVAILABLE
            ) from None

    def _predict(self, frame: Any, params: dict[str, Any]) -> Any:
        how = {
            name: params[name]
            for name in ("flip", "align", "choice")
            if params.get(name) is not None
        }
        columns = _columns(frame)
        if is_served():
            self.limits.check(rows=len(frame))
        if len(columns) == 1:
            (embeddings,) = self._embed(columns, how)
            if is_behind_mlflow():
                return embeddings  # in JSON, lists of numbers
            names = [f"embedding_{i}" for i in range(embeddings.shape[1])]
            return pd.DataFrame(embeddings, index=frame.index, columns=names)
        far = 1e-3 if params.get("far") is None else float(params["far"])
        self._embedder.judge(0.0, far)  # an impossible FAR is told before any work
        a, b = self._embed(columns, how)
        verdicts = [self._embedder.judge(float(s), far) for s in np.clip((a * b).sum(1), -1, 1)]
        fields = ("similarity", "probability", "same_person")
        rows = {name: [getattr(v, name) for v in verdicts] for name in fields}
        return pd.DataFrame(rows, index=frame.index)

    def _embed(self, columns: list[pd.Series], how: dict[str, Any]) -> list[np.ndarray]:
        """Of each column of pictures (N, E) embeddings; an error names the column and the picture in it."""
        labels = [[f"{c.name}, picture {i}" for i in range(1, len(c) + 1)] for c in columns]
        pictures = [list(map(_picture, *column)) for column in zip(columns, labels, strict=True)]
        if is_served():
            both = self._bounded.embed([*chain(*pictures)], [*chain(*labels)], **how)
            return np.split(both, len(columns))
        names = [str(column.name) for column in columns]
        return [self._embed_here(*column, how) for column in zip(names, pictures, strict=True)]

    def _embed_here(self, name: str, pictures: list[Any], how: dict[str, Any]) -> np.ndarray:
        """Within the caller's own process: without limits, and paths are pictures too."""
        try:
            return self._embedder.embed(pictures, **how)
        except PictureError as error:
            raise InputError(f"{name}, {error}") from None


def _columns(frame: Any) -> list[pd.Series]:
    """The one column `image`, or the two of a pair."""
    if not isinstance(frame, pd.DataFrame):
        raise InputError("a table is expected, with a column image, or with image_a and image_b")
    names = [n for n in ("image", "image_a", "image_b") if n in frame]
    given = [n for n in names if frame.empty or not frame[n].isna().all()]
    if given not in (["image"], ["image_a", "image_b"]):
        raise InputError(
            "either a column image is expected, or both of image_a and image_b; with values in them are given: "
            + (", ".join(given) or "none of these")
        )
    return [frame[name] for name in given]


def _picture(value: Any, where: str) -> Any:
    """Bytes of a picture file, or within a process its path."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    served = is_served()
    if not served and (isinstance(value, os.PathLike) or _is_path(value)):
        return value
    if not isinstance(value, str):
        raise InputError(f"{where}: not an image, but of type {type(value).__name__}")
    try:
        text = "".join((value.partition("base64,")[2] or value).split())  # some tools wrap lines
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        if not served:
            return value
        raise InputError(
            f"{where}: not valid base64; a server takes the bytes of a picture file as base64 and no paths or URLs"
        ) from None


def _is_path(value: Any) -> bool:
    """Whether a text is too short for a picture in base64, or names a file."""
    return isinstance(value, str) and (len(value) < SHORTEST or os.path.exists(value))


def is_served() -> bool:
    """Whether predictions answer requests from outside this process."""
    return _is_set("FACEREC_SERVING") or is_behind_mlflow()


def is_behind_mlflow() -> bool:
    """Whether MLflow's server, or MLServer, turns what predict returns into JSON."""
    return any(map(_is_set, SERVER_VARIABLES)) or any(n in sys.modules for n in SERVER_MODULES)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false")


set_model(FaceModel())

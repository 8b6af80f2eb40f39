"""The model folder: a trained network and all that is needed to use and to judge it, as safetensors, JSON, Markdown.

    config.json            what the network is, which pictures it takes, checksums of the other files
    weights.safetensors    its weights
    calibration.json       thresholds and probabilities, from the validation people
    provenance.json        whom and what it was trained on, as salted hashes, and the recipe
    MODEL_CARD.md          the same for people

Reading trusts nothing: sizes are judged before bytes are read, the configuration says which tensors of which
shapes must be there before memory is taken for them, and nothing is unpickled. Every fault is one InputError.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from facerec import __version__
from facerec.data.align import AlignSettings
from facerec.data.files import beside
from facerec.model.network import NetworkSettings, build_network
from facerec.settings import InputError, Settings, one_line, validate
from facerec.untrusted import parse_object, read_bytes

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "weights.safetensors", "MODEL_CARD.md"
CALIBRATION, PROVENANCE = "calibration.json", "provenance.json"
FILES = (CONFIG, WEIGHTS, CALIBRATION, PROVENANCE, CARD)
MAX_BYTES = {CONFIG: 2**20, CALIBRATION: 2**24, PROVENANCE: 2**29, WEIGHTS: 2**33}


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
    calibration: dict[str, Any]
    provenance: dict[str, Any]


# ---- writing


def write_model(
    folder: Path | str,
    network: nn.Module,
    settings: Settings,
    *,
    calibration: dict[str, Any],
    provenance: dict[str, Any],
    card: str,
) -> Path:
    """Write a model folder, whole or not at all: beside its place, then renamed into it.

    Args:
        folder: its place; a model folder that is there is replaced, any other folder is left alone.
        network: what `build_network(settings)` made; on any device, it is not changed.
        settings: NetworkSettings, `image_size` and `crop`, and AlignSettings where there are any.
        calibration: thresholds per FAR, from the validation people.
        provenance: see `facerec.provenance.provenance`.
        card: Markdown, see `facerec.provenance.model_card`.

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
        CALIBRATION: to_json(calibration),
        PROVENANCE: to_json(provenance),
        CARD: card.encode("utf-8", "backslashreplace"),
    }
    content[CONFIG] = to_json(_config(settings, content).model_dump())
    draft = beside(folder)
    try:
        draft.mkdir(parents=True)
        for name, data in content.items():
            _write(draft / name, data)
        _swap(draft, folder)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(
            f"model folder {folder} cannot be written: {reason}; free space or choose another place"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def to_json(value: Any) -> bytes:
    """JSON for people and machines; NaN and infinity, which JSON does not have, are an error.

    Raises:
        ValueError, TypeError: the value has no JSON.
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
    """Rename `draft` to `folder`; what was there goes aside first and comes back if that fails."""
    if not folder.exists():
        draft.rename(folder)
        return
    aside = folder.with_name(f"{draft.name}.old")
    folder.rename(aside)
    try:
        draft.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


# ---- reading


def read_model(folder: Path | str) -> LoadedModel:
    """Read a model folder.

    Args:
        folder: as `write_model` left it. The model card may be missing, any other file may not.

    Raises:
        InputError: missing, swapped, altered or truncated files, links out of the folder, weights that do not
            fit the configuration, unknown keys, or a format of another version.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"model {folder}: a file, where a model folder is due")
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise InputError(f"model folder {folder}: there is no such folder{where}")
    config = read_config(folder)
    content = {}
    for name in (CALIBRATION, PROVENANCE):
        content[name] = parse_object(folder, name, _checked(folder, name, MAX_BYTES[name], config))
    data = _checked(folder, WEIGHTS, MAX_BYTES[WEIGHTS], config)
    with torch.inference_mode(False), torch.device("cpu"):  # whatever the caller's are
        network = _build(folder, config, len(data))
        network.load_state_dict(_tensors(folder, data, network.state_dict()))
    return LoadedModel(network.eval(), config, content[CALIBRATION], content[PROVENANCE])


def read_config(folder: Path) -> ModelConfig:
    """config.json of a model folder; the scan back end in it is `auto`.

    Raises:
        InputError: missing, no JSON, unknown keys or values out of range, or of another format.
    """
    values = parse_object(folder, CONFIG, read_bytes(folder, CONFIG, MAX_BYTES[CONFIG]))
    where = f"{folder / CONFIG}"
    version = values.get("format")
    if version != FORMAT or isinstance(version, bool):
        raise InputError(
            f"{where}: format {str(version)[:20]!r} is unknown, {FORMAT} is due; update facerec"
        )
    network = values.get("network")
    if not isinstance(network, dict):
        raise InputError(f"{where}: network is missing")
    try:
        part = validate(NetworkSettings, network, lambda key: f"network in {CONFIG}")
        config = validate(ModelConfig, {**values, "network": part}, lambda key: CONFIG)
    except InputError as error:
        raise InputError(f"{where}: {str(error)[:500]}") from None
    # Which kernels trained it says nothing about the machine that uses it.
    network = config.network.model_copy(update={"scan_backend": "auto"})
    return config.model_copy(update={"network": network})


def _checked(folder: Path, name: str, limit: int, config: ModelConfig) -> bytes:
    """Bytes of a file whose checksum stands in config.json."""
    data = read_bytes(folder, name, limit)
    if hashlib.sha256(data).hexdigest() != config.sha256.get(name):
        raise InputError(
            f"{folder}: {name} is damaged or belongs to another model: its SHA-256 is not the one in {CONFIG}"
        )
    return data


class _Apart(TorchFunctionMode):
    """Builds a network whose weights come from a file, apart from whoever trains in this process, in any thread.

    What it draws comes from a generator of its own: the global random numbers stay where they are. A network that is
    larger than its weights file is stopped.
    """

    factories = frozenset(
        {torch.empty, torch.randn, torch.rand, torch.zeros, torch.ones, torch.tensor}
    )
    drawing = frozenset(
        {torch.rand, torch.randn, Tensor.uniform_, Tensor.normal_}
        | {nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_}
    )

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit
        self.generator = torch.Generator("cpu")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.drawing and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        result = func(*args, **kwargs)
        if func in self.factories:
            self.left -= result.nbytes
            if self.left < 0:
                raise InputError(f"makes a larger network than the one in {WEIGHTS}")
        return result


def _build(folder: Path, config: ModelConfig, weights_bytes: int) -> nn.Module:
    """The configured network with fresh weights, if it can have come from a file of that size."""
    try:
        with _Apart(4 * weights_bytes + 2**20):
            return build_network(config.network, config.image_size)
    except (InputError, ValueError, RuntimeError, AssertionError, TypeError, MemoryError) as error:
        raise InputError(f"{folder / CONFIG}: {one_line(error)[:300]}") from None


def _tensors(folder: Path, data: bytes, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, each of the expected shape and type, all finite; float16 stands for float32."""
    try:
        tensors = safetensors.torch.load(data)
    except (
        SafetensorError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:
        reason = one_line(error)[:200]
        raise InputError(
            f"{folder}: {WEIGHTS} is no safetensors file, or cut short: {reason}"
        ) from None
    for name in sorted(expected.keys() ^ tensors.keys()):
        what = "lacks" if name in expected else "holds the unknown"
        raise InputError(
            f"{folder}: {WEIGHTS} {what} tensor {name[:100]}; {CONFIG} is of another network"
        )
    for name, tensor in tensors.items():
        due = expected[name]
        if (
            tensor.dtype == torch.float16 and due.dtype == torch.float32
        ):  # as shipped models have it
            tensor = tensors[name] = tensor.float()
        if tensor.shape != due.shape or tensor.dtype != due.dtype:
            raise InputError(
                f"{folder}: {WEIGHTS}: {name} is {tuple(tensor.shape)} {tensor.dtype}, "
                f"but {CONFIG} makes it {tuple(due.shape)} {due.dtype}"
            )
        if not math.isfinite(tensor.double().sum()):
            raise InputError(f"{folder}: {WEIGHTS}: {name} holds NaN or infinity")
    return tensors

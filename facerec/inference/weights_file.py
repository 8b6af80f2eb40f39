"""The weights of a model folder: a safetensors file, believed only as far as the configuration bears it out.

The header is read first: the file must be as long as it says, and hold the tensors of the network that config.json
describes, each of its shape and type; only then are the weights read.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from facerec.errors import InputError
from facerec.model.network import build_network
from facerec.runtime.text import brief, shown
from facerec.runtime.untrusted import Record, as_record, check_sum, opened, parse_object

if TYPE_CHECKING:
    from facerec.inference.model_io import ModelConfig

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
MAX_WEIGHTS = 2**33  # bytes of the file, and of its network
MAX_HEADER = 2**20  # bytes; a sixth are those of 1,500 tensors, the most of a configuration
# Types of tensors: bytes of an element, and what it is in memory; half precision is how models are shipped.
StoredType = Literal["F32", "F16", "I64"]
STORED: dict[StoredType, tuple[int, torch.dtype]] = {
    "F32": (4, torch.float32),
    "F16": (2, torch.float32),
    "I64": (8, torch.int64),
}


def read_network(folder: Path, config: ModelConfig) -> nn.Module:
    """The configured network with the weights of the file.

    Raises:
        InputError: missing, damaged, larger than its header or the configuration says, or of another network.
    """
    with opened(folder, WEIGHTS, MAX_WEIGHTS) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        head += file.read(min(int.from_bytes(head, "little"), MAX_HEADER))
        header = _header(folder, head, size)
        network = _build(folder, config, 4 * sum(tensor.elements for tensor in header.values()))
        _compare(folder, header, network.state_dict())
        file.seek(0)
        data = file.read(size)  # no more than the header and the network have accounted for
    check_sum(folder, WEIGHTS, data, config.sha256.get(WEIGHTS), CONFIG)
    network.load_state_dict(_tensors(folder, data))
    return network


class _Tensor(Record):
    """What the header of a safetensors file says of a tensor."""

    dtype: StoredType
    shape: list[Annotated[int, Field(ge=0, le=2**40)]] = Field(max_length=8)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def _header(folder: Path, head: bytes, size: int) -> dict[str, _Tensor]:
    """The tensors of a weights file of `size` bytes that begins with `head`."""
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER or len(head) < 8 + length:
        raise InputError(f"{folder}: {WEIGHTS} is no safetensors file, or cut short")
    where = f"header of {WEIGHTS}"
    values = parse_object(folder, where, head[8:])
    values.pop("__metadata__", None)
    header = {
        name: as_record(_Tensor, value, f"{folder}: {where}: {shown(name, 100)}")
        for name, value in values.items()
    }
    told = 8 + length + sum(STORED[t.dtype][0] * t.elements for t in header.values())
    if told != size:
        raise InputError(
            f"{folder}: {WEIGHTS} has {size:,} bytes, and its header makes it {told:,}: cut short, or altered"
        )
    return header


def _compare(folder: Path, header: dict[str, _Tensor], expected: dict[str, Tensor]) -> None:
    """Each tensor of the network is in the file, of its shape and type, and no other."""
    if different := sorted(expected.keys() ^ header.keys()):
        name = different[0]
        what = "lacks" if name in expected else "holds the unknown"
        raise InputError(
            f"{folder}: {WEIGHTS} {what} tensor {shown(name, 100)}; {CONFIG} is of another network"
        )
    for name, tensor in header.items():
        shape, dtype = tuple(tensor.shape), STORED[tensor.dtype][1]
        own = expected[name]
        if (shape, dtype) != (tuple(own.shape), own.dtype):
            raise InputError(
                f"{folder}: {WEIGHTS}: {shown(name, 100)} is {shape} {tensor.dtype}, "
                f"but {CONFIG} makes it {tuple(own.shape)} {own.dtype}"
            )


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


def _build(folder: Path, config: ModelConfig, most: int) -> nn.Module:
    """The configured network with fresh weights, if they take at most so many bytes."""
    try:
        with _Apart(min(most, MAX_WEIGHTS) + 2**20):
            return build_network(config.network, config.image_size)
    except (InputError, ValueError, RuntimeError, AssertionError, TypeError, MemoryError) as error:
        raise InputError(f"{folder / CONFIG}: {brief(error)}") from None


def _tensors(folder: Path, data: bytes) -> dict[str, Tensor]:
    """The weights, all finite; float16 stands for float32."""
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{folder}: {WEIGHTS} is no safetensors file: {brief(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float16:
            tensors[name] = tensor.float()
        if not math.isfinite(tensor.double().sum()):
            raise InputError(f"{folder}: {WEIGHTS}: {shown(name, 100)} holds NaN or infinity")
    return tensors

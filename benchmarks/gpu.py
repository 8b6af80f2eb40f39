"""The scan and the whole network on an NVIDIA card: parity first, then times against what the card can do.

    python benchmarks/gpu.py --json gpu.json     on a machine with a card; under eight minutes
    python benchmarks/gpu.py --dry-run           the same control flow on a CPU, interpreted, on tiny shapes

Needs torch, triton, numpy and this repository. Floors: the bytes that must be read and written once, over the
measured rate of a copy; for the scan also the exponentials, over their measured rate, and the larger counts; for the
network as many bytes as its layers would move one by one. `xfloor` is a row's time over its floor.

Axes: B batch, L tokens, D channels, N states.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--dry-run", action="store_true", help="on a CPU, interpreted, tiny shapes")
parser.add_argument("--no-pydantic", action="store_true", help="do as if pydantic were missing")
parser.add_argument("--json", type=Path, help="where to write the results too")
parser.add_argument("--seconds", type=float, default=330, help="start no row after so long")
options = parser.parse_args() if __name__ == "__main__" else parser.parse_args(["--dry-run"])
if options.dry_run:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from facerec.model import mamba_ssm_bridge  # noqa: E402
from facerec.model.mamba import Mamba  # noqa: E402
from facerec.model.scan import causal_conv1d, selective_scan  # noqa: E402

STARTED = time.monotonic()
DEVICE = "cpu" if options.dry_run else "cuda"
# Of a tensor's largest value, against float64 from the same inputs.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
SCAN_SHAPES = [(1024, 64, 384, 16), (64, 4096, 768, 16), (1, 64, 384, 16)]
PARITY_SHAPES = [(2, 70, 100, 16), (3, 33, 64, 5), (1, 9, 48, 64), (2, 5, 24, 256), (1, 1, 1, 1)]
IMAGE, BATCH, D_MODEL, DEPTH = 64, 1024, 192, 8
if options.dry_run:
    SCAN_SHAPES, PARITY_SHAPES = [(2, 6, 8, 2), (1, 5, 4, 2)], [(1, 3, 6, 3)]
    IMAGE, BATCH, D_MODEL, DEPTH = 16, 2, 8, 2


class Row(NamedTuple):
    """One line of the table; times and floor in milliseconds, memory in MiB."""

    what: str
    shape: str
    dtype: str
    backend: str
    forward: float | None
    both: float | None  # forward and backward
    forward_floor: float | None = None
    both_floor: float | None = None
    memory: float | None = None
    note: str = ""


class Card(NamedTuple):
    """What the card can do: bytes and exponentials a second."""

    bandwidth: float
    exponentials: float


def backends() -> list[str]:
    """The scan's back ends that run here, the slow reference last."""
    return [
        "triton",
        *(["mamba-ssm"] if mamba_ssm_bridge.kernels() and not options.dry_run else []),
    ]


def milliseconds(run: Callable[[], Any], least: float = 0.3) -> float:
    """Median time of a call, after warming up; `least` seconds of calls, between 3 and 100."""
    run()
    synchronize()
    began = time.perf_counter()
    run()
    synchronize()
    once = time.perf_counter() - began
    count = 1 if options.dry_run else max(3, min(100, int(least / once)))
    if DEVICE == "cpu":
        return once * 1e3
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    synchronize()
    pairs = itertools.pairwise(marks)
    return statistics.median(first.elapsed_time(second) for first, second in pairs)


def synchronize() -> None:
    """Waits for the card."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def in_time() -> bool:
    """Whether another row may be started."""
    return time.monotonic() - STARTED < options.seconds


# What the card can do.


@triton.jit
def _exponentials(out, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = -1.0 / (1.0 + at.to(tl.float32))
    for _ in range(ROUNDS):
        x = tl.exp2(-x)
    tl.store(out + at, x)


def measure_card() -> Card:
    """Bytes a second of a copy of 1 GiB, exponentials a second out of registers."""
    source = torch.empty(2**10 if options.dry_run else 2**28, device=DEVICE)
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source))
    programs, block, rounds = (2, 64, 2) if options.dry_run else (132 * 64, 1024, 1024)
    out = torch.empty(programs * block, device=DEVICE)
    powers = milliseconds(lambda: _exponentials[(programs,)](out, rounds, block, num_warps=4))
    bandwidth = 2 * source.numel() * source.element_size() / copied * 1e3
    return Card(bandwidth, programs * block * rounds / powers * 1e3)


def floors(shape: tuple[int, ...], bytes_each: int, card: Card) -> tuple[float, float]:
    """Least milliseconds of a scan's forward pass, and of both passes.

    Forward reads u, delta, z, B, C and writes out; backward reads those and the gradient and writes five gradients.
    An exponential a token, channel and state in each; beside it, a token and channel, those of softplus and SiLU.
    """
    batch, length, channels, states = shape
    tokens = batch * length
    forward = tokens * (4 * channels + 2 * states) * bytes_each
    backward = tokens * (7 * channels + 4 * states) * bytes_each
    powers = tokens * channels * (states + 2)
    times = [
        max(moved / card.bandwidth, powers / card.exponentials) * 1e3
        for moved in (forward, backward)
    ]
    return times[0], sum(times)


# Parity.


def scan_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Token-major, as the mixer makes them."""
    batch, length, channels, states = shape
    make = functools.partial(torch.randn, device=DEVICE)
    sequence = lambda width: make(batch, length, width).to(dtype).transpose(1, 2)  # noqa: E731
    return {
        "u": sequence(channels),
        "delta": sequence(channels),
        "A": -torch.rand(channels, states, device=DEVICE) * states,
        "B": sequence(states),
        "C": sequence(states),
        "D": make(channels),
        "z": sequence(channels),
        "delta_bias": make(channels) - 3,
    }


def grouped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same scan with two different groups of B and C, where the channels are even in number."""
    groups = 2 - tensors["u"].shape[1] % 2
    more = {
        name: torch.stack([tensors[name], tensors[name].flip(2)][:groups], 1).contiguous()
        for name in ("B", "C")
    }
    return {**tensors, **more}


def gradients(operator: Callable, tensors: dict[str, Tensor], **named: Any) -> list[Tensor]:
    """All that comes out, and gradients of its sum."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    out = operator(**leaves, **named)
    outs = out if isinstance(out, tuple) else (out,)
    total = sum(part.sum() for part in outs)
    return [*outs, *torch.autograd.grad(total, list(leaves.values()))]


def parity() -> list[dict[str, Any]]:
    """Largest error of values and gradients against the float64 reference, in float32 and from 16-bit tensors."""
    rows = []
    kinds = ("scan", "groups", "state", "conv")  # state: the last one comes out too
    cases = itertools.product(PARITY_SHAPES, TOLERANCES, kinds, (False, True))
    for shape, dtype, what, reverse in cases:
        if what in ("groups", "state") and shape not in PARITY_SHAPES[:2]:
            continue  # each shape is another kernel to compile
        tensors, named = scan_inputs(shape, dtype), {"reverse": reverse}
        if what == "conv":
            operator, named = causal_conv1d, {**named, "activation": "silu"}
            weight = torch.randn(shape[2], 4, device=DEVICE)
            tensors = {"x": tensors["u"], "weight": weight, "bias": tensors["D"]}
        else:
            operator, named = selective_scan, {**named, "delta_softplus": True}
            tensors = grouped(tensors) if what == "groups" else tensors
            named["return_last_state"] = what == "state"
        exact = {name: t.double() for name, t in tensors.items()}
        wanted = gradients(operator, exact, backend="reference", **named)
        for backend in backends():
            if what == "state" and backend == "mamba-ssm":  # it has no gradient of it
                continue
            got = gradients(operator, tensors, backend=backend, **named)
            error = max(map(relative_error, got, wanted))
            row = {"what": what, "shape": shape, "dtype": str(dtype).removeprefix("torch.")}
            row |= {"reverse": reverse, "backend": backend}
            rows.append({**row, "error": error, "passed": error < TOLERANCES[dtype]})
    return rows


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value; infinite where a NaN is."""
    error = ((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
    return error if error == error else float("inf")


# Times.


def timed(run: Callable[[bool], Any]) -> tuple[float | None, float | None, float | None, str]:
    """(forward, forward and backward, peak memory, note) of `run(with_gradient)`."""
    forward = both = memory = None
    try:
        with torch.no_grad():
            forward = milliseconds(lambda: run(False))
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        both = milliseconds(lambda: run(True))
        if DEVICE == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**20
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return forward, both, memory, "out of memory"
    except Exception as error:  # one back end that fails must not cost the others their rows
        return forward, both, memory, f"{type(error).__name__}: {str(error)[:80]}"
    return forward, both, memory, ""


def scan_rows(card: Card) -> Iterator[Row]:
    """The scan alone. The reference keeps every state for autograd: it gets the short sequences only."""
    for shape in SCAN_SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            tensors = scan_inputs(shape, dtype)
            leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
            grad = torch.randn(tensors["u"].shape, device=DEVICE).to(dtype)
            grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
            for backend in [*backends(), *(["reference"] if shape[1] <= 64 else [])]:
                if not in_time():
                    return

                def run(with_gradient, backend=backend, tensors=tensors, leaves=leaves, grad=grad):
                    inputs = leaves if with_gradient else tensors
                    out = selective_scan(**inputs, delta_softplus=True, backend=backend)
                    if with_gradient:
                        torch.autograd.grad(out, list(leaves.values()), grad)

                forward, both, memory, note = timed(run)
                floor = floors(shape, dtype.itemsize, card)
                name = str(shape).replace(" ", "")
                kind = str(dtype).removeprefix("torch.")
                yield Row("scan", name, kind, backend, forward, both, *floor, memory, note)


def networks() -> tuple[str, Tensor, dict[str, Callable[[], nn.Module]]]:
    """Shape, input and builders by back end."""
    stand_in_for_settings()
    from facerec.model.network import NetworkSettings, build_network

    def build(**changes: Any) -> nn.Module:
        return build_network(
            NetworkSettings(**{"d_model": D_MODEL, "depth": DEPTH, **changes}), IMAGE
        )

    pictures = torch.rand(BATCH, 3, IMAGE, IMAGE, device=DEVICE) * 2 - 1
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    builders = {b: functools.partial(build, scan_backend=b) for b in [*backends(), "reference"]}
    # A transformer layer has twice the parameters of a Mamba block.
    vit = functools.partial(build, mixer="attention", depth=max(1, DEPTH // 2))
    return "x".join(map(str, pictures.shape)), pictures, {**builders, "vit": vit}


def stand_in_for_settings() -> None:
    """Where pydantic is missing: settings that are their defaults, unchecked. The network reads no more of them."""
    if importlib.util.find_spec("pydantic") and not options.no_pydantic:
        return

    class Settings:
        def __init__(self, **values: Any) -> None:
            vars(self).update(values)

    pydantic, settings = (types.ModuleType(name) for name in ("pydantic", "facerec.settings"))
    pydantic.Field = lambda default, **_: default
    settings.Settings, settings.InputError = Settings, ValueError
    sys.modules |= {"pydantic": pydantic, "facerec.settings": settings}


def network_floors(
    network: nn.Module, inputs: Tensor, size: int, card: Card
) -> tuple[float, float]:
    """Milliseconds of a forward pass, and of both passes, if bytes alone took time and no two layers were fused.

    A layer with weights (a mixer and an attention count as one) reads its input and its weights and writes its output.
    The backward pass reads input and weights again and the output's gradient, and writes the gradients of input and
    weights.
    """
    moved = [0, 0]

    def count(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        weights = sum(p.numel() for p in module.parameters())
        out = out[0] if isinstance(out, tuple) else out
        moved[0] += size * (given[0].numel() + out.numel() + weights)
        moved[1] += size * (2 * given[0].numel() + out.numel() + 2 * weights)

    whole = (Mamba, nn.MultiheadAttention)
    layers = [
        m
        for m in network.modules()
        if isinstance(m, whole)
        or (not any(m.children()) and next(m.parameters(), None) is not None)
    ]
    inside = {id(part) for m in layers for part in m.modules() if part is not m}
    hooks = [m.register_forward_hook(count) for m in layers if id(m) not in inside]
    with torch.no_grad():
        network(inputs)
    for hook in hooks:
        hook.remove()
    forward, backward = (part / card.bandwidth * 1e3 for part in moved)
    return forward, forward + backward


def network_rows(card: Card) -> Iterator[Row]:
    """Forward pass for evaluation; forward and backward pass as a training step has them."""
    size, inputs, builders = networks()
    if not options.dry_run:
        builders["triton, compiled"] = lambda: torch.compile(builders["triton"]())
    for backend, build in builders.items():
        for dtype in (torch.float32, torch.bfloat16):
            if not in_time():
                return
            torch.manual_seed(0)
            network = build().to(DEVICE)

            def run(with_gradient, network=network, dtype=dtype):
                network.train(with_gradient)
                bf16 = dtype == torch.bfloat16
                with torch.autocast(DEVICE, dtype) if bf16 else nullcontext():
                    out = network(inputs)
                if with_gradient:
                    network.zero_grad(set_to_none=True)
                    out.float().square().mean().backward()

            forward, both, memory, note = timed(run)
            floor = (None, None)
            if not note and "compiled" not in backend:
                floor = network_floors(network, inputs, dtype.itemsize, card)
            shape = f"{size}, {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M"
            kind = str(dtype).removeprefix("torch.")
            yield Row("network", shape, kind, backend, forward, both, *floor, memory, note)


def line(row: Row) -> str:
    """A row as text."""
    number = lambda x, width=9: f"{'' if x is None else f'{x:.3f}':>{width}}"  # noqa: E731
    ratio = lambda a, b: f"{'' if not a or not b else f'{a / b:.2f}':>7}"  # noqa: E731
    return (
        f"{row.what:8} {row.shape:28} {row.dtype:9} {row.backend:17}{number(row.forward)}"
        f"{ratio(row.forward, row.forward_floor)}{number(row.both)}{ratio(row.both, row.both_floor)}"
        f"{'' if row.memory is None else f'{row.memory:.0f}':>9}  {row.note}"
    )


def main() -> int:
    """Prints the table and JSON; 1 where parity failed."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA card here; --dry-run shows the control flow on a CPU")
        return 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor() or "cpu"
    print(
        f"{device}; torch {torch.__version__}, triton {triton.__version__}; {', '.join(backends())}"
    )
    checks = parity()
    for check in checks:
        verdict = "ok" if check["passed"] else "WRONG"
        direction = "backward" if check["reverse"] else "forward"
        name = f"{check['what']} {check['shape']} {check['dtype']} {direction} {check['backend']}"
        print(f"parity {name:62} {check['error']:.1e} {verdict}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    card = measure_card()
    print(f"copy {card.bandwidth / 1e9:.0f} GB/s, exp2 {card.exponentials / 1e9:.0f} G/s")
    print(
        f"{'what':8} {'shape':28} {'dtype':9} {'backend':17}{'fwd ms':>9}{'xfloor':>7}"
        f"{'f+b ms':>9}{'xfloor':>7}{'MiB':>9}"
    )
    rows = []
    for produce in (scan_rows, network_rows):
        for row in produce(card):
            print(line(row), flush=True)
            rows.append(row._asdict())
    result = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "interpreted": options.dry_run,
        "card": card._asdict(),
        "parity": checks,
        "rows": rows,
        "seconds": round(time.monotonic() - STARTED, 1),
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result))
    return 0 if all(check["passed"] for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())

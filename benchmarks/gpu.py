"""The scan and the whole network on an NVIDIA card: parity first, then times against what the card can do.

    python benchmarks/gpu.py --json gpu.json     on a machine with a card; under eight minutes
    python benchmarks/gpu.py --dry-run           the same control flow on a CPU, interpreted, on tiny shapes

Needs torch, triton, numpy and this repository. Floors: the bytes that must be read and written once, over the
measured rate of a copy, and the exponentials, over their measured rate, whichever takes longer, and no less than a
launch; for the network the same of each layer, its matrix products too. `xfloor` is a row's time over its floor.

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

from facerec.model.kernels import mamba_ssm as mamba_ssm_bridge  # noqa: E402
from facerec.model.kernels.triton import scan as scan_triton  # noqa: E402
from facerec.model.kernels.triton import scan_grad as scan_grad_triton  # noqa: E402
from facerec.model.mamba import Mamba  # noqa: E402
from facerec.model.scan import causal_conv1d, selective_scan  # noqa: E402

STARTED = time.monotonic()
DEVICE = "cpu" if options.dry_run else "cuda"
# Of a tensor's largest value, against float64 from the same inputs.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
SCAN_SHAPES = [(1024, 64, 384, 16), (64, 4096, 768, 16), (1, 64, 384, 16)]
PARITY_SHAPES = [(2, 70, 100, 16), (3, 33, 64, 5), (1, 9, 48, 64), (2, 5, 24, 256), (1, 1, 1, 1)]
PARITY_SHARE = 0.5  # of the time; most of it compiles
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
    """What the card can do a second: bytes, exponentials, operations of matrix products by dtype. launch: seconds."""

    bandwidth: float
    exponentials: float
    operations: dict[str, float]
    launch: float


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


def in_time(share: float = 1.0) -> bool:
    """Whether another row may be started, within a share of the time."""
    return time.monotonic() - STARTED < share * options.seconds


# What the card can do.


@triton.jit
def _exponentials(out, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = -1.0 / (1.0 + at.to(tl.float32))
    for _ in range(ROUNDS):
        x = tl.exp2(-x)
    tl.store(out + at, x)


def measure_card() -> Card:
    """A copy of 1 GiB, exponentials out of registers, a square matrix product, a kernel that does next to nothing."""
    source = torch.empty(2**10 if options.dry_run else 2**28, device=DEVICE)
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source))
    programs, block, rounds = (2, 64, 2) if options.dry_run else (132 * 64, 1024, 1024)
    out = torch.empty(programs * block, device=DEVICE)
    powers = milliseconds(lambda: _exponentials[(programs,)](out, rounds, block, num_warps=4))
    bandwidth = 2 * source.numel() * source.element_size() / copied * 1e3
    side, operations = 16 if options.dry_run else 8192, {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.randn(side, side, device=DEVICE).to(dtype)
        took = milliseconds(lambda square=square: square @ square)
        operations[str(dtype).removeprefix("torch.")] = 2 * side**3 / took * 1e3
    launch = milliseconds(lambda: _exponentials[(1,)](out, 1, 32, num_warps=1))
    return Card(bandwidth, programs * block * rounds / powers * 1e3, operations, launch / 1e3)


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
        max(moved / card.bandwidth, powers / card.exponentials, card.launch) * 1e3
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


def gradients(
    operator: Callable, tensors: dict[str, Tensor], dtype: torch.dtype, **named: Any
) -> list[Tensor]:
    """All that comes out, and gradients for random gradients of it, channel-major where the scan is reversed."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    out = operator(**leaves, **named)
    outs = out if isinstance(out, tuple) else (out,)
    return [*outs, *torch.autograd.grad(outs, list(leaves.values()), upstream(outs, dtype, named))]


def upstream(outs: tuple[Tensor, ...], dtype: torch.dtype, named: dict[str, Any]) -> list[Tensor]:
    """Gradients of what came out, numbers of `dtype`, the same for equal shapes."""
    torch.manual_seed(1)
    grads = [torch.randn(out.shape, device=DEVICE).to(dtype).to(out.dtype) for out in outs]
    if not named.get("reverse"):  # token-major, as the mixer's are
        grads[0] = grads[0].transpose(1, 2).contiguous().transpose(1, 2)
    return grads


class Case(NamedTuple):
    """A check. what: scan, groups (two of B and C), state (the last one comes out too), conv, plan (as timed)."""

    what: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    reverse: bool


def cases() -> list[Case]:
    """The most telling first, since time may run out; each shape is another kernel to compile."""
    kinds = [*((kind, PARITY_SHAPES) for kind in ("scan", "conv")), ("plan", SCAN_SHAPES[:2])]
    kinds += [(kind, PARITY_SHAPES[:2]) for kind in ("groups", "state")]
    found = [
        Case(what, shape, dtype, reverse)
        for what, shapes in kinds
        for shape, dtype, reverse in itertools.product(shapes, TOLERANCES, (False, True))
    ]
    return sorted(found, key=lambda case: case.shape not in (PARITY_SHAPES[0], *SCAN_SHAPES))


def parity() -> Iterator[dict[str, Any]]:
    """Largest error of values and gradients against the float64 reference, in float32 and from 16-bit tensors."""
    for case in cases():
        if not in_time(PARITY_SHARE):
            return
        for backend in ["triton"] if case.what == "plan" else backends():
            if case.what == "state" and backend == "mamba-ssm":  # it has no gradient of it
                continue
            note = ""
            try:
                error = error_of(case, backend)
            except Exception as failure:  # of one back end; the others have their turn
                error, note = float("inf"), f"{type(failure).__name__}: {str(failure)[:80]}"
            yield {
                **case._asdict(),
                "dtype": str(case.dtype).removeprefix("torch."),
                "backend": backend,
                "error": error,
                "passed": error < TOLERANCES[case.dtype],
                "note": note,
            }


def error_of(case: Case, backend: str) -> float:
    """Largest error of a case's values and gradients."""
    torch.manual_seed(0)
    if case.what == "plan":
        return error_of_plan(case)
    tensors, named = scan_inputs(case.shape, case.dtype), {"reverse": case.reverse}
    if case.what == "conv":
        operator, named = causal_conv1d, {**named, "activation": "silu"}
        weight = torch.randn(case.shape[2], 4, device=DEVICE)
        tensors = {"x": tensors["u"], "weight": weight, "bias": tensors["D"]}
    else:
        operator, named = selective_scan, {**named, "delta_softplus": True}
        tensors = grouped(tensors) if case.what == "groups" else tensors
        named["return_last_state"] = case.what == "state"
    exact = {name: t.double() for name, t in tensors.items()}
    wanted = gradients(operator, exact, case.dtype, backend="reference", **named)
    got = gradients(operator, tensors, case.dtype, backend=backend, **named)
    return max(map(relative_error, got, wanted))


def error_of_plan(case: Case) -> float:
    """The kernels as a timed shape cuts them, on a few of its pictures and tokens."""
    batch, length, channels, states = case.shape
    forward = scan_triton.forward_plan(batch, channels, 1, states)
    backward = scan_grad_triton.backward_plan(batch, channels, length, 1, states)
    few = (min(batch, backward.pictures + 1), min(length, 100), channels, states)
    tensors = scan_inputs(few, case.dtype)
    exact = {name: t.double() for name, t in tensors.items()}
    named = {"delta_softplus": True, "reverse": case.reverse}
    wanted = gradients(selective_scan, exact, case.dtype, backend="reference", **named)
    matrices = {name: tensors[name][:, None] for name in ("B", "C")}
    inputs = tuple({**tensors, **matrices}.values())
    out, _, kept = scan_triton.scan_forward(
        *inputs, True, reverse=case.reverse, keep=True, plan=forward
    )
    (grad,) = upstream((out,), case.dtype, named)
    found = scan_grad_triton.scan_backward(
        grad, None, *inputs, True, reverse=case.reverse, kept=kept, plan=backward
    )
    found = [g[:, 0] if name in ("B", "C") else g for name, g in zip(tensors, found, strict=True)]
    return max(map(relative_error, [out, *found], wanted))


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


def failed(what: str, shape: str, dtype: torch.dtype, backend: str, error: Exception) -> Row:
    """The row of what could not even be made."""
    note = f"{type(error).__name__}: {str(error)[:80]}"
    return Row(what, shape, str(dtype).removeprefix("torch."), backend, None, None, note=note)


def scan_rows(card: Card) -> Iterator[Row]:
    """The scan alone. The reference keeps every state for autograd: it gets the short sequences only."""
    for shape in SCAN_SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            try:
                tensors = scan_inputs(shape, dtype)
            except torch.cuda.OutOfMemoryError as error:
                yield failed("scan", str(shape), dtype, "all", error)
                continue
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
    from facerec.model.network import build_network
    from facerec.model.settings import NetworkSettings

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

    pydantic, settings = (
        types.ModuleType(name) for name in ("pydantic", "facerec.config.settings")
    )
    pydantic.Field = lambda default, **_: default
    settings.Settings, settings.InputError = Settings, ValueError
    sys.modules |= {"pydantic": pydantic, "facerec.config.settings": settings}


def network_floors(
    network: nn.Module, inputs: Tensor, dtype: torch.dtype, card: Card
) -> tuple[float, float]:
    """Milliseconds of a forward pass, and of both passes, if no two layers were fused.

    A layer with weights (a mixer and an attention count as one) takes the longest of: reading its input and its weights
    and writing its output; its matrix products; a mixer's exponentials. The backward pass reads input and weights again
    and the output's gradient, writes the gradients of input and weights, has twice the products, and the exponentials
    once more.
    """
    seconds = [0.0, 0.0]
    rate = card.operations[str(dtype).removeprefix("torch.")]

    def count(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        weights = sum(p.numel() for p in module.parameters())
        out = out[0] if isinstance(out, tuple) else out
        moved = given[0].numel() + out.numel() + weights
        again = 2 * given[0].numel() + out.numel() + 2 * weights
        products, powers = operations_of(module, given[0], out)
        for place, (numbers, times) in enumerate(((moved, 1), (again, 2))):
            seconds[place] += max(
                dtype.itemsize * numbers / card.bandwidth,
                times * products / rate,
                powers / card.exponentials,
            )

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
    forward, backward = (part * 1e3 for part in seconds)
    return forward, forward + backward


def operations_of(module: nn.Module, given: Tensor, out: Tensor) -> tuple[int, int]:
    """(operations of matrix products, exponentials) of a layer's forward pass; 2 operations a product and sum."""
    tokens = given.numel() // given.shape[-1]
    if isinstance(module, Mamba):
        linear = (module.in_proj, module.x_proj, module.dt_proj, module.out_proj)
        powers = tokens * module.d_inner * (module.d_state + 3)  # softplus and two SiLUs
        return sum(2 * tokens * layer.weight.numel() for layer in linear), powers
    if isinstance(module, nn.MultiheadAttention):
        length, width = given.shape[-2:]
        return tokens * (8 * width**2 + 4 * length * width), tokens * length * module.num_heads
    if isinstance(module, nn.Conv2d):
        return 2 * out.numel() // module.out_channels * module.weight.numel(), 0
    return 2 * tokens * module.weight.numel() if isinstance(module, nn.Linear) else 0, 0


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
            try:
                network = build().to(DEVICE)
            except Exception as error:
                yield failed("network", size, dtype, backend, error)
                continue

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
                floor = network_floors(network, inputs, dtype, card)
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
    result = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "interpreted": options.dry_run,
        "parity": [],
        "rows": [],
    }
    for check in parity():
        verdict = "ok" if check["passed"] else "WRONG"
        direction = "backward" if check["reverse"] else "forward"
        name = f"{check['what']} {check['shape']} {check['dtype']} {direction} {check['backend']}"
        print(f"parity {name:62} {check['error']:.1e} {verdict} {check['note']}", flush=True)
        keep(result, "parity", check)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    card = measure_card()
    result["card"] = card._asdict()
    print(
        f"copy {card.bandwidth / 1e9:.0f} GB/s, exp2 {card.exponentials / 1e9:.0f} G/s, "
        f"launch {card.launch * 1e6:.1f} us, "
        + ", ".join(f"{name} {rate / 1e12:.1f} TFLOP/s" for name, rate in card.operations.items())
    )
    print(
        f"{'what':8} {'shape':28} {'dtype':9} {'backend':17}{'fwd ms':>9}{'xfloor':>7}"
        f"{'f+b ms':>9}{'xfloor':>7}{'MiB':>9}"
    )
    for produce in (scan_rows, network_rows):
        for row in produce(card):
            print(line(row), flush=True)
            keep(result, "rows", row._asdict())
    print(json.dumps(result))
    return 0 if all(check["passed"] for check in result["parity"]) else 1


def keep(result: dict[str, Any], table: str, row: dict[str, Any]) -> None:
    """Adds a row, and writes all there is: whatever ends the process later."""
    result[table].append(row)
    result["seconds"] = round(time.monotonic() - STARTED, 1)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

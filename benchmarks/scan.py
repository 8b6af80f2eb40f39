"""How fast the Mamba mixer is on this CPU: against other mixers, against its matrix products, against a ViT.

    python benchmarks/scan.py [--rounds 9] [--only mixer,parts,memory,network] [--shapes 64x64]
        [--json scan.json] [--keep-memory]

Everything runs in one process, in turns (one call of each contestant a round), so that a machine whose
speed drifts treats all alike; figures are medians over the calmer half of the rounds. Peers are mambapy
(token by token, and its parallel scan) and transformers' MambaMixer (both from the `bench` extra), with
the same weights. With --keep-memory glibc keeps freed memory for the next call, of all contestants, as in `train`;
without it the peers spend most of their time on page faults, as they do for whoever runs them out of the box.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from facerec.model.mamba import Mamba
from facerec.model.scan import resolve_backend
from facerec.runtime.device import keep_freed_memory

D_MODEL = 192
MIXER_SHAPES = ((64, 64), (16, 196), (1, 64))  # batch, tokens
PICTURES = ((64, 64), (112, 16), (224, 4))  # side of the picture in pixels, batch; patches of 8
Calls = dict[str, Callable[[], object]]
Shapes = tuple[tuple[int, ...], ...]


def interleaved(calls: Calls, rounds: int) -> dict[str, float]:
    """Median milliseconds of each contestant's calmer half of calls, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    gc.enable()
    return {name: 1e3 * statistics.median(calmer_half(values)) for name, values in times.items()}


def calmer_half(values: list[float]) -> list[float]:
    """The shorter half: on a machine that others use too, the longer one says what they did."""
    return sorted(values)[: (len(values) + 1) // 2]


def inference(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            module(x)

    return call


def training(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward, gradients of the weights and of the input."""
    x = x.clone().requires_grad_()
    out = module(x)
    grad = torch.randn_like(out)

    def call() -> None:
        module(x).backward(grad)
        x.grad = None
        module.zero_grad(set_to_none=True)

    return call


class Products(nn.Module):
    """The four matrix products of a mixer and nothing else: the limit to measure against."""

    def __init__(self, mixer: Mamba) -> None:
        super().__init__()
        self.layers = [mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj]
        self.weights = [nn.Parameter(layer.weight.detach().clone()) for layer in self.layers]

    def inputs(self, rows: int) -> list[Tensor]:
        return [torch.randn(rows, weight.shape[1]) for weight in self.weights]

    def forward_call(self, rows: int) -> Callable[[], object]:
        inputs = self.inputs(rows)

        def call() -> None:
            with torch.no_grad():
                for x, weight in zip(inputs, self.weights, strict=True):
                    torch.mm(x, weight.t())

        return call

    def both_call(self, rows: int) -> Callable[[], object]:
        inputs = self.inputs(rows)
        grads = [torch.randn(rows, weight.shape[0]) for weight in self.weights]

        def call() -> None:
            with torch.no_grad():
                for x, weight, grad in zip(inputs, self.weights, grads, strict=True):
                    torch.mm(x, weight.t())
                    torch.mm(grad, weight)
                    torch.mm(grad.t(), x)

        return call


def product(x: Tensor, weight: Tensor) -> Callable[[], object]:
    return lambda: torch.mm(x, weight.t())


def peers(mixer: Mamba) -> dict[str, nn.Module]:
    """Other mixers that are installed, with this one's weights."""
    found: dict[str, nn.Module] = {}
    try:
        from mambapy.mamba import MambaBlock, MambaConfig

        for name, parallel in (("mambapy loop", False), ("mambapy pscan", True)):
            found[name] = MambaBlock(MambaConfig(d_model=D_MODEL, n_layers=1, pscan=parallel))
    except ImportError:
        print("mambapy is not installed: left out")
    try:
        from transformers import MambaConfig as Config
        from transformers.models.mamba.modeling_mamba import MambaMixer

        found["transformers"] = MambaMixer(
            Config(hidden_size=D_MODEL, num_hidden_layers=1, time_step_rank=mixer.dt_rank), 0
        )
    except ImportError:
        print("transformers is not installed: left out")
    for peer in found.values():
        peer.load_state_dict(mixer.state_dict())
    return found


def mixer_table(rounds: int, shapes: Shapes) -> list[dict[str, object]]:
    """One row a shape and pass: milliseconds and ratios."""
    torch.manual_seed(0)
    mixer = Mamba(D_MODEL)
    others = peers(mixer)
    products = Products(mixer)
    rows = []
    for batch, length in shapes:
        x = torch.randn(batch, length, D_MODEL)
        for name, other in others.items():
            with torch.no_grad():
                difference = (other(x) - mixer(x)).abs().max().item()
            assert difference < 1e-4, f"{name} computes something else ({difference})"
        count = batch * length
        for what, make, limit in (
            ("forward", inference, products.forward_call(count)),
            ("forward + backward", training, products.both_call(count)),
        ):
            calls: Calls = {"facerec": make(mixer, x), "products": limit}
            calls |= {name: make(other, x) for name, other in others.items()}
            # Peers take long: their medians come from fewer rounds, ours and the limit's from all.
            times = interleaved(calls, 4)
            times |= interleaved({name: calls[name] for name in ("facerec", "products")}, rounds)
            slowest = {name: times[name] for name in others}
            rows.append(
                {
                    "batch": batch,
                    "length": length,
                    "pass": what,
                    "ms": times,
                    "over_products": times["facerec"] / times["products"],
                    "best_peer": min(slowest, key=slowest.get) if slowest else None,
                    "faster_than_best_peer": min(slowest.values()) / times["facerec"]
                    if slowest
                    else None,
                }
            )
            show_mixer(rows[-1])
    return rows


def show_mixer(row: dict) -> None:
    times = row["ms"]
    peers_ms = "  ".join(
        f"{name} {ms:8.2f}" for name, ms in times.items() if name not in ("facerec", "products")
    )
    ratio = row["faster_than_best_peer"]
    print(
        f"mixer {row['batch']:3d} x {row['length']:3d} {row['pass']:19s}"
        f" facerec {times['facerec']:7.2f} ms  products {times['products']:7.2f}"
        f" ({row['over_products']:.2f}x)  {peers_ms}"
        + (f"  best peer / facerec {ratio:.1f}x" if ratio else ""),
        flush=True,
    )


def kernel_calls(mixer: Mamba, batch: int, length: int) -> Calls:
    """The four kernels on tensors laid out as the mixer's are, a chunk of pictures at a time."""
    from facerec.model.kernels.cpu import launch as launch_cpu
    from facerec.model.kernels.cpu import mamba as mamba_cpu

    channels, states = mixer.A_log.shape
    xz = torch.randn(batch, length, 2 * channels)
    out, projected, kept = mamba_cpu._inner_buffers(xz, mixer.x_proj.weight, mixer.A_log, True)
    projected.normal_()
    A, D = -mixer.A_log.detach().exp(), mixer.D.detach()
    bias, weight = mixer.dt_proj.bias.detach(), mixer.conv1d.weight.detach().squeeze(1)
    grad_xz, grad_projected = torch.empty_like(xz), torch.empty_like(projected)

    def each_chunk(launch: Callable[..., object]) -> Callable[[], object]:
        def call() -> None:
            for part, u, delta in mamba_cpu._chunks(xz, channels):
                launch(part, u.transpose(1, 2), delta.transpose(1, 2))

        return call

    def matrices(rows: Tensor) -> list[Tensor]:
        return mamba_cpu._matrices(rows, mixer.dt_rank, states)

    def kept_of(part: slice) -> Tensor | None:
        return kept[part] if kept.numel() else None

    def conv(part: slice, u: Tensor, delta: Tensor) -> None:
        x, _ = mamba_cpu._halves(xz[part])
        launch_cpu.launch_conv(x, weight, mixer.conv1d.bias.detach(), True, False, u)

    def conv_backward(part: slice, u: Tensor, delta: Tensor) -> None:
        x, _ = mamba_cpu._halves(xz[part])
        grad_x, _ = mamba_cpu._halves(grad_xz[part])
        launch_cpu.launch_conv_backward(u, x, weight, None, True, False, grad_x)

    def scan(part: slice, u: Tensor, delta: Tensor) -> None:
        _, z = mamba_cpu._halves(xz[part])
        y = out[part].transpose(1, 2)
        rest = (D, z, bias, True, False, y, None, kept_of(part))
        launch_cpu.launch_scan(u, delta, A, *matrices(projected[part]), *rest)

    def scan_backward(part: slice, u: Tensor, delta: Tensor) -> None:
        _, z = mamba_cpu._halves(xz[part])
        _, grad_z = mamba_cpu._halves(grad_xz[part])
        grads = [torch.empty_like(u), torch.empty_like(delta), grad_z]
        inputs = (u, delta, A, *matrices(projected[part]), D, z, bias, True, False)
        grad = out[part].transpose(1, 2)
        launch_cpu.launch_scan_backward(
            grad, None, kept_of(part), *inputs, grads, matrices(grad_projected[part])
        )

    kernels = (conv, scan, scan_backward, conv_backward)
    return {kernel.__name__: each_chunk(kernel) for kernel in kernels}


def parts_table(rounds: int, shapes: Shapes) -> list[dict[str, object]]:
    """Where a mixer's time goes: each product and each kernel by itself, and what is left over."""
    torch.manual_seed(0)
    mixer = Mamba(D_MODEL)
    rows = []
    for batch, length in shapes:
        x = torch.randn(batch, length, D_MODEL)
        products = Products(mixer)
        names = ("in_proj", "x_proj", "dt_proj", "out_proj")
        calls = kernel_calls(mixer, batch, length)
        for name, layer_x, weight in zip(
            names, products.inputs(batch * length), products.weights, strict=True
        ):
            calls[name] = product(layer_x, weight.detach())
        calls["mixer forward"] = inference(mixer, x)
        calls["mixer forward + backward"] = training(mixer, x)
        calls["products forward + backward"] = products.both_call(batch * length)
        times = interleaved(calls, rounds)
        rows.append({"batch": batch, "length": length, "ms": times})
        print(f"parts {batch} x {length}: " + "  ".join(f"{k} {v:.2f}" for k, v in times.items()))
    return rows


def memory_table() -> list[dict[str, object]]:
    """Bytes that a training step keeps for its backward pass, in units of the mixer's input xz."""
    rows = []
    for length, state in ((256, 16), (4096, 16), (4096, 64)):
        mixer = Mamba(D_MODEL, d_state=state)
        x = torch.randn(1, length, D_MODEL)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            mixer(x)
        weights = sum(p.numel() * 4 for p in mixer.parameters())
        megabytes = (sum(kept.values()) - weights) / 2**20
        states = length * 2 * D_MODEL * state * 4 / 2**20
        rows.append({"length": length, "d_state": state, "kept_mb": megabytes, "states_mb": states})
        print(
            f"memory of a step, 1 x {length}, d_state {state}: keeps {megabytes:.1f} MB;"
            f" all states would be {states:.0f} MB"
        )
    return rows


def network_table(rounds: int) -> list[dict[str, object]]:
    """Pictures a second of 12 Mamba blocks and of a 7-layer ViT, width 192, patches of 8."""
    from facerec.model.network import build_network, parameter_count
    from facerec.model.settings import NetworkSettings

    rows = []
    common = {"d_model": D_MODEL, "patch_size": 8, "stem_depth": 0}
    for side, batch in PICTURES:
        torch.manual_seed(0)
        ours = build_network(NetworkSettings(backbone="mamba", depth=12, **common), side)
        vit = build_network(NetworkSettings(backbone="vit", depth=7, **common), side)
        pictures = torch.randn(batch, 3, side, side)
        for what, make in (("forward", inference), ("forward + backward", training)):
            calls: Calls = {}
            for name, network in (("mamba", ours), ("vit", vit)):
                network.train(what != "forward")
                calls[name] = make(network, pictures)
            times = interleaved(calls, rounds)
            speed = {name: 1e3 * batch / ms for name, ms in times.items()}
            rows.append(
                {
                    "tokens": (side // 8) ** 2,
                    "batch": batch,
                    "pass": what,
                    "pictures_per_second": speed,
                    "mamba_over_vit": speed["mamba"] / speed["vit"],
                    "parameters": {
                        "mamba": parameter_count(ours),
                        "vit": parameter_count(vit),
                    },
                }
            )
            print(
                f"network {(side // 8) ** 2:3d} tokens, batch {batch:2d}, {what:19s}"
                f" mamba {speed['mamba']:7.1f}/s  vit {speed['vit']:7.1f}/s"
                f"  ratio {speed['mamba'] / speed['vit']:.2f}",
                flush=True,
            )
    return rows


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": resolve_backend("auto", "cpu"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each contestant")
    parser.add_argument("--only", default="mixer,parts,memory,network", help="tables to make")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--shapes", help="of the mixer: batch x tokens, as in 64x64,1x64")
    parser.add_argument("--keep-memory", action="store_true", help="of all contestants, for reuse")
    options = parser.parse_args()
    if options.keep_memory:
        keep_freed_memory()
    shapes = MIXER_SHAPES
    if options.shapes:
        shapes = tuple(tuple(map(int, s.split("x"))) for s in options.shapes.split(","))
    report: dict[str, object] = {"machine": machine()}
    print("machine:", report["machine"])
    tables = {
        "mixer": lambda: mixer_table(options.rounds, shapes),
        "parts": lambda: parts_table(options.rounds, shapes),
        "memory": memory_table,
        "network": lambda: network_table(max(3, options.rounds // 2)),
    }
    for name in options.only.split(","):
        report[name] = tables[name]()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

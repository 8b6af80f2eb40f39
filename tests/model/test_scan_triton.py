"""The Triton kernels, interpreted on a CPU or on a card where there is one, against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from facerec.model.kernels.triton import conv as conv_triton
from facerec.model.kernels.triton import mamba as mamba_triton
from facerec.model.kernels.triton import scan as scan_triton
from facerec.model.kernels.triton import scan_grad as scan_grad_triton
from facerec.model.scan import causal_conv1d, mamba_inner, selective_scan

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 2e-5  # of a tensor's largest value
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.abs().max().item()
    return (got.double() - expected).abs().max().item() / (scale or 1.0)


def scan_inputs(batch, length, channels, states, groups=1, layout="tokens"):
    def sequence(*wide):
        if layout == "tokens":
            return torch.randn(batch, length, *wide).movedim(1, -1).to(DEVICE)
        if layout == "channels":
            return torch.randn(batch, *wide, length).to(DEVICE)
        return torch.randn(batch, *wide, 2 * length + 1).to(DEVICE)[..., 1::2]

    vector = lambda *shape: torch.randn(*shape).to(DEVICE)  # noqa: E731
    return {
        "u": sequence(channels),
        "delta": sequence(channels),
        "A": -states * torch.rand(channels, states).to(DEVICE),
        "B": sequence(groups, states),
        "C": sequence(groups, states),
        "D": vector(channels),
        "z": sequence(channels),
        "delta_bias": vector(channels) - 1,
    }


def leaves(tensors, dtype=None):
    return {k: t.to(dtype or t.dtype).detach().requires_grad_() for k, t in tensors.items()}


def assert_agrees(operator, tensors, tolerance=TOLERANCE, **options):
    """Values and gradients of the Triton operator and, in float64, of the reference."""
    ours, exact = leaves(tensors), leaves(tensors, torch.float64)
    got = operator(**ours, backend="triton", **options)
    want = operator(**exact, backend="reference", **options)
    got, want = (list(x) if isinstance(x, tuple) else [x] for x in (got, want))
    grads = [torch.randn(g.shape).to(g) for g in got]
    ours_grad = torch.autograd.grad(got, list(ours.values()), grads)
    exact_grad = torch.autograd.grad(want, list(exact.values()), [g.double() for g in grads])
    for g, w in zip(got, want, strict=True):
        assert error(g, w) < tolerance
    for (name, leaf), g, w in zip(ours.items(), ours_grad, exact_grad, strict=True):
        assert g.dtype == leaf.dtype and g.shape == leaf.shape, name
        assert error(g, w) < tolerance, name


# batch, length, channels, states, groups, reverse
SHAPES = [
    (1, 1, 1, 1, 1, False),
    (2, 7, 37, 3, 1, False),
    (1, 41, 5, 5, 1, True),  # two intervals
    (2, 9, 12, 2, 3, True),
    (1, 35, 3, 16, 1, False),
    (1, 3, 2, 64, 1, False),
    (1, 2, 1, 256, 1, True),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_scan_and_gradients(shape):
    torch.manual_seed(0)
    *sizes, reverse = shape
    assert_agrees(
        selective_scan,
        scan_inputs(*sizes),
        delta_softplus=True,
        return_last_state=True,
        reverse=reverse,
    )


@pytest.mark.parametrize("layout", ["channels", "strided"])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_takes_any_strides(layout, reverse):
    torch.manual_seed(0)
    tensors = scan_inputs(2, 11, 6, 3, 2, layout)
    assert_agrees(selective_scan, tensors, delta_softplus=True, reverse=reverse)


@pytest.mark.parametrize("missing", ["D", "z", "delta_bias"])
def test_scan_without_optional_inputs(missing):
    torch.manual_seed(0)
    tensors = scan_inputs(2, 5, 9, 2)
    del tensors[missing]
    assert_agrees(selective_scan, tensors, delta_softplus=True)


def test_scan_without_softplus():
    torch.manual_seed(0)
    tensors = scan_inputs(2, 5, 9, 2)
    tensors["delta"] = tensors["delta"].abs()
    del tensors["delta_bias"]
    assert_agrees(selective_scan, tensors, return_last_state=True)


def test_small_steps_keep_their_digits():
    """softplus(-15) = 3e-7: 1 + exp(-15) in float32 has lost most of it."""
    tensors = scan_inputs(1, 4, 3, 2)
    tensors["delta"] = tensors["delta"] * 0.1 - 15
    del tensors["D"], tensors["delta_bias"]
    assert_agrees(selective_scan, tensors, delta_softplus=True)


def test_extreme_steps_are_no_nan():
    torch.manual_seed(0)
    tensors = scan_inputs(1, 9, 5, 3)
    tensors["delta"], tensors["z"] = tensors["delta"] * 200, tensors["z"] * 200
    assert_agrees(selective_scan, tensors, delta_softplus=True, tolerance=1e-4)


def test_a_nan_stays_in_its_channel():
    tensors = scan_inputs(1, 5, 6, 2)
    tensors["A"][3, 1] = float("nan")
    out = selective_scan(**tensors, delta_softplus=True, backend="triton")
    assert out[0, 3].isnan().all()
    assert out[0, :3].isfinite().all() and out[0, 4:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_takes_16_bit_beside_float32(dtype):
    torch.manual_seed(0)
    tensors = scan_inputs(2, 5, 9, 2)
    for name in ("u", "delta", "z", "B", "C"):
        tensors[name] = tensors[name].to(dtype)
    tolerance = 2 * torch.finfo(dtype).eps  # of what is rounded to 16 bits at the end
    assert_agrees(selective_scan, tensors, delta_softplus=True, tolerance=tolerance)


def test_scan_is_deterministic_and_keeps_little():
    torch.manual_seed(0)
    tensors = list(scan_inputs(2, 40, 6, 2).values())
    runs = []
    for _ in range(2):
        out, _, kept = scan_triton.scan_forward(*tensors, True, keep=True)
        grads = scan_grad_triton.scan_backward(
            torch.ones_like(out), None, *tensors, True, kept=kept
        )
        runs.append((out, *grads))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert 0 < kept.numel() <= tensors[0].numel()


def test_states_are_recomputed_where_none_were_kept():
    torch.manual_seed(0)
    tensors = list(scan_inputs(1, 40, 3, 2).values())
    out, _, kept = scan_triton.scan_forward(*tensors, True, keep=True)
    ones = torch.ones_like(out)
    with_kept = scan_grad_triton.scan_backward(ones, None, *tensors, True, kept=kept)
    without = scan_grad_triton.scan_backward(ones, None, *tensors, True)
    assert all(map(torch.equal, with_kept, without))


@pytest.mark.parametrize("channels, rows, pictures", [(4, 4, 1), (8, 8, 3), (64, 2, 2), (16, 1, 5)])
def test_every_plan_gives_the_same(channels, rows, pictures):
    """Blocks narrower and wider than the channels, several pictures a warp."""
    torch.manual_seed(0)
    plan = scan_triton.Plan(channels, rows, pictures)
    tensors = list(scan_inputs(5, 6, 9, 2).values())
    exact = [t.double().requires_grad_() for t in tensors]
    want = selective_scan(*exact, delta_softplus=True, backend="reference")
    out, _, kept = scan_triton.scan_forward(*tensors, True, keep=True, plan=plan)
    grads = scan_grad_triton.scan_backward(
        torch.ones_like(out), None, *tensors, True, kept=kept, plan=plan
    )
    want_grads = torch.autograd.grad(want.sum(), exact)
    assert error(out, want) < TOLERANCE
    for name, g, w in zip(NAMES, grads, want_grads, strict=True):
        assert error(g, w) < TOLERANCE, name


@pytest.mark.parametrize("states", [1, 16, 256])
@pytest.mark.parametrize(
    "batch, channels, length",
    [(1, 384, 64), (128, 256, 64), (1024, 384, 64), (64, 768, 4096), (1024, 768, 1024)],
)
def test_plans_fill_a_card_and_bound_memory(batch, channels, length, states):
    forward = scan_triton.forward_plan(batch, channels, 1, states)
    warps = batch * -(-channels // forward.channels)
    assert 4 <= forward.channels <= 32
    assert warps >= 96 or forward.channels * states <= 64  # no lane without a state to hold
    of_u = batch * channels * length
    kept = scan_triton.kept_shape(batch, channels, length, states)
    assert torch.Size(kept).numel() <= of_u

    plan = scan_grad_triton.backward_plan(batch, channels, length, 1, states)
    parts = -(-batch // plan.pictures)
    every = scan_triton.interval(states, length)
    scratch = parts * channels * (states * (every // plan.rows) + states + states + 2)
    assert scratch <= max(of_u, 2**26)
    programs = parts * -(-channels // plan.channels)
    assert programs <= 2048 and (states == 256 or programs >= min(384, batch * 6))


def test_a_picture_that_places_cannot_tell_apart_is_refused():
    with pytest.raises(ValueError, match="fewer than 2"):
        scan_triton.check_picture(2**16, 2**15)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0)])
def test_nothing_to_scan(shape):
    batch, channels, length = shape
    tensors = leaves(scan_inputs(batch, length, channels, 2))
    out, last = selective_scan(**tensors, return_last_state=True, backend="triton")
    assert out.shape == shape and not last.any()
    assert not any(g.any() for g in torch.autograd.grad(out.sum(), list(tensors.values())))


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_conv_and_gradients(width, silu):
    torch.manual_seed(width)
    x = torch.randn(2, 35, 5).transpose(1, 2).to(DEVICE)  # over two tiles of tokens
    tensors = {"x": x, "weight": torch.randn(5, width).to(DEVICE)}
    if width != 3:
        tensors["bias"] = torch.randn(5).to(DEVICE)
    activation = "silu" if silu else None
    assert_agrees(causal_conv1d, tensors, activation=activation, reverse=width == 4)


@pytest.mark.parametrize(
    "batch, channels, length, dtype",
    [(1, 1, 1, torch.float32), (3, 70, 2, torch.float32), (2, 3, 9, torch.bfloat16)],
)
def test_conv_of_odd_shapes(batch, channels, length, dtype):
    torch.manual_seed(0)
    tensors = {
        "x": torch.randn(batch, channels, length).to(DEVICE, dtype),
        "weight": torch.randn(channels, 4).to(DEVICE),
        "bias": torch.randn(channels).to(DEVICE),
    }
    tolerance = TOLERANCE if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert_agrees(causal_conv1d, tensors, activation="silu", tolerance=tolerance)


def test_conv_sums_over_many_tasks(monkeypatch):
    monkeypatch.setattr(conv_triton, "_MOST_PARTS", 2)
    torch.manual_seed(0)
    tensors = {"x": torch.randn(5, 3, 4).to(DEVICE), "weight": torch.randn(3, 2).to(DEVICE)}
    assert_agrees(causal_conv1d, tensors, activation="silu")


@pytest.mark.parametrize("reverse", [False, True])
def test_all_between_the_projections(reverse):
    torch.manual_seed(0)
    channels, states, rank = 6, 3, 2
    tensors = {
        "xz": torch.randn(2, 9, 2 * channels),
        "conv_weight": torch.randn(channels, 4),
        "conv_bias": torch.randn(channels),
        "x_proj_weight": torch.randn(rank + 2 * states, channels) / 2,
        "dt_proj_weight": torch.randn(channels, rank) / 2,
        "A": -torch.rand(channels, states) * 3,
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels) - 1,
    }
    tensors = {name: t.to(DEVICE) for name, t in tensors.items()}
    assert_agrees(mamba_inner, tensors, reverse=reverse, tolerance=5e-5)


def test_operators_are_registered_rightly():
    """Schemas, fake kernels and autograd, as torch.compile and torch.export rely on them."""
    torch.manual_seed(0)
    tensors = [t.requires_grad_() for t in scan_inputs(1, 3, 4, 2).values()]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*tensors, True, False, True, True)
    torch.library.opcheck(mamba_triton.scan_forward, arguments, test_utils=checks)
    x = torch.randn(1, 3, 4, device=DEVICE).transpose(1, 2).requires_grad_()
    weight = torch.randn(4, 3, device=DEVICE).requires_grad_()
    arguments = (x, weight, None, True, False)
    torch.library.opcheck(mamba_triton.conv_forward, arguments, test_utils=checks)


def test_fake_tensors_on_cuda_have_the_shapes():
    """The whole mixer, forward and backward, on a card that need not be there."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        u = torch.empty(2, 8, 6, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        matrix = torch.empty(2, 1, 4, 8, device="cuda", dtype=torch.bfloat16)
        A = torch.empty(6, 4, device="cuda")
        out, last, kept = mamba_triton.scan_forward(
            u, u, A, matrix, matrix, None, u, None, True, False, True, True
        )
        assert (out.device.type, out.dtype, out.stride()) == ("cuda", torch.bfloat16, u.stride())
        assert last.shape == (2, 6, 4) and kept.shape == (2, 0, 4, 6)
        grads = mamba_triton.scan_backward(
            u, None, kept, u, u, A, matrix, matrix, None, u, None, True, False
        )
        assert [tuple(g.shape) for g in grads[:4]] == [(2, 6, 8), (2, 6, 8), (6, 4), (2, 1, 4, 8)]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from facerec.model.kernels.triton import conv as conv_triton
from facerec.model.kernels.triton import scan_grad as scan_grad_triton
from facerec.model.kernels.triton import scan as scan_triton

FLOATS = "A D bias last kept dB dC shares states_at carried grad_last weight".split()
SEQUENCES = "u delta B C z out grad du dd dz x dx".split()
BLOCKS = {"CHANNELS": 64, "INTERVAL": 32, "SOFTPLUS": True, "REVERSE": True, "SILU": True, "W": 4}
BLOCKS |= {"TOKENS": 16, "STATES": 16, "PADDED": False}

def compile(kernel, warps, **blocks):
    fixed = {k: v for k, v in (BLOCKS | blocks).items() if k in kernel.arg_names}
    fixed |= {name: 1 for name in kernel.arg_names if name.endswith("_d") or name in ("B_n", "C_n")}
    types = {name: "*fp32" for name in FLOATS} | {name: "*bf16" for name in SEQUENCES}
    types |= {name: "constexpr" for name in fixed}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    target = GPUTarget("cuda", 90, 32)
    assert triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]

compile(scan_triton._forward_kernel, 1, CHANNELS=32, ROWS=8)
compile(scan_grad_triton._backward_kernel, 1, ROWS=4)
compile(conv_triton._forward, 4)
compile(conv_triton._backward, 4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's ptxas comes with its Linux wheels")
def test_kernels_compile_for_a_card_that_need_not_be_there(tmp_path):
    """The interpreter takes more than the compiler does. Another process: this one interprets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert run.returncode == 0, run.stderr[-2000:]

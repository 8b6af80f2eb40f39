"""The fused operators against loops in float64 that share no code with the package."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from facerec.model.kernels.reference import reference
from facerec.model.scan import causal_conv1d, mamba_inner, resolve_backend, selective_scan

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5

# batch, length, channels, states, groups, reverse
SHAPES = [
    (1, 1, 1, 1, 1, False),
    (2, 7, 37, 5, 1, False),
    (1, 70, 16, 16, 1, True),
    (2, 33, 24, 3, 2, True),
    (3, 12, 48, 1, 3, False),
    (1, 40, 20, 64, 1, False),
    (66, 2, 5, 3, 1, False),
]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.abs().max().item()
    return (got.double() - expected).abs().max().item() / (scale or 1.0)


def scan_inputs(batch, length, channels, states, groups, layout="tokens"):
    def sequence(*wide):
        if layout == "tokens":
            return torch.randn(batch, length, *wide).movedim(1, -1)
        if layout == "channels":
            return torch.randn(batch, *wide, length)
        return torch.randn(batch, *wide, 2 * length + 1)[..., 1::2]  # no stride of one

    return {
        "u": sequence(channels),
        "delta": sequence(channels),
        "A": -states * torch.rand(channels, states),
        "B": sequence(groups, states),
        "C": sequence(groups, states),
        "D": torch.randn(channels),
        "z": sequence(channels),
        "delta_bias": torch.randn(channels) - 1,
    }


def loop(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False):
    """One picture, one token at a time, in the inputs' own precision."""
    channels, length = u.shape[1:]
    group = torch.arange(channels) // (channels // B.shape[1])
    order = list(range(length))[:: -1 if reverse else 1]
    outs, lasts = [], []
    for b in range(len(u)):
        state, tokens = torch.zeros_like(A), [None] * length
        for t in order:
            dt = delta[b, :, t] if delta_bias is None else delta[b, :, t] + delta_bias
            if delta_softplus:
                dt = dt.exp().log1p()
            x = u[b, :, t]
            state = state * (dt[:, None] * A).exp() + (dt * x)[:, None] * B[b, group, :, t]
            y = torch.einsum("dn,dn->d", state, C[b, group, :, t])
            if D is not None:
                y = y + D * x
            if z is not None:
                y = y * z[b, :, t] / (1 + (-z[b, :, t]).exp())
            tokens[t] = y
        outs.append(torch.stack(tokens, -1))
        lasts.append(state)
    return torch.stack(outs), torch.stack(lasts)


def leaves(tensors, dtype=None):
    return {name: t.to(dtype or t.dtype).detach().requires_grad_() for name, t in tensors.items()}


def assert_scan_agrees(tensors, softplus=True, reverse=False):
    ours, exact = leaves(tensors), leaves(tensors, torch.float64)
    out, last = selective_scan(
        **ours, delta_softplus=softplus, return_last_state=True, reverse=reverse
    )
    expected = loop(**exact, delta_softplus=softplus, reverse=reverse)
    grads = [torch.randn(out.shape), torch.randn(last.shape)]
    got = torch.autograd.grad([out, last], list(ours.values()), grads)
    want = torch.autograd.grad(expected, list(exact.values()), [g.double() for g in grads])
    assert relative_error(out, expected[0]) < TOLERANCE
    assert relative_error(last, expected[1]) < TOLERANCE
    for name, g, w in zip(ours, got, want, strict=True):
        assert relative_error(g, w) < TOLERANCE, name


@pytest.mark.parametrize("shape", SHAPES)
def test_scan_and_gradients_agree_with_loop(shape):
    torch.manual_seed(0)
    *sizes, reverse = shape
    assert_scan_agrees(scan_inputs(*sizes), reverse=reverse)


@pytest.mark.parametrize("layout", ["channels", "strided"])
def test_scan_takes_any_strides(layout):
    torch.manual_seed(0)
    assert_scan_agrees(scan_inputs(2, 35, 19, 4, 1, layout))


@pytest.mark.parametrize("missing", ["D", "z", "delta_bias"])
def test_scan_without_optional_inputs(missing):
    torch.manual_seed(0)
    tensors = scan_inputs(2, 9, 17, 4, 1)
    del tensors[missing]
    assert_scan_agrees(tensors)


def test_scan_without_softplus():
    torch.manual_seed(0)
    tensors = scan_inputs(2, 9, 17, 4, 1)
    tensors["delta"] = tensors["delta"].abs()
    del tensors["delta_bias"]
    assert_scan_agrees(tensors, softplus=False)


def test_scan_survives_extreme_steps():
    """Decays below the smallest float32 and steps that overflow exp are no NaN."""
    torch.manual_seed(0)
    tensors = scan_inputs(1, 20, 18, 4, 1)
    tensors["delta"] = tensors["delta"] * 200
    tensors["z"] = tensors["z"] * 200
    ours = leaves(tensors)
    out = selective_scan(**ours, delta_softplus=True)
    expected, _ = reference(*(t.double() for t in tensors.values()), delta_softplus=True)
    assert relative_error(out, expected) < TOLERANCE
    grads = torch.autograd.grad(out.sum(), list(ours.values()))
    assert all(g.isfinite().all() for g in grads)


def test_scan_shows_a_nan():
    tensors = scan_inputs(1, 5, 16, 2, 1)
    tensors["A"][3, 1] = float("nan")
    out = selective_scan(**tensors, delta_softplus=True)
    assert out[0, 3].isnan().all()
    assert out[0, :3].isfinite().all()


def test_long_slow_decay_does_not_drift():
    """A state that forgets over thousands of tokens: errors of each step must not add up."""
    length = 4096
    tensors = {
        "u": torch.ones(1, 1, length),
        "delta": torch.full((1, 1, length), 1e-4),
        "A": torch.full((1, 1), -1.0),
        "B": torch.ones(1, 1, length),
        "C": torch.ones(1, 1, length),
    }
    out = selective_scan(**tensors)
    expected = (
        1e-4
        * (1 - torch.exp(torch.tensor(-1e-4 * length)).double())
        / -torch.expm1(torch.tensor(-1e-4, dtype=torch.float64))
    )
    assert abs(out[0, 0, -1].item() / expected.item() - 1) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_takes_16_bit_as_it_comes(dtype):
    torch.manual_seed(0)
    tensors = scan_inputs(2, 9, 17, 4, 1)
    for name in ("u", "delta", "z", "B"):
        tensors[name] = tensors[name].to(dtype)
    ours = leaves(tensors)
    out = selective_scan(**ours, delta_softplus=True)
    assert out.dtype == dtype
    exact = {name: t.double() for name, t in tensors.items()}
    expected, _ = loop(**exact, delta_softplus=True)
    assert relative_error(out.detach(), expected) < torch.finfo(dtype).eps
    grads = torch.autograd.grad(out.float().sum(), list(ours.values()))
    assert [g.dtype for g in grads] == [t.dtype for t in tensors.values()]


def test_reference_agrees_with_loop():
    torch.manual_seed(0)
    tensors = {name: t.double() for name, t in scan_inputs(2, 6, 8, 3, 2).items()}
    out, last = selective_scan(
        **tensors, delta_softplus=True, return_last_state=True, backend="reference"
    )
    expected = loop(**tensors, delta_softplus=True)
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(last, expected[1])


def test_scan_names_what_does_not_fit():
    tensors = scan_inputs(2, 9, 16, 4, 1)
    with pytest.raises(ValueError, match="delta must be"):
        selective_scan(**{**tensors, "delta": tensors["delta"][..., 1:]})
    with pytest.raises(ValueError, match="groups"):
        selective_scan(**{**tensors, **{m: torch.randn(2, 3, 4, 9) for m in "BC"}})
    with pytest.raises(ValueError, match="1 to 256"):
        selective_scan(**scan_inputs(1, 2, 1, 257, 1))


def test_empty_sequences_and_batches():
    assert selective_scan(**scan_inputs(2, 0, 16, 4, 1)).shape == (2, 16, 0)
    assert selective_scan(**scan_inputs(0, 3, 16, 4, 1)).shape == (0, 16, 3)


def conv_loop(x, weight, bias, silu, reverse):
    x = x.flip(-1) if reverse else x
    width, out = weight.shape[1], torch.zeros_like(x)
    for t in range(x.shape[2]):
        for k in range(width):
            if t - width + 1 + k >= 0:
                out[:, :, t] += weight[:, k] * x[:, :, t - width + 1 + k]
    out = out if bias is None else out + bias[:, None]
    out = out / (1 + (-out).exp()) if silu else out
    return out.flip(-1) if reverse else out


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize(
    ("shape", "silu", "bias", "reverse"),
    [
        ((2, 37, 9), True, True, False),
        ((1, 1, 1), False, True, False),
        ((66, 16, 3), True, False, True),
    ],
)
def test_convolution_and_gradients_agree_with_loop(shape, width, silu, bias, reverse):
    torch.manual_seed(0)
    tensors = {"x": torch.randn(shape), "weight": torch.randn(shape[1], width)}
    if bias:
        tensors["bias"] = torch.randn(shape[1])
    ours, exact = leaves(tensors), leaves(tensors, torch.float64)
    out = causal_conv1d(**ours, activation="silu" if silu else None, reverse=reverse)
    expected = conv_loop(exact["x"], exact["weight"], exact.get("bias"), silu, reverse)
    grad = torch.randn(shape)
    got = torch.autograd.grad(out, list(ours.values()), grad)
    want = torch.autograd.grad(expected, list(exact.values()), grad.double())
    assert relative_error(out, expected) < TOLERANCE
    for g, w in zip(got, want, strict=True):
        assert relative_error(g, w) < TOLERANCE


def test_convolution_names_what_does_not_fit():
    with pytest.raises(ValueError, match="activation"):
        causal_conv1d(torch.randn(1, 4, 5), torch.randn(4, 3), activation="relu")
    with pytest.raises(ValueError, match="width"):
        causal_conv1d(torch.randn(1, 4, 5), torch.randn(4, 5))


def inner_inputs(batch=2, length=37, channels=40, states=5, rank=3):
    return {
        "xz": torch.randn(batch, length, 2 * channels),
        "conv_weight": torch.randn(channels, 4),
        "conv_bias": torch.randn(channels),
        "x_proj_weight": torch.randn(rank + 2 * states, channels) * channels**-0.5,
        "dt_proj_weight": torch.randn(channels, rank),
        "A": -states * torch.rand(channels, states),
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels) - 2,
    }


def inner_loop(
    xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias, reverse
):
    channels, rank, states = len(A), dt_proj_weight.shape[1], A.shape[1]
    x, z = xz[..., :channels].mT, xz[..., channels:].mT
    u = conv_loop(x, conv_weight, conv_bias, True, reverse)
    projected = x_proj_weight @ u
    delta = dt_proj_weight @ projected[:, :rank]
    B, C = projected[:, rank : rank + states], projected[:, rank + states :]
    out, _ = loop(u, delta, A, B[:, None], C[:, None], D, z, delta_bias, True, reverse)
    return out.mT


def inner_step(tensors, **options):
    """Output and gradients of one forward and backward pass."""
    ours = leaves(tensors)
    out = mamba_inner(**ours, **options)
    grads = torch.autograd.grad(out, list(ours.values()), torch.ones_like(out))
    return [out.detach(), *grads]


@pytest.mark.parametrize(
    ("sizes", "reverse"),
    [((2, 37, 40, 5, 3), False), ((1, 1, 16, 1, 1), False), ((3, 5, 9, 16, 2), True)],
)
def test_inner_and_gradients_agree_with_loop(sizes, reverse):
    torch.manual_seed(0)
    tensors = inner_inputs(*sizes)
    ours, exact = leaves(tensors), leaves(tensors, torch.float64)
    out = mamba_inner(**ours, reverse=reverse)
    expected = inner_loop(**exact, reverse=reverse)
    grad = torch.randn(out.shape)
    got = torch.autograd.grad(out, list(ours.values()), grad)
    want = torch.autograd.grad(expected, list(exact.values()), grad.double())
    assert relative_error(out, expected) < TOLERANCE
    for name, g, w in zip(ours, got, want, strict=True):
        assert relative_error(g, w) < TOLERANCE, name
    with torch.no_grad():
        assert torch.equal(mamba_inner(**ours, reverse=reverse), out)


def test_inner_names_what_does_not_fit():
    with pytest.raises(ValueError, match="xz must be"):
        mamba_inner(**{**inner_inputs(), "xz": torch.randn(2, 3, 4)})


def test_a_training_step_keeps_no_more_than_its_inputs():
    """At 4,096 tokens and 64 states; every state kept would be 64 times an input."""
    tensors = inner_inputs(1, 4096, 32, 64, 2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mamba_inner(**leaves(tensors))
    one = 4096 * 32 * 4
    # xz is two of them; B and C, 64 states each, are four; kept states are one.
    assert sum(t.numel() * t.element_size() for t in kept) < 8 * one


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def scan_step(tensors):
    ours = leaves(tensors)
    out = selective_scan(**ours, delta_softplus=True)
    return [out.detach(), *torch.autograd.grad(out, list(ours.values()), torch.ones_like(out))]


@pytest.mark.parametrize("batch", [1, 5, 70])
def test_bits_do_not_depend_on_threads(batch, threads):
    torch.manual_seed(0)
    tensors = scan_inputs(batch, 40, 100, 16, 1)
    threads(1)
    expected = scan_step(tensors)
    for count in (1, 2, 3, 5):
        threads(count)
        assert all(map(torch.equal, scan_step(tensors), expected)), count


def test_torch_decides_how_many_threads(threads, monkeypatch):
    from facerec.model.kernels.cpu import jobs as jobs_cpu

    asked = []
    run = jobs_cpu._run_in_parallel
    monkeypatch.setattr(
        jobs_cpu, "_run_in_parallel", lambda *job: asked.append(job[2]) or run(*job)
    )
    for count in (1, 2):
        threads(count)
        selective_scan(**scan_inputs(4, 5, 40, 4, 1))
    assert asked == [2]


def test_python_threads_where_there_is_no_openmp(threads, monkeypatch):
    from facerec.model.kernels.cpu import jobs as jobs_cpu

    torch.manual_seed(0)
    tensors = scan_inputs(4, 40, 100, 16, 1)
    threads(3)
    expected = scan_step(tensors)
    monkeypatch.setattr(jobs_cpu, "_gomp_parallel", None)
    assert all(map(torch.equal, scan_step(tensors), expected))


def test_two_threads_at_once():
    torch.manual_seed(0)
    tensors = inner_inputs(4, 50, 64, 8, 2)
    expected = inner_step(tensors)
    failures = []

    def embed():
        for _ in range(20):
            if not all(map(torch.allclose, inner_step(tensors), expected)):
                failures.append("differs")

    workers = [threading.Thread(target=embed) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not failures


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_goes_on():
    done = run_python(
        """
import os, torch
from facerec.model.mamba import Mamba
torch.manual_seed(0)
torch.set_num_threads(2)
mixer, x = Mamba(64), torch.randn(4, 50, 64)
def step():
    out = mixer(x)
    grads = torch.autograd.grad(out.sum(), list(mixer.parameters()))
    return [out, *grads]
expected = step()
child = os.fork()
if child == 0:
    ok = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(step(), expected))
    os._exit(0 if ok else 3)
status = os.waitpid(child, 0)[1]
assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(step(), expected))
print("child", status)
"""
    )
    assert done.stdout.strip() == "child 0", done.stderr


def test_compiled_code_is_kept_where_only_the_user_writes(tmp_path):
    code = """
import torch
from facerec.model.scan import causal_conv1d
print(causal_conv1d(torch.ones(1, 3, 4), torch.ones(3, 2), activation="silu").sum().item())
"""
    package = {path for path in (ROOT / "facerec").rglob("*") if path.suffix in (".nbi", ".nbc")}
    cache = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "NUMBA_CACHE_DIR": "",
    }
    first, second = run_python(code, **cache), run_python(code, **cache)
    assert first.stdout == second.stdout != ""
    assert "compiling CPU kernels" in first.stderr
    assert second.stderr == ""
    after = {path for path in (ROOT / "facerec").rglob("*") if path.suffix in (".nbi", ".nbc")}
    assert after == package
    kept = list(tmp_path.rglob("*.nbi"))
    assert kept
    if os.name == "posix":
        folders = list(tmp_path.rglob("kernels-*"))
        assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)


def test_a_folder_that_others_write_is_not_trusted(tmp_path, monkeypatch):
    from facerec.model.kernels.cpu import jobs as jobs_cpu

    if os.name != "posix":
        pytest.skip("permissions of POSIX")
    monkeypatch.setattr(jobs_cpu, "user_cache_dir", lambda *_: str(tmp_path / "open"))
    monkeypatch.setattr(jobs_cpu.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(jobs_cpu.numba.config, "CACHE_DIR", "")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert jobs_cpu.kernel_folder().parent == tmp_path / f"facerec-{os.getuid()}"
    monkeypatch.setattr(jobs_cpu.numba.config, "CACHE_DIR", str(tmp_path / "open" / "own" / "deep"))
    assert jobs_cpu.kernel_folder().parent == tmp_path / f"facerec-{os.getuid()}"  # "open" above it
    (tmp_path / "open").chmod(0o1777)
    assert jobs_cpu.kernel_folder().parent == tmp_path / "open" / "own" / "deep"
    (tmp_path / "link").symlink_to(tmp_path / "open" / "own")
    monkeypatch.setattr(jobs_cpu.numba.config, "CACHE_DIR", str(tmp_path / "link"))
    assert jobs_cpu.kernel_folder().parent == tmp_path / "open" / "own"  # which nobody can turn
    (tmp_path / "open").chmod(0o777)
    (tmp_path / f"facerec-{os.getuid()}").chmod(0o777)
    assert jobs_cpu.kernel_folder() is None


def operator_samples():
    torch.manual_seed(0)
    scan = scan_inputs(2, 35, 7, 3, 1)
    inner = inner_inputs(2, 5, 7, 3, 2)
    x, weight = torch.randn(2, 7, 5), torch.randn(7, 4)
    return {
        "scan_forward": [
            (*leaves(scan).values(), True, False, True, True),
            (*scan.values(), True, True, False, False),
        ],
        "conv_forward": [(x.requires_grad_(), weight.requires_grad_(), None, True, True)],
        "inner_forward": [
            (*leaves(inner).values(), False, True),
            (*inner.values(), True, False),
            (inner["xz"].bfloat16().requires_grad_(), *list(inner.values())[1:], False, True),
        ],
    }


@pytest.mark.parametrize("name", ["scan_forward", "conv_forward", "inner_forward"])
def test_operators_pass_opcheck(name):
    from facerec.model.kernels.cpu import mamba as mamba_cpu  # noqa: F401  registers them

    for sample in operator_samples()[name]:
        torch.library.opcheck(getattr(torch.ops.facerec, name).default, sample)


def test_autocast_leaves_the_operators_alone():
    torch.manual_seed(0)
    tensors = inner_inputs()
    tensors["xz"] = tensors["xz"].bfloat16()
    expected = inner_step(tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = inner_step(tensors)
    assert all(map(torch.equal, got, expected))


def test_backends_resolve(monkeypatch):
    monkeypatch.delenv("FACEREC_SCAN", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert resolve_backend("auto", "cpu") == "numba"
    assert resolve_backend("reference", "cuda") == "reference"
    with pytest.raises(ValueError, match="unknown"):
        resolve_backend("fast")
    with pytest.raises(ValueError, match="does not run on cpu"):
        resolve_backend("triton", "cpu")
    with pytest.raises(ValueError, match="does not run on cuda"):
        resolve_backend("numba", "cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_backend("triton", "cpu") == "triton"
    monkeypatch.setenv("FACEREC_SCAN", "reference")
    assert resolve_backend("auto", "cpu") == "reference"

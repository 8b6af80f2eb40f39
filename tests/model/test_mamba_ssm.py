"""The calls into mamba-ssm and causal-conv1d, against stand-ins that insist on what the packages document."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from facerec.model import scan
from facerec.model.kernels import mamba_ssm as mamba_ssm_bridge
from facerec.model.kernels.reference import reference_conv
from facerec.model.scan import causal_conv1d, mamba_inner, selective_scan


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    return_last_state=False, cu_seqlens=None,
):  # fmt: skip
    """Signature of mamba-ssm 2.3; the assertions are its extension's checks."""
    batch, channels, length = u.shape
    states = A.shape[1]
    assert u.dtype in (torch.float32, torch.float16, torch.bfloat16)
    for sequence in (u, delta, B, C, *([] if z is None else [z])):
        assert sequence.dtype == u.dtype and sequence.stride(-1) == 1
    assert B.dim() == C.dim() == 4 and B.shape == C.shape and states <= 256
    assert B.shape == (batch, B.shape[1], states, length) and channels % B.shape[1] == 0
    for weight in (A, D, delta_bias):
        assert weight is None or (weight.dtype == torch.float32 and weight.is_contiguous())
    assert isinstance(delta_softplus, bool) and isinstance(return_last_state, bool)
    assert cu_seqlens is None
    out, last = scan.reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (out, last.detach()) if return_last_state else out


def causal_conv1d_fn(
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
    final_states_out=None, activation=None,
):  # fmt: skip
    """Signature of causal-conv1d 1.4 to 1.6."""
    assert seq_idx is None and initial_states is None and final_states_out is None
    assert not return_final_states and activation in (None, "silu", "swish")
    assert {x.dtype, weight.dtype} <= {torch.float32, torch.float16, torch.bfloat16}
    assert 2 <= weight.shape[1] <= 4 and weight.is_contiguous()
    assert x.stride(2) == 1  # with the channels innermost there are further conditions
    assert bias is None or (bias.dtype == weight.dtype and bias.stride(-1) == 1)
    return reference_conv(x, weight, bias, activation is not None)


@pytest.fixture
def installed(monkeypatch):
    """mamba-ssm seems to be installed, and to run on a CPU."""
    stand_ins = (selective_scan_fn, causal_conv1d_fn)
    monkeypatch.setattr(mamba_ssm_bridge, "kernels", lambda: stand_ins)
    monkeypatch.setattr(scan, "_backend_for", lambda tensor, backend: backend)


def scan_inputs(dtype=torch.float32) -> list[Tensor]:
    sequence = lambda *wide: torch.randn(2, 7, *wide).movedim(1, -1).to(dtype)  # noqa: E731
    return [
        sequence(6),
        sequence(6),
        -torch.rand(3, 6).t(),  # not contiguous
        sequence(2, 3),
        sequence(2, 3).float(),  # another dtype than u
        torch.randn(6),
        sequence(6),
        torch.randn(6).bfloat16(),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_hands_over_what_mamba_ssm_wants(installed, dtype, reverse):
    torch.manual_seed(0)
    tensors = scan_inputs(dtype)
    options = {"delta_softplus": True, "return_last_state": True, "reverse": reverse}
    out, last = selective_scan(*tensors, backend="mamba-ssm", **options)
    expected, expected_last = selective_scan(*tensors, backend="reference", **options)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    )
    torch.testing.assert_close(out, expected, **tolerance)
    torch.testing.assert_close(last, expected_last, **tolerance)
    assert last.dtype == torch.float32


def test_optional_inputs_stay_out(installed):
    torch.manual_seed(0)
    u, delta, A, B, C, *_ = scan_inputs()
    out = selective_scan(u, delta.abs(), A, B, C, backend="mamba-ssm")
    torch.testing.assert_close(out, selective_scan(u, delta.abs(), A, B, C, backend="reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_conv_hands_over_what_causal_conv1d_wants(installed, activation, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 10).transpose(1, 2)[:, :5].to(dtype)  # the half of a wider tensor
    arguments = (x, torch.randn(5, 4), torch.randn(5), activation)
    got = causal_conv1d(*arguments, backend="mamba-ssm")
    torch.testing.assert_close(got, causal_conv1d(*arguments, backend="reference"))


def test_whole_mixer_with_gradients(installed):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 5, 8), torch.randn(4, 4), torch.randn(4), torch.randn(8, 4)]
    tensors += [torch.randn(4, 2), -torch.rand(4, 3), torch.randn(4), torch.randn(4)]
    results = []
    for backend in ("mamba-ssm", "reference"):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = mamba_inner(*leaves, backend=backend)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradient_of_the_last_state_is_refused_not_dropped(installed):
    tensors = scan_inputs()
    tensors[0].requires_grad_()
    with pytest.raises(ValueError, match="gradient of the last state"):
        selective_scan(*tensors, return_last_state=True, backend="mamba-ssm")
    assert selective_scan(*tensors, backend="mamba-ssm").requires_grad


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(mamba_ssm_bridge, "kernels", lambda: None)
    with pytest.raises(ValueError, match="cannot be imported"):
        mamba_ssm_bridge.scan(*scan_inputs(), True)


@pytest.mark.parametrize("found, expected", [((1, 2), "mamba-ssm"), (None, "triton")])
def test_auto_on_cuda_takes_mamba_ssm_where_it_imports(monkeypatch, found, expected):
    monkeypatch.setattr(mamba_ssm_bridge, "kernels", lambda: found)
    assert scan._fastest("cuda") == expected

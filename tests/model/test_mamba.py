"""The mixer: mamba-ssm's parameters, both directions, and torch.compile and torch.export."""

from __future__ import annotations

import math

import pytest
import torch

from facerec.model.mamba import Mamba


def step(mixer, x, **options):
    out = mixer(x, **options)
    return [out.detach(), *torch.autograd.grad(out.sum(), list(mixer.parameters()))]


def test_parameters_are_those_of_mamba_ssm():
    shapes = {name: tuple(t.shape) for name, t in Mamba(48, d_state=8).state_dict().items()}
    assert shapes == {
        "A_log": (96, 8),
        "D": (96,),
        "in_proj.weight": (192, 48),
        "conv1d.weight": (96, 1, 4),
        "conv1d.bias": (96,),
        "x_proj.weight": (3 + 16, 96),
        "dt_proj.weight": (96, 3),
        "dt_proj.bias": (96,),
        "out_proj.weight": (48, 96),
    }
    with_bias = Mamba(48, bias=True, conv_bias=False).state_dict()
    assert {"in_proj.bias", "out_proj.bias"} <= set(with_bias)
    assert "conv1d.bias" not in with_bias


def test_initialisation_is_that_of_mamba_ssm():
    torch.manual_seed(0)
    mixer = Mamba(64, d_state=4, dtype=torch.bfloat16)
    torch.testing.assert_close(mixer.A_log.exp()[5], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert mixer.A_log.dtype == mixer.D.dtype == torch.float32
    assert torch.equal(mixer.D, torch.ones(128))
    mixer = Mamba(64)
    start = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert start.min() > 0.00099
    assert start.max() < 0.101
    assert abs(start.log().mean().item() - (math.log(0.001) + math.log(0.1)) / 2) < 0.3
    assert mixer.dt_proj.weight.abs().max() <= 4**-0.5
    assert torch.all(Mamba(64, dt_init="constant").dt_proj.weight == 4**-0.5)
    assert mixer.A_log._no_weight_decay
    assert mixer.D._no_weight_decay
    assert mixer.dt_proj.bias._no_reinit
    with pytest.raises(ValueError, match="dt_init"):
        Mamba(64, dt_init="zeros")


@pytest.mark.parametrize("length", [1, 20])
def test_fused_equals_reference(length):
    torch.manual_seed(0)
    mixer, x = Mamba(24, d_conv=3), torch.randn(2, length, 24)
    fused = step(mixer, x)
    mixer.scan_backend = "reference"
    for got, expected in zip(fused, step(mixer, x), strict=True):
        torch.testing.assert_close(
            got, expected, rtol=2e-5, atol=2e-5 * expected.abs().max().item()
        )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_reverse_is_flip_mix_flip(backend):
    torch.manual_seed(0)
    mixer, x = Mamba(24, scan_backend=backend), torch.randn(2, 11, 24)
    reverse = mixer(x, reverse=True)
    torch.testing.assert_close(reverse, mixer(x.flip(1)).flip(1))
    assert not torch.allclose(reverse, mixer(x))


def test_runs_are_equal_bit_for_bit():
    torch.manual_seed(0)
    mixer, x = Mamba(32), torch.randn(6, 30, 32)
    first = step(mixer, x)
    assert all(map(torch.equal, step(mixer, x), first))


def test_autocast_gives_16_bit_close_to_float32():
    torch.manual_seed(0)
    mixer, x = Mamba(32), torch.randn(90, 30, 32)  # more tokens than are taken at a time
    expected = step(mixer, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = step(mixer, x)
    assert made[0].dtype == torch.bfloat16
    for got, exact in zip(made, expected, strict=True):
        assert (got - exact).abs().max() < 0.05 * exact.abs().max()


def test_torch_compile_equals_eager():
    torch.manual_seed(0)
    mixer = Mamba(24)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    for x in (torch.randn(2, 9, 24), torch.randn(3, 9, 24), torch.randn(3, 40, 24)):
        eager = step(mixer, x)
        out = compiled(x)
        grads = torch.autograd.grad(out.sum(), list(mixer.parameters()))
        for got, expected in zip([out.detach(), *grads], eager, strict=True):
            torch.testing.assert_close(got, expected)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), eager[0])


def test_torch_export_equals_eager():
    torch.manual_seed(0)
    mixer = Mamba(24).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        mixer, (torch.randn(2, 9, 24),), dynamic_shapes={"hidden": {0: batch}}
    )
    for count in (1, 2, 5):
        x = torch.randn(count, 9, 24)
        torch.testing.assert_close(program.module()(x), mixer(x))

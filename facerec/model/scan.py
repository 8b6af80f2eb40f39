"""The selective scan of Mamba, its convolution, and all between a mixer's two projections.

Three functions, each one name over several back ends:

* `selective_scan` -- the recurrence (Gu and Dao, "Mamba", 2023, equation 2 and algorithm 2);
* `causal_conv1d`  -- the short depthwise convolution in front of it;
* `mamba_inner`    -- convolution, SiLU, x_proj, dt_proj, scan and gate.

Back ends: `numba` (CPU: `mamba_cpu`), `triton` (CUDA: `mamba_triton`), `mamba-ssm` (CUDA, where it is installed:
`mamba_ssm_bridge`), `reference` (PyTorch, a loop over tokens, differentiated by autograd: slow, easy
to read, and what the others are tested against). `auto` takes the fastest that works on the tensor's
device; the environment variable FACEREC_SCAN overrides the choice for a whole process.

The fused ones (`mamba_cpu`, `mamba_triton`) are PyTorch operators of their own and read the tokens backward
where they are told to; for the others this module flips the tokens.

Axes: B batch, L tokens, D channels (d_inner), N state, G groups of B and C, R rank of delta, W width.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from facerec.model.kernels import mamba_ssm as mamba_ssm_bridge
from facerec.model.kernels.reference import grouped, reference, reference_conv

BACKENDS = ("auto", "numba", "triton", "mamba-ssm", "reference")
_FUSED = {
    "numba": "facerec.model.kernels.cpu.mamba",
    "triton": "facerec.model.kernels.triton.mamba",
}


def resolve_backend(name: str = "auto", device: str | torch.device = "cpu") -> str:
    """The back end that `name` means for tensors on `device`.

    Args:
        name: one of `BACKENDS`. FACEREC_SCAN in the environment, where it is set, takes its place.
        device: where the tensors are.

    Returns:
        `numba`, `triton`, `mamba-ssm` or `reference`, never `auto`.

    Raises:
        ValueError: if the name is unknown or the back end cannot run on that device.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    key = (os.environ.get("FACEREC_SCAN") or name, torch.device(device).type, interpreted)
    if key not in _resolved:
        _resolved[key] = _resolve(*key)
    return _resolved[key]


_resolved: dict[tuple[str, str, bool], str] = {}


def _resolve(name: str, device: str, interpreted: bool) -> str:
    if name not in BACKENDS:
        raise ValueError(f"scan back end {name!r} is unknown; there are {', '.join(BACKENDS)}")
    if name == "auto":
        return _fastest(device)
    devices = {
        "numba": ("cpu",),
        "triton": ("cuda", "cpu") if interpreted else ("cuda",),
        "mamba-ssm": ("cuda",),
    }
    if name in devices and device not in devices[name]:
        hint = " unless TRITON_INTERPRET=1" if name == "triton" else ""
        raise ValueError(f"scan back end {name!r} does not run on {device}{hint}")
    return name


def _fastest(device: str) -> str:
    if device == "cpu":
        if importlib.util.find_spec("numba") and importlib.util.find_spec(
            "facerec.model.kernels.cpu.mamba"
        ):
            return "numba"
        return _fall_back(device, "numba is not installed")
    if device == "cuda":
        if mamba_ssm_bridge.kernels() is not None:
            return "mamba-ssm"
        if importlib.util.find_spec("triton"):
            return "triton"
        return _fall_back(device, "neither mamba-ssm nor triton is installed")
    return "reference" if device == "meta" else _fall_back(device, "no fused kernels for it")


def _fused(backend: str) -> ModuleType:
    # Imported late: numba is not needed on CUDA, nor Triton on a CPU.
    return importlib.import_module(_FUSED[backend])


def _fall_back(device: str, reason: str) -> str:
    print(f"facerec: slow reference scan on {device}: {reason}", file=sys.stderr, flush=True)
    return "reference"


def selective_scan(
    u: Tensor,  # (B, D, L)
    delta: Tensor,  # (B, D, L)
    A: Tensor,  # (D, N)
    B: Tensor,  # (B, N, L) or (B, G, N, L)
    C: Tensor,  # (B, N, L) or (B, G, N, L)
    D: Tensor | None = None,  # (D,)
    z: Tensor | None = None,  # (B, D, L)
    delta_bias: Tensor | None = None,  # (D,)
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear recurrence whose step, input and output matrices depend on the token.

    With dt = softplus(delta + delta_bias) the state h (D, N) runs over the tokens as

        h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t,  y_t = C_t h_t + D u_t,  out_t = y_t SiLU(z_t)

    (Gu and Dao 2023, equation 2 and algorithm 2; B discretised by Euler's rule, as in their code).
    Any strides are taken without a copy; (B, L, D) seen through `transpose(1, 2)` is fastest.

    Args:
        u, delta: input and step before bias and softplus.
        A: transition, usually negative.
        B, C: input and output matrices; with G groups, channel d uses group d // (D / G).
        D: skip weight; without it no skip.
        z: gate; without it no gate.
        delta_bias: added to delta before softplus.
        delta_softplus: put delta through softplus.
        return_last_state: return the state after the last token too.
        reverse: run from the last token to the first; equal to flip, scan, flip.
        backend: one of `BACKENDS`.

    Returns:
        out (B, D, L) in u's dtype; with `return_last_state` also h (B, D, N) float32.

    Raises:
        ValueError: if shapes do not fit or the back end cannot run there.
    """
    B, C = grouped(B), grouped(C)
    _check_scan(u, delta, A, B, C, D, z, delta_bias)
    chosen = _backend_for(u, backend)
    if chosen in _FUSED:
        out, last = _fused(chosen).scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, return_last_state
        )
    else:
        if reverse:
            u, delta, B, C = (t.flip(-1) for t in (u, delta, B, C))
            z = z.flip(-1) if z is not None else None
        tensors = (u, delta, A, B, C, D, z, delta_bias)
        if chosen == "mamba-ssm":
            out, last = mamba_ssm_bridge.scan(*tensors, delta_softplus, return_last_state)
        else:
            out, last = reference(*tensors, delta_softplus)
        out = out.flip(-1) if reverse else out
    return (out, last) if return_last_state else out


def causal_conv1d(
    x: Tensor,  # (B, D, L)
    weight: Tensor,  # (D, W)
    bias: Tensor | None = None,  # (D,)
    activation: str | None = None,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution over the last `W` tokens, then SiLU if asked.

    out_t = activation(bias + sum_k weight_k x_(t - W + 1 + k)), zeros before the first token; the
    semantics of `causal_conv1d.causal_conv1d_fn`.

    Args:
        x: input, any strides.
        weight: W taps a channel, W from 2 to 4.
        bias: added before the activation.
        activation: None, "silu" or "swish" (the same).
        reverse: the tokens *after* each one instead; equal to flip, convolve, flip.
        backend: one of `BACKENDS`.

    Returns:
        (B, D, L) in x's dtype.

    Raises:
        ValueError: if shapes do not fit, the activation is unknown or the back end cannot run.
    """
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation must be None, 'silu' or 'swish', not {activation!r}")
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    if not 2 <= weight.shape[1] <= 4:
        raise ValueError(f"width must be 2 to 4, not {weight.shape[1]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), not {tuple(bias.shape)}")
    silu = activation is not None
    chosen = _backend_for(x, backend)
    if chosen in _FUSED:
        return _fused(chosen).conv(x, weight, bias, silu, reverse)
    x = x.flip(-1) if reverse else x
    run = mamba_ssm_bridge.conv if chosen == "mamba-ssm" else reference_conv
    out = run(x, weight, bias, silu)
    return out.flip(-1) if reverse else out


def mamba_inner(
    xz: Tensor,  # (B, L, 2 D)
    conv_weight: Tensor,  # (D, W)
    conv_bias: Tensor | None,  # (D,)
    x_proj_weight: Tensor,  # (R + 2 N, D)
    dt_proj_weight: Tensor,  # (D, R)
    A: Tensor,  # (D, N)
    D: Tensor | None,  # (D,)
    delta_bias: Tensor | None,  # (D,)
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """All of a Mamba mixer between in_proj and out_proj (Gu and Dao 2023, figure 3, algorithm 2).

    x, z = halves of xz; u = SiLU(conv(x)); dt, B, C = x_proj(u); delta = dt_proj(dt);
    out = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True).

    Args:
        xz: what in_proj returns: x in the first D channels, z in the others.
        conv_weight, conv_bias: the depthwise convolution.
        x_proj_weight, dt_proj_weight: weights of the two small projections.
        A, D, delta_bias: as in `selective_scan`.
        reverse: run from the last token to the first; equal to flip, mixer, flip.
        backend: one of `BACKENDS`.

    Returns:
        (B, L, D) in xz's dtype, for out_proj.

    Raises:
        ValueError: if shapes do not fit or the back end cannot run there.
    """
    _check_inner(xz, conv_weight, x_proj_weight, dt_proj_weight, A)
    chosen = _backend_for(xz, backend)
    if chosen == "numba":
        from facerec.model.kernels.cpu.mamba import inner

        return inner(
            xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias, reverse
        )
    x, z = xz.transpose(1, 2).chunk(2, dim=1)
    u = causal_conv1d(x, conv_weight, conv_bias, "silu", reverse=reverse, backend=chosen)
    projected = F.linear(u.transpose(1, 2), x_proj_weight)  # (B, L, R + 2 N)
    rank, state = dt_proj_weight.shape[1], A.shape[1]
    dt, B, C = projected.split((rank, state, state), dim=-1)
    delta = F.linear(dt, dt_proj_weight).transpose(1, 2)
    out = selective_scan(
        u,
        delta.to(u.dtype),
        A,
        B.transpose(1, 2).to(u.dtype),
        C.transpose(1, 2).to(u.dtype),
        D,
        z,
        delta_bias,
        delta_softplus=True,
        reverse=reverse,
        backend=chosen,
    )
    assert isinstance(out, Tensor)  # without the last state
    return out.transpose(1, 2)


def _backend_for(tensor: Tensor, backend: str) -> str:
    # The fused kernels compute in float32; who hands over float64 wants float64.
    if tensor.dtype == torch.float64:
        return "reference"
    return resolve_backend(backend, tensor.device)


def _check_scan(u, delta, A, B, C, D, z, delta_bias) -> None:
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(
            f"u must be (batch, channels, length), A (channels, state); got {u.shape}, {A.shape}"
        )
    batch, channels, length = u.shape
    state, groups = A.shape[1], B.shape[1]
    expected = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, state)),
        "B": (B, (batch, groups, state, length)),
        "C": (C, (batch, groups, state, length)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, not {tuple(tensor.shape)}")
    if channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
    if not 1 <= state <= 256:
        raise ValueError(f"d_state must be 1 to 256, not {state}")


def _check_inner(xz, conv_weight, x_proj_weight, dt_proj_weight, A) -> None:
    channels, state = A.shape
    rank = dt_proj_weight.shape[1]
    if xz.dim() != 3 or xz.shape[2] != 2 * channels:
        raise ValueError(f"xz must be (batch, length, {2 * channels}), not {tuple(xz.shape)}")
    expected = {
        "conv_weight": (conv_weight, (channels, conv_weight.shape[-1])),
        "x_proj_weight": (x_proj_weight, (rank + 2 * state, channels)),
        "dt_proj_weight": (dt_proj_weight, (channels, rank)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, not {tuple(tensor.shape)}")

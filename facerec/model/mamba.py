"""The Mamba mixer, parameter for parameter the one in mamba-ssm, on any device.

Weights move both ways with `load_state_dict(strict=True)`. What lies between the two large
projections is one operator, `facerec.model.scan.mamba_inner`; the projections are plain `nn.Linear`.

Axes: B batch, L tokens, M d_model, D d_inner = expand * d_model, N d_state, R dt_rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from facerec.model.scan import mamba_inner


class Mamba(nn.Module):
    """Selective state space mixer (Gu and Dao, "Mamba", 2023, figure 3): (B, L, M) -> (B, L, M).

    Args:
        d_model: width of the tokens.
        d_state: states a channel, 1 to 256.
        d_conv: width of the causal convolution, 2 to 4.
        expand: d_inner over d_model.
        dt_rank: rank of the step's projection; "auto" is ceil(d_model / 16).
        dt_min, dt_max: range, log-uniform, of the steps at the start.
        dt_init: "random" (uniform) or "constant" weights of dt_proj.
        dt_scale: these weights are within, or at, dt_scale / sqrt(dt_rank).
        dt_init_floor: least step at the start.
        conv_bias, bias: whether the convolution, and both large projections, have a bias.
        use_fast_path: accepted for mamba-ssm's sake; the path is always the fused one.
        layer_idx: kept as an attribute.
        device, dtype: of the parameters; A_log and D are float32 whatever the dtype.
        scan_backend: see `facerec.model.scan.BACKENDS`.

    Raises:
        ValueError: if `dt_init` is unknown.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.use_fast_path, self.layer_idx, self.scan_backend = (
            use_fast_path,
            layer_idx,
            scan_backend,
        )

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, device=device, dtype=dtype)
        self.conv1d = nn.Conv1d(
            self.d_inner,
            self.d_inner,
            d_conv,
            groups=self.d_inner,
            padding=d_conv - 1,
            bias=conv_bias,
            device=device,
            dtype=dtype,
        )
        self.x_proj = nn.Linear(
            self.d_inner, self.dt_rank + 2 * d_state, bias=False, device=device, dtype=dtype
        )
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=True, device=device, dtype=dtype)
        self._init_step(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)

        # S4D-real: A_n = -n, kept as a logarithm so that A stays negative.
        row = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(torch.log(row).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner, device=device))
        _mark(self.A_log, "_no_weight_decay")
        _mark(self.D, "_no_weight_decay")
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, device=device, dtype=dtype)

    def _init_step(
        self, dt_min: float, dt_max: float, init: str, scale: float, floor: float
    ) -> None:
        """dt_proj such that softplus(bias) is log-uniform in [dt_min, dt_max]."""
        bound = self.dt_rank**-0.5 * scale
        if init == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        elif init == "random":
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        else:
            raise ValueError(f"dt_init must be 'random' or 'constant', not {init!r}")
        uniform = torch.rand(self.d_inner, device=self.dt_proj.bias.device)
        step = torch.exp(uniform * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
        step = step.clamp(min=floor)
        with torch.no_grad():  # the inverse of softplus
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        _mark(self.dt_proj.bias, "_no_reinit")

    def forward(self, hidden: Tensor, reverse: bool = False) -> Tensor:
        """Mix the tokens.

        Args:
            hidden: (B, L, M).
            reverse: run from the last token to the first; equal to flip, mixer, flip.

        Returns:
            (B, L, M).
        """
        mixed = mamba_inner(
            self.in_proj(hidden),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            -torch.exp(self.A_log.float()),
            self.D,
            self.dt_proj.bias,
            reverse=reverse,
            backend=self.scan_backend,
        )
        return self.out_proj(mixed)


def _mark(parameter: nn.Parameter, name: str) -> None:
    """Marks a parameter for optimisers and initialisers, by the attribute that mamba-ssm has for that."""
    setattr(parameter, name, True)

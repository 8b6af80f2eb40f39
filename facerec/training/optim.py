"""What a step of training is made of beside its gradient: the schedule, who decays, and the averaged weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from facerec.training.settings import TrainerSettings

NO_DECAY_NAMES = ("positions",)


def learning_rate(step: int, steps_per_epoch: int, settings: TrainerSettings) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov & Hutter, 2017), at optimiser step `step` from 0."""
    warmup = settings.warmup_epochs * steps_per_epoch
    total = settings.epochs * steps_per_epoch
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, total - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(modules: list[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: those that decay, and norms, biases, positions, A and D, which do not."""
    decay, free = list[nn.Parameter](), list[nn.Parameter]()
    for module in modules:
        for name, parameter in module.named_parameters():
            exempt = parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False)
            exempt = exempt or name.rsplit(".", 1)[-1] in NO_DECAY_NAMES
            (free if exempt else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


class Average:
    """Exponential moving average of a network, buffers included; its decay rises with the steps to `decay`."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = copy.deepcopy(network).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Takes the weights after optimiser step `step` (from 1) in."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        ours, theirs = self.network.state_dict(), network.state_dict()
        floats = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in floats], [theirs[n] for n in floats], weight)
        for name in ours.keys() - set(floats):
            ours[name].copy_(theirs[name])


def clone_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state_dict on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}

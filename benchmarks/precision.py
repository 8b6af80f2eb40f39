"""What bfloat16 is worth in training on this CPU: a step of the same network in float32 and in bfloat16, in turns.

    python benchmarks/precision.py [--config configs/distill.yaml] [--rounds 15] [--threads 1] [KEY=VALUE ...]

A step is forward, backward and AdamW of one batch, as `train` runs it, without reading, augmentation and loss. It ends
with what `precision: auto` means here, which should be the faster of the two.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from scan import interleaved, machine

from facerec.config.recipe import resolve
from facerec.model.network import build_network
from facerec.runtime.device import autocast, keep_freed_memory, resolve_precision
from facerec.training.optim import parameter_groups
from facerec.training.settings import TrainSettings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--config", help="recipe of the network and its batch; none means the defaults"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="beside the recipe, as image_size=64"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    given = dict(pair.split("=", 1) for pair in options.settings)
    settings = resolve(TrainSettings, given, options.config)
    calls = {precision: step(settings, precision) for precision in ("fp32", "bf16")}
    taken = interleaved(calls, options.rounds)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for precision, milliseconds in taken.items():
        speed = 1e3 * settings.batch_size / milliseconds
        print(f"{precision}: {milliseconds:.0f} ms a step, {speed:.0f} pictures a second")
    print(f"bf16 is {taken['fp32'] / taken['bf16']:.2f}x as fast", end="; ")
    print(f"auto means {resolve_precision('auto', torch.device('cpu'))} here")


def step(settings: TrainSettings, precision: str) -> Callable[[], None]:
    """One step of a network and an optimiser of its own."""
    torch.manual_seed(0)
    network = build_network(settings)
    groups = parameter_groups([network], settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    pictures = torch.rand(settings.batch_size, 3, *(settings.image_size,) * 2) * 2 - 1
    weights = torch.randn(settings.batch_size, settings.embedding_dim)

    def call() -> None:
        with autocast(precision, pictures.device):
            embeddings = network(pictures)
        optimizer.zero_grad(set_to_none=True)
        (embeddings * weights).sum().backward()
        optimizer.step()

    return call


if __name__ == "__main__":
    main()

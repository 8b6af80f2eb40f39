"""Embeddings per second of the default network and of torchvision's ResNet-18 behind the same interface.

    python benchmarks/throughput.py [--image-size 64] [--batch 64] [--seconds 10] [--threads 2] [KEY=VALUE ...]

Both take the same batches of faces, cut out already, through `FaceEmbedder.embed_faces`: uint8 in, unit vectors out.
They take turns within one process, so that whatever else the machine does falls on both; medians of single batches
and of the ratios of neighbouring ones are told. KEY=VALUE changes a setting of the first network.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from facerec.config.recipe import resolve
from facerec.data.settings import AlignSettings, DataSettings
from facerec.inference.embedder import FaceEmbedder
from facerec.inference.model_io import LoadedModel, ModelConfig
from facerec.model.network import build_network, parameter_count
from facerec.model.settings import NetworkSettings

WARM_UP = 3  # batches; the first one loads kernels


class Recipe(NetworkSettings, DataSettings, AlignSettings):
    """What a network is made from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="for both together")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the first network")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = dict(pair.split("=", 1) for pair in args.settings)
    networks = {"default network": given, "ResNet-18": {"backbone": "resnet18"}}
    embedders = {
        name: embedder({**changes, "image_size": str(args.image_size)}, args.device)
        for name, changes in networks.items()
    }
    seconds = take_turns(list(embedders.values()), args.batch, args.image_size, args.seconds)
    print(f"{machine()}; {args.threads} threads, device {args.device}")
    print(f"{len(seconds)} batches each of {args.batch} faces of {args.image_size} pixels, fp32\n")
    print("| network | parameters | embeddings per second |\n|---|---|---|")
    for (name, one), taken in zip(embedders.items(), seconds.T, strict=True):
        speed = args.batch / statistics.median(taken)
        print(f"| {name} | {parameter_count(one.network) / 1e6:.2f} M | {speed:,.0f} |")
    low, ratio, high = np.percentile(seconds[:, 1] / seconds[:, 0], [25, 50, 75])
    print(f"\ndefault network / ResNet-18: {ratio:.2f}x (middle half {low:.2f} to {high:.2f})")


def embedder(given: dict[str, str], device: str) -> FaceEmbedder:
    """An untrained network behind FaceEmbedder; how good its weights are does not change its speed."""
    settings = resolve(Recipe, given)
    torch.manual_seed(0)
    config = ModelConfig(
        format=1,
        facerec="",
        image_size=settings.image_size,
        crop=settings.crop,
        network=NetworkSettings(**{n: getattr(settings, n) for n in NetworkSettings.model_fields}),
        sha256={},
    )
    model = LoadedModel(build_network(settings).eval(), config, {}, {})
    return FaceEmbedder(model, torch.device(device))


def take_turns(
    embedders: list[FaceEmbedder], batch: int, image_size: int, seconds: float
) -> np.ndarray:
    """(rounds, networks) seconds of single batches, one of each network a round, in turning order."""
    shape = (batch, image_size, image_size, 3)
    faces = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for one in embedders * WARM_UP:
        one.embed_faces(faces)
    rows: list[list[float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rows) < 5:
        row = [0.0] * len(embedders)
        for k in range(len(embedders)):
            turn = (k + len(rows)) % len(embedders)
            start = time.perf_counter()
            embedders[turn].embed_faces(faces)
            row[turn] = time.perf_counter() - start
        rows.append(row)
    return np.array(rows)


def machine() -> str:
    """Processor, cores that this process may use, load, versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{name}, {cores} cores, load {load:.1f}; torch {torch.__version__}"


if __name__ == "__main__":
    main()

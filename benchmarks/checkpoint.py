"""What checkpoints cost: seconds for one over seconds of training between two.

    python benchmarks/checkpoint.py [--config configs/lfw.yaml] [--d-model 128] [--pictures 7700] [--steps 20]
        [--device auto] [--folder DIR]

Steps of a real training on random pictures in the shape of LFW, and checkpoints of it as `train` writes them: the
state copied to the CPU, made into safetensors, its SHA-256, written and synced. The folder should be on the disk that
trainings use.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from facerec.config.recipe import resolve
from facerec.data.store import Store
from facerec.losses.objective import Objective
from facerec.model.network import build_network, parameter_count
from facerec.training.checkpoint import Checkpoints
from facerec.training.run import keeper
from facerec.training.settings import TrainSettings
from facerec.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/lfw.yaml")
    parser.add_argument("--d-model", default="128")
    parser.add_argument("--pictures", type=int, default=7700)
    parser.add_argument("--people", type=int, default=3400)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=Path("."))
    args = parser.parse_args()
    given = {"d_model": args.d_model, "device": args.device}
    settings = resolve(TrainSettings, given, args.config)
    store = random_store(args.pictures, args.people, settings.image_size)
    with tempfile.TemporaryDirectory(prefix="facerec-checkpoint-", dir=args.folder) as folder:
        print(measure(settings, store, Path(folder), args.steps, args.rounds))


def random_store(pictures: int, people: int, side: int) -> Store:
    """Pictures of noise; every person has one at least, all are trained on."""
    rng = np.random.default_rng(0)
    labels = np.sort(
        np.concatenate([np.arange(people), rng.integers(0, people, pictures - people)])
    )
    return Store(
        images=rng.integers(0, 256, (pictures, side, side, 3), np.uint8), labels=labels,
        names=[str(i) for i in range(people)], paths=[""] * pictures, picture_hashes=[""] * pictures,
        digest="", split=np.full(pictures, "train"), name="noise", layout="folder", skipped=[],
        root=Path(), folder=Path(),
    )  # fmt: skip


def measure(settings: TrainSettings, store: Store, folder: Path, steps: int, rounds: int) -> str:
    """The figures, as lines of text."""
    torch.manual_seed(0)
    network = build_network(settings)
    objective = Objective(settings, len(store.names), settings.embedding_dim)
    save = keeper(folder, settings, store, {})
    trainer = Trainer(network, objective, store, settings, save, progress=False)
    plan = trainer.plan(0)
    step_seconds, saving = [], []
    for positions in plan[np.arange(steps + 3) % len(plan)]:
        start = clock(trainer.device)
        trainer.train_step(positions)
        step_seconds.append(clock(trainer.device) - start)
    for _ in range(rounds):
        start = time.perf_counter()
        trainer.checkpoint()
        saving.append(time.perf_counter() - start)
    (path, *_) = Checkpoints(folder / "checkpoints").paths()
    step, once = statistics.median(step_seconds[3:]), statistics.median(saving)
    epoch = step * trainer.steps_per_epoch
    gap = max(epoch, min(100 * once, 60 * settings.checkpoint_minutes))
    kept = f"{path.stat().st_size / 2**20:.0f} MiB"
    return (
        f"{parameter_count(network) / 1e6:.2f} M parameters, {len(store.labels)} pictures, {trainer.device}\n"
        f"checkpoint: {once:.3f} s (from {min(saving):.3f} to {max(saving):.3f}), {kept}\n"
        f"epoch: {epoch:.1f} s ({trainer.steps_per_epoch} steps of {step:.3f} s)\n"
        f"at every epoch's end: {once / epoch:.2%}\n"
        f"every {settings.checkpoint_minutes:g} minutes: {once / (60 * settings.checkpoint_minutes):.3%}\n"
        f"as the trainer does: {once / gap:.2%}"
    )


def clock(device: torch.device) -> float:
    """Seconds, when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()

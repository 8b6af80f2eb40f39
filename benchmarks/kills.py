"""Kill -9 at random moments: does a resumed training end where it would have?

    python benchmarks/kills.py --data /path/to/lfw-dataset [--kills 20] [--seed 0] [--out kills.json]

A small training runs once undisturbed. Then the same is started, killed at a random moment of its life (start, steps,
checkpoint, logging of the model ...) and resumed, over and over, until so many kills are done; a training that ends
is compared with the undisturbed one, and the next begins. Compared are the model's weights and the last checkpoint's
tensors, bit for bit, and every metric that MLflow holds but timings and system metrics, each step once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from facerec.training.checkpoint import Checkpoints

SMALL = {
    "image_size": 32, "crop": 0.6, "patch_size": 8, "d_model": 32, "depth": 1, "stem_width": 8, "embedding_dim": 32,
    "batch_size": 256, "images_per_identity": 1, "loss": "cosface", "miner": "none", "epochs": 3,
    "checkpoint_minutes": 0.05,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="demo")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kills.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="facerec-kills-") as folder:
        result = kills(Path(folder), args.data, args.kills, random.Random(args.seed))
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{result['survived']} of {result['kills']} kills survived, {result['trainings']} trainings"
    )


def kills(folder: Path, data: str, count: int, chance: random.Random) -> dict[str, Any]:
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    artifacts = (folder / "artifacts").as_uri()
    MlflowClient().create_experiment("facerec", artifact_location=artifacts)
    train(folder / "warm", data).wait()  # the cache of pictures and kernels
    start = time.monotonic()
    if train(folder / "whole", data).wait():
        raise SystemExit("the undisturbed training failed")
    seconds = time.monotonic() - start
    expected = outcome(folder / "whole")
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    done = survived = trainings = 0
    while done < count:
        trainings += 1
        output, here = folder / str(trainings), 0
        while True:
            process, start = train(output, data), time.monotonic()
            try:
                code = process.wait(chance.uniform(0, seconds) if done + here < count else None)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                here += 1
                print(f"kill {done + here}: {state(output)}", flush=True)
        if not here:  # the machine may have become faster
            seconds = time.monotonic() - start
        same = code == 0 and outcome(output) == expected
        print(
            f"training {trainings}: {here} kills, {'the same' if same else 'NOT the same'}",
            flush=True,
        )
        done += here
        survived += here * same
    return {
        "kills": done,
        "survived": survived,
        "trainings": trainings,
        "undisturbed_seconds": seconds,
    }


def train(output: Path, data: str) -> subprocess.Popen[bytes]:
    """Starts the training, or goes on with it where it has a checkpoint."""
    command = [sys.executable, "-m", "facerec", "train", "--output", str(output)]
    if any(output.glob("*/checkpoints/*.safetensors")):
        command += ["--resume", "last"]
    else:
        for name, value in {"data": data, **SMALL}.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
    return subprocess.Popen(command, stderr=open(output.with_suffix(".log"), "ab"))


def state(output: Path) -> str:
    """How far a killed training had come."""
    files = sorted(output.glob("*/checkpoints/*.safetensors"))
    step = f"checkpoint of step {int(files[-1].stem.split('-')[1])}" if files else "no checkpoint"
    drafts = len(list(output.glob("*/checkpoints/.tmp-*")))
    return step + (f", {drafts} half written" if drafts else "")


def outcome(output: Path) -> dict[str, Any]:
    """Weights, last checkpoint and metrics of the run whose checkpoints lie in a folder, as what can be compared."""
    checkpoints = max(output.glob("*/checkpoints"), key=lambda path: path.stat().st_mtime)
    run = checkpoints.parent
    last, damaged = Checkpoints(checkpoints).newest()
    assert last and not damaged, damaged
    return {
        "weights": bits(load_file(run / "model" / "weights.safetensors")),
        "checkpoint": (last.step, bits(last.tensors)),
        "metrics": metrics(run.name),
    }


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()}


def metrics(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric, as often as they stand there."""
    client = MlflowClient()
    names = [
        name
        for name in client.get_run(run_id).data.metrics
        if not name.startswith("system/") and "per_second" not in name
    ]
    return {
        n: sorted((m.step, m.value) for m in client.get_metric_history(run_id, n)) for n in names
    }


if __name__ == "__main__":
    main()

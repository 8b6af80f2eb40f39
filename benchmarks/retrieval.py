"""Retrieval figures: how fast against pytorch-metric-learning's AccuracyCalculator, and how much memory.

    python benchmarks/retrieval.py [--small 20000] [--large 200000] [--rounds 5] [--out retrieval.json]

Both sides run in one process, by turns, on the same embeddings; the ratio is of the medians. The other side has the
faster of its own torch neighbours, in batches. Two kinds of data: people with as many pictures as in LFW (most
have one, one has 530), and 20 pictures each, where multiplying the embeddings is nearly all the work.
Memory is the peak of the resident set above what it was before the call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from facerec.evaluation.pair_counts import all_pairs
from facerec.evaluation.retrieval import retrieval

FIGURES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
DIMENSIONS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", type=int, default=20_000, help="embeddings to race on")
    parser.add_argument(
        "--large", type=int, default=200_000, help="embeddings to measure memory on; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("retrieval.json"))
    args = parser.parse_args()
    result = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "race": {name: race(args.small, name, args.rounds) for name in SIZES},
        "memory": memory(args.large) if args.large else {},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def lfw_like(count: int) -> np.ndarray:
    """(N,) labels: 71 % of the people have one picture, the sizes fall like LFW's, one person has 530."""
    sizes = np.minimum(np.random.default_rng(0).zipf(2.3, count), 530)
    sizes[0] = min(530, count // 2)
    return np.repeat(np.arange(count), sizes)[:count]


def twenty_each(count: int) -> np.ndarray:
    return np.arange(count) // 20


SIZES: dict[str, Callable[[int], np.ndarray]] = {"LFW-like": lfw_like, "20 each": twenty_each}


def embeddings_of(labels: np.ndarray) -> torch.Tensor:
    """(N, 128) unit rows that cluster by person, about as well as a network in training does."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(labels.max() + 1, DIMENSIONS, generator=random)
    noise = torch.randn(len(labels), DIMENSIONS, generator=random)
    return torch.nn.functional.normalize(centres[labels] + 2 * noise, dim=1)


def race(count: int, name: str, rounds: int) -> dict:
    """Seconds of both, by turns, after one round that does not count; and how far apart their figures are."""
    labels = SIZES[name](count)
    embeddings, numbers = embeddings_of(labels), torch.from_numpy(labels)
    theirs = AccuracyCalculator(
        include=FIGURES,
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity(), batch_size=512),
    )
    seconds = {"facerec": [], "AccuracyCalculator": []}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        ours = retrieval(embeddings, labels).figures()
        middle = time.perf_counter()
        other = theirs.get_accuracy(embeddings, numbers)
        seconds["facerec"].append(middle - start)
        seconds["AccuracyCalculator"].append(time.perf_counter() - middle)
    middles = {side: statistics.median(values[1:]) for side, values in seconds.items()}
    gap = max(abs(a - other[b]) for a, b in zip(ours.values(), FIGURES, strict=True))
    return {
        "embeddings": count,
        "people": len(np.unique(labels)),
        "seconds": middles,
        "all_seconds": seconds,
        "ratio": middles["AccuracyCalculator"] / middles["facerec"],
        "figures": ours,
        "largest_difference": gap,
    }


def memory(count: int) -> dict:
    """Peak extra memory and seconds of whole searches, and of probes of one very frequent person."""
    labels = lfw_like(count)
    embeddings = embeddings_of(labels)
    frequent = np.where(np.arange(count) < count // 4, 0, labels + 1)
    probes = slice(0, 256)
    return {
        "retrieval": peak(lambda: retrieval(embeddings, labels)),
        "retrieval, 256 probes with a quarter of all as mates": peak(
            lambda: retrieval(embeddings[probes], frequent[probes], gallery=(embeddings, frequent))
        ),
        "all pairs": peak(lambda: all_pairs(embeddings, labels)),
    }


def peak(call: Callable[[], object]) -> dict[str, float]:
    """Seconds and peak of the resident set above its start, in MiB, sampled every 5 ms."""
    process, done = psutil.Process(os.getpid()), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"seconds": seconds, "extra_mib": (highest - before) / 2**20}


def table(result: dict) -> str:
    """The result for people, in Markdown."""
    lines = ["| data | embeddings | facerec | AccuracyCalculator | ratio | largest difference |"]
    lines.append("|---|---|---|---|---|---|")
    for name, row in result["race"].items():
        ours, theirs = row["seconds"].values()
        lines.append(
            f"| {name} | {row['embeddings']:,} | {ours:.2f} s | {theirs:.2f} s | {row['ratio']:.1f} "
            f"| {row['largest_difference']:.0e} |"
        )
    if result["memory"]:
        lines += ["", "| call | time | peak extra memory |", "|---|---|---|"]
    for name, row in result["memory"].items():
        lines.append(f"| {name} | {row['seconds']:.1f} s | {row['extra_mib']:,.0f} MiB |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

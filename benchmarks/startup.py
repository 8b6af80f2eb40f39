"""The first embedding of a fresh process, against `python -c 'import torch, numba'`.

    python benchmarks/startup.py [--model FOLDER] [--rounds 10] [--out startup.json]

Both by turns, after one round that does not count and that compiles the CPU kernels; the ratio is of the medians, of
seconds on the clock and of user plus system CPU seconds, which a busy machine disturbs less if OMP_WAIT_POLICY=PASSIVE
keeps idle threads from spinning. Without a model one
of the default network's size is written, with fresh weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from facerec.data.settings import DataSettings
from facerec.inference.calibration import Calibration
from facerec.inference.model_io import write_model
from facerec.inference.provenance import Provenance
from facerec.model.network import build_network
from facerec.model.settings import NetworkSettings

LIBRARIES = "import torch, numba"
EMBEDDING = """
import sys
import numpy
from facerec import FaceEmbedder
FaceEmbedder.load(sys.argv[1], "cpu").embed(numpy.zeros((200, 200, 3), numpy.uint8))
"""


class Recipe(NetworkSettings, DataSettings):
    """What a model folder is written from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="model folder; none: the default network")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("startup.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or fresh_model(Path(folder) / "model")
        result = race(str(model.resolve()), args.rounds)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def fresh_model(folder: Path) -> Path:
    """A model folder with fresh weights."""
    recipe = Recipe()
    empty = {"calibration": Calibration(), "provenance": Provenance(), "card": ""}
    return write_model(folder, build_network(recipe, recipe.image_size), recipe, **empty)


def race(model: str, rounds: int) -> dict:
    """Seconds of both on the clock and on the CPU, by turns."""
    commands = {"libraries": [LIBRARIES], "first embedding": [EMBEDDING, model]}
    seconds = {name: {"clock": [], "cpu": []} for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            clock, cpu = timed([sys.executable, "-c", *command])
            if turn > 0:
                seconds[name]["clock"].append(clock)
                seconds[name]["cpu"].append(cpu)
    middles = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()}
        for name, kinds in seconds.items()
    }
    ratio = {
        kind: middles["first embedding"][kind] / middles["libraries"][kind]
        for kind in ("clock", "cpu")
    }
    return {"rounds": rounds, "seconds": middles, "ratio": ratio, "all_seconds": seconds}


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock, and user plus system CPU seconds, of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True)
    after, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(result: dict) -> str:
    """The result for people, in Markdown."""
    lines = ["| seconds | import torch, numba | first embedding | ratio |", "|---|---|---|---|"]
    for kind, words in (("clock", "on the clock"), ("cpu", "user + system")):
        libraries, embedding = (
            result["seconds"][name][kind] for name in ("libraries", "first embedding")
        )
        ratio = result["ratio"][kind]
        lines.append(f"| {words} | {libraries:.2f} | {embedding:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

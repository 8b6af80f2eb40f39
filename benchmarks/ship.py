"""Make a trained model one that comes with the package, as `FaceEmbedder.load("pretrained")` finds it.

    python benchmarks/ship.py outputs/RUN_ID/model --name pretrained-lfw --data /path/to/lfw-dataset

The weights are kept in half precision; the card is the run's, with the figures on test people (LFW View 1) beside it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

from compare import measured

from facerec.evaluation.confidence import Figure
from facerec.evaluation.overlap import Leak
from facerec.evaluation.scores import title
from facerec.inference.embedder import FaceEmbedder
from facerec.inference.model_io import CARD, read_model, write_model
from facerec.inference.model_uri import SHIPPED, WEIGHTS

MAX_BYTES = 16_000_000  # of all shipped models together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="model folder of a run")
    parser.add_argument("--name", required=True, choices=SHIPPED)
    parser.add_argument("--data", required=True, help="data set to measure it on, as in train")
    args = parser.parse_args()
    target = ship(args.folder, args.name, args.data)
    size = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    print(f"{target}: shipped models have {size / 1e6:.1f} MB of {MAX_BYTES / 1e6:.0f} MB together")
    if size > MAX_BYTES:
        raise SystemExit("too large: train a smaller network")


def ship(source: Path, name: str, data: str) -> Path:
    """Writes the shipped model `name` from the model folder `source`, and measures it as it is written."""
    network, config, calibration, provenance = read_model(source)
    card = (source / CARD).read_text(encoding="utf-8")
    target = write_model(
        WEIGHTS / name,
        copy.deepcopy(network).half(),
        SimpleNamespace(**{**dict(config.network), **dict(config)}),
        calibration=calibration,
        provenance=provenance,
        card=card,
    )
    words = section(*measured(FaceEmbedder.load(name, "cpu"), data))
    card = card.replace("## Limits", f"{words}\n## Limits", 1)
    (target / CARD).write_text(card, encoding="utf-8")
    return target


def section(figures: Mapping[str, Figure], leak: Leak) -> str:
    """The card's table of figures on test people."""
    rows = "\n".join(f"| {title(key)} | {value} |" for key, value in figures.items())
    return f"""On the data set's test people, as `facerec evaluate` measures them (LFW: `--protocol lfw-view1`);
{leak}. Brackets hold 95 % intervals.

| figure | value |
|---|---|
{rows}
"""


if __name__ == "__main__":
    main()

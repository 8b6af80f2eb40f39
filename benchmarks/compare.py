"""Backbones, losses and embedding sizes at the same data and budget: trains them, measures them, prints a table.

    python benchmarks/compare.py --data /path/to/lfw-dataset --epochs 30 [--only "mamba triplet 128"] [KEY=VALUE ...]

Each row is a `facerec train` run of one MLflow experiment; its network, loss or embedding size differs from the first
row's. On LFW it is then measured on View 1, elsewhere on the test people, and the figures go into its run. A row
whose run has finished is not trained again, one that was interrupted is resumed; the table is read from the runs.
KEY=VALUE sets anything else that `train` knows, for all rows.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient

from facerec.config.recipe import resolve
from facerec.config.settings import as_params, defaults
from facerec.evaluation.candidates import model_column
from facerec.evaluation.confidence import Figure
from facerec.evaluation.lfw import lfw_view1
from facerec.evaluation.overlap import Leak
from facerec.evaluation.protocols import identities
from facerec.inference.embedder import FaceEmbedder
from facerec.report.evaluation import measure
from facerec.report.explorer import model_store
from facerec.report.settings import EvaluateSettings
from facerec.report.tables import as_metrics
from facerec.runtime.console import say
from facerec.runtime.device import resolve_device, resolve_precision
from facerec.tracking.address import absolute_tracking_uri
from facerec.tracking.run import Run
from facerec.training.checkpoint import Checkpoints
from facerec.training.resume import FREE
from facerec.training.settings import TrainSettings

RECIPE = Path(__file__).parent.parent / "configs" / "lfw.yaml"
CLASSES = {"miner": "none", "images_per_identity": "1"}
LOSSES = {
    "cosface": {"loss": "cosface", **CLASSES},
    "arcface": {"loss": "arcface", **CLASSES},
    "triplet": {"loss": "triplet", "miner": "all", "images_per_identity": "4"},
}
BACKBONES = {
    "mamba": {},
    "resnet18": {"backbone": "resnet18"},
    "vit": {"backbone": "vit", "d_model": "192", "depth": "12"},  # ViT-Ti (Touvron et al., 2021)
}
ROWS = [
    *((backbone, "cosface", 128) for backbone in BACKBONES),
    *(("mamba", loss, 128) for loss in ("arcface", "triplet")),
    *(("mamba", "cosface", size) for size in (256, 512)),
]
SPEED = "train/images_per_second"
COLUMNS = {
    "recall_at_1": "Recall@1",
    "r_precision": "R-Precision",
    "map_at_r": "MAP@R",
    "verification_accuracy": "pair accuracy",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="as in train; demo for a try")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--config", default=str(RECIPE), help="recipe of the first row")
    parser.add_argument("--experiment", default="compare", help="MLflow experiment of the runs")
    parser.add_argument("--output", default="outputs", help="folder for checkpoints and models")
    parser.add_argument("--only", action="append", help="a row, such as 'vit cosface 128'")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of train, for all rows")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the training ends with us
    absolute_tracking_uri()
    names = ("data", "epochs", "image_size", "experiment", "output")
    given = {name: str(getattr(args, name)) for name in names}
    given |= dict(pair.split("=", 1) for pair in args.settings)
    runs = {}
    for backbone, loss, size in ROWS:
        name = f"{backbone} {loss} {size}"
        if args.only is None or name in args.only:
            row = {**LOSSES[loss], **BACKBONES[backbone], "embedding_dim": str(size)}
            runs[name] = finished(name, {**given, **row}, args.config)
    print(table(runs))


def finished(name: str, given: Mapping[str, str], config: str) -> MlflowRun:
    """The run of a row, trained and measured where that has not been done."""
    settings = resolve(TrainSettings, given, config)
    run = find(settings)
    if run is None or run.info.status != "FINISHED":
        say(f"{name}: training")
        if run is None:
            options = {**given, "config": config, "run_name": name}
        else:
            options = {"resume": run.info.run_id, "output": settings.output}
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        if code := subprocess.call([sys.executable, "-m", "facerec", "train", *flags]):
            raise SystemExit(code)
        run = find(settings)
    if "test/recall_at_1" not in run.data.metrics:
        say(f"{name}: measuring")
        embedder = FaceEmbedder.load(f"runs:/{run.info.run_id}/model", settings.device)
        figures, _ = measured(embedder, settings.data, settings.cache)
        Run(run.info.run_id).log_metrics(as_metrics(figures, "test"), step=0)
    return MlflowClient().get_run(run.info.run_id)


def find(settings: TrainSettings) -> MlflowRun | None:
    """The run of these settings that has finished, else one that can be resumed, the newest first."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        return None
    names = TrainSettings.model_fields.keys() - {*FREE, "run_name"} | {"data"}
    arithmetic = resolve_precision(settings.precision, resolve_device(settings.device))
    wanted = {name: value for name, value in as_params(settings).items() if name in names}
    runs = [
        run
        for run in client.search_runs([experiment.experiment_id])
        if wanted.items() <= (defaults(TrainSettings) | run.data.params).items()
        # Runs without the tag are older than bfloat16 on CPUs.
        and run.data.tags.get("arithmetic", "fp32") == arithmetic
    ]
    done = [run for run in runs if run.info.status == "FINISHED"]
    folder = Path(settings.output)
    begun = [r for r in runs if Checkpoints(folder / r.info.run_id / "checkpoints").paths()]
    return next(iter(done + begun), None)


def measured(
    embedder: FaceEmbedder, data: str, cache: str | None = None
) -> tuple[dict[str, Figure], Leak]:
    """Figures of a model on LFW View 1, or the test people of other data, and whom of them it has met."""
    store = model_store(EvaluateSettings(data=data, cache=cache), embedder)
    protocol = lfw_view1(store) if store.layout == "lfw" else identities(store, "test")
    column = model_column(embedder, protocol.pictures, store, flip=False)
    return measure(protocol, {"model": column})["model"].figures, column.leak


def table(runs: Mapping[str, MlflowRun]) -> str:
    """The rows in Markdown, figures with their 95 % intervals."""
    heading = ["network, loss, embedding", "parameters", "images/s", *COLUMNS.values()]
    lines = [heading, ["---"] * len(heading)]
    for name, run in runs.items():
        history = MlflowClient().get_metric_history(run.info.run_id, SPEED)
        speed = statistics.median(metric.value for metric in history)
        cells = [name, f"{int(run.data.tags['parameters']) / 1e6:.2f} M", f"{speed:.0f}"]
        lines.append([*cells, *(figure(run.data.metrics, column) for column in COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(metrics: Mapping[str, float], name: str) -> str:
    """A figure of the test people with its interval; a dash where it could not be measured."""
    if f"test/{name}" not in metrics:
        return "–"
    value, low, high = (metrics[f"test/{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()

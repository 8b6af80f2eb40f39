"""One training, from its settings to a run in MLflow with a model in it.

`run` is what `train` and `finetune` call; under torchrun the first rank leads, the others follow.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from facerec.config.settings import as_params
from facerec.data.align import check_align
from facerec.data.demo.render import color_histogram, raw_pixels
from facerec.data.store import Store, open_store
from facerec.errors import InputError
from facerec.evaluation.retrieval import retrieval
from facerec.inference.embedder import FaceEmbedder
from facerec.inference.provenance import Provenance, check_hashes, checked
from facerec.losses.objective import Objective, check_objective
from facerec.model.network import build_network, check_sizes, parameter_count
from facerec.model.scan import resolve_backend
from facerec.runtime.console import say
from facerec.runtime.device import keep_freed_memory, resolve_device, resolve_precision
from facerec.runtime.signals import Stopped, held, stop_softly
from facerec.runtime.text import brief
from facerec.runtime.untrusted import as_record
from facerec.tracking.address import reach_tracking
from facerec.tracking.experiment import check_names
from facerec.tracking.lifecycle import track
from facerec.tracking.mlflow_run import joined_run
from facerec.tracking.registry import register
from facerec.tracking.run import Run
from facerec.training import distributed
from facerec.training.batches import check_whole_batch
from facerec.training.checkpoint import Checkpoint, Checkpoints
from facerec.training.distillation.mixup import ask_teacher, lessons
from facerec.training.distillation.teacher import check_teacher, teacher_rows
from facerec.training.export import keep_results
from facerec.training.resume import Resumed, alone, find, same_threads
from facerec.training.settings import TrainSettings
from facerec.training.trainer import Trainer, TrainingFailed


def run(settings: TrainSettings, config: str | None = None) -> None:
    """Trains, validates and logs one run, or goes on with the one that `resume` names.

    Args:
        config: name of the recipe that the settings come from, for the record.

    Raises:
        InputError: for anything in the settings or the data that cannot work; before the run starts where possible.
    """
    check(settings)
    if resolve_device(settings.device).type == "cpu":
        keep_freed_memory()
    with distributed.ranks(settings.device):
        distributed.from_first(lambda: reach_tracking(settings))
        resumed = None
        if settings.resume:
            resumed = distributed.from_first(partial(find, settings.output, settings.resume))
            resumed.check_ranks(distributed.world().size)
        store = distributed.first_before_others(lambda: open_data(settings))
        if resumed:
            resumed.check_data(store)
            store = store.split_as(resumed.checkpoint.state.get("split_version", 1))
            for sentence in resumed.damaged:
                say(f"{sentence}; going on from the one before")
        check_whole_batch(store.labels[store.indices("train")], settings)
        if settings.teacher:  # its answers, before the run starts
            distributed.first_before_others(lambda: ask_teacher(settings, store))
        try:
            if distributed.is_first():
                lead(settings, config, store, resumed)
            else:
                follow(settings, store, resumed)
        except (Stopped, TrainingFailed):  # on all ranks: torchrun ends them when one has ended
            with held():  # a second signal waits while the first rank saves
                distributed.wait_for_first()
            raise


def open_data(settings: TrainSettings) -> Store:
    """The store; what is to be built anew is so by the first rank alone."""
    if not distributed.is_first():
        settings = settings.model_copy(update={"rebuild_store": False})
    return open_store(settings, progress=distributed.is_first())


def follow(settings: TrainSettings, store: Store, resumed: Resumed | None) -> None:
    """What a rank other than the first does: the same steps, of which it keeps and tells nothing."""
    checkpoint = resumed and resumed.checkpoint
    with same_threads(checkpoint, settings.device):
        trainer = make_trainer(settings, store, Path(settings.output), checkpoint)
        with stopping_softly(trainer):
            deque(trainer, maxlen=0)


def lead(
    settings: TrainSettings, config: str | None, store: Store, resumed: Resumed | None
) -> None:
    """What the first rank, or the only one, does.

    The lock of a run that is there already is taken before the run is touched: it may be another process's.
    """
    known = resumed.run_id if resumed else joined_run()
    with ExitStack() as stack:
        if known:
            stack.enter_context(alone(Path(settings.output) / known))
        stack.enter_context(same_threads(resumed and resumed.checkpoint, settings.device))
        mlflow_run = stack.enter_context(track(settings, resumed and resumed.run_id))
        if not known:
            stack.enter_context(alone(Path(settings.output) / mlflow_run.id))
        if not resumed:
            mlflow_run.log_settings(settings, config)
            mlflow_run.log_data(store, "training")
        train(settings, store, mlflow_run, resumed.checkpoint if resumed else None)
    if settings.register:
        say(register(mlflow_run.id, settings.register).told)


def train(
    settings: TrainSettings,
    store: Store,
    mlflow_run: Run,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> Trainer:
    """One training inside an MLflow run that is open: from its first or its saved step to its model and pages.

    Who calls it holds the run's folder (`resume.alone`).

    Args:
        checkpoint: state to go on from.
        on_epoch: called with the metrics of each epoch, 0 included, when they have been logged.
    """
    folder = Path(settings.output) / mlflow_run.id
    with mlflow_run.keeping(folder):
        return train_in(folder, settings, store, mlflow_run, checkpoint, on_epoch)


def train_in(
    folder: Path,
    settings: TrainSettings,
    store: Store,
    mlflow_run: Run,
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[dict[str, float]], None],
) -> Trainer:
    """`train` in the run's folder, with its outbox open."""
    trainer = make_trainer(settings, store, folder, checkpoint)
    describe(mlflow_run, settings, trainer, store)
    references = reference_lines(settings, store)
    if not checkpoint:
        mlflow_run.log_metrics(
            {f"val/{name}_recall_at_1": value for name, value in references.items()}, step=0
        )
    with stopping_softly(trainer):
        try:
            fit(trainer, mlflow_run, on_epoch)
        except (Stopped, TrainingFailed):
            try:
                keep_results(trainer, mlflow_run, settings, folder, references)
            except InputError as error:  # the training's own end is the reason that counts
                say(f"facerec: {error}")
            raise
        keep_results(trainer, mlflow_run, settings, folder, references)
    return trainer


@contextmanager
def stopping_softly(trainer: Trainer) -> Iterator[None]:
    """Signals stop the trainer after the step at hand, on all ranks; so does the end of a rank, at once."""
    soft = stop_softly(lambda stopped: setattr(trainer, "stop", stopped), distributed.is_first())
    with soft, distributed.lost_ranks_told():
        yield


def make_trainer(
    settings: TrainSettings,
    store: Store,
    folder: Path,
    checkpoint: Checkpoint | None = None,
    progress: bool = True,
) -> Trainer:
    """The trainer of a run, before its first step or at its saved one; checkpoints go into `folder`."""
    torch.manual_seed(settings.seed)
    network = build_network(settings)
    # Kept in the checkpoints: at the end its registry may be away, and its alias another model's.
    initial = kept_provenance(checkpoint) if checkpoint else None
    if settings.init and not checkpoint:
        initial = start_from(network, settings.init)
    check_hashes(store, initial)
    identities = len(np.unique(store.labels[store.indices("train")]))
    kept = initial.model_dump(exclude_none=True) if initial else None
    targets, blends = None, None
    facts: dict[str, object] = {"initial": kept}
    if settings.teacher:
        rows, blends = lessons(settings, store, progress)
        targets = torch.from_numpy(rows)
        facts["teacher_digest"] = hashlib.sha256(rows.tobytes()).hexdigest()
    objective = Objective(settings, identities, settings.embedding_dim, targets)
    save = keeper(folder, settings, store, facts)
    trainer = Trainer(network, objective, store, settings, save, progress, initial, blends)
    if checkpoint:
        if checkpoint.state.get("teacher_digest") != facts.get("teacher_digest"):
            raise InputError(
                f"the answers of the teacher {settings.teacher} are not those that the run was trained on: bring back "
                "the cache folder that it had, or start a new run"
            )
        trainer.restore(checkpoint)
    return trainer


def kept_provenance(checkpoint: Checkpoint) -> Provenance | None:
    """That of the model whose weights the run began with."""
    kept = checkpoint.state.get("initial")
    return None if kept is None else as_record(Provenance, kept, "the checkpoint's provenance")


def start_from(network: nn.Module, source: str) -> Provenance:
    """Loads the weights of the model `source` into `network`; returns its provenance.

    Raises:
        InputError: if that model is another network, or does not say whom it has met.
    """
    model = FaceEmbedder.load(source, "cpu")
    try:
        network.load_state_dict(model.network.state_dict())
    except RuntimeError as error:
        reason = brief(error)
        raise InputError(
            f"init={source} is another network than the settings describe: {reason}"
        ) from None
    return checked(model.provenance)


def keeper(
    folder: Path, settings: TrainSettings, store: Store, more: Mapping[str, Any]
) -> Callable[..., Path | None]:
    """Saves checkpoints that know their settings, data and what `more` says; the first rank's do for all."""
    if not distributed.is_first():
        return lambda step, tensors, state: None
    checkpoints = Checkpoints(folder / "checkpoints")
    facts = {"settings": as_params(settings), "data_digest": store.digest, **more}
    facts["split_version"] = store.split_version
    facts["ranks"] = distributed.world().size
    return lambda step, tensors, state: checkpoints.save(step, tensors, {**state, **facts})


def check(settings: TrainSettings) -> None:
    """Whatever can be refused before any work is."""
    device = resolve_device(settings.device)
    try:
        resolve_backend(settings.scan_backend, device)
    except (ValueError, ImportError) as error:
        raise InputError(f"scan_backend={settings.scan_backend}: {brief(error)}") from error
    check_names(settings)
    check_align(settings)
    check_objective(settings)
    check_teacher(settings)
    check_sizes(settings, settings.image_size)
    output = Path(settings.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise InputError(
            f"output={settings.output}: {output.resolve()} cannot be written ({brief(error)}); "
            "choose another folder"
        ) from error


def describe(mlflow_run: Run, settings: TrainSettings, trainer: Trainer, store: Store) -> None:
    """What is about to happen, on the console and as tags."""
    backend = resolve_backend(settings.scan_backend, trainer.device)
    usual = resolve_precision(settings.precision, trainer.device)
    parameters = parameter_count(trainer.network)
    train, val = (store.labels[store.indices(part)] for part in ("train", "val"))
    blends = trainer.extra_pictures
    say(
        f"{store.name}: {len(train)} pictures of {len(np.unique(train))} people to train on, "
        f"{len(val)} of {len(np.unique(val))} to validate with"
        + (f"; {len(blends)} blends to train on" if blends is not None else "")
    )
    say(
        f"{parameters / 1e6:.2f} M parameters on {trainer.device} in {trainer.precision}, scan by {backend}; "
        f"MLflow run {mlflow_run.id}"
    )
    mlflow_run.tag(
        {
            "parameters": parameters,
            "scan.backend": backend,
            "device": str(trainer.device),
            "arithmetic": trainer.precision,
            "threads": torch.get_num_threads(),
        }
    )
    if trainer.precision != usual:
        say(f"the run was begun in {trainer.precision} and goes on in it; {usual} is faster here")
    if (ranks := distributed.world().size) > 1:
        mlflow_run.tag({"ranks": ranks})
        batch = trainer.batch.batch_size
        say(f"{ranks} ranks of {batch // ranks} pictures each: batches of {batch}")
        if any(isinstance(part, BatchNorm) for part in trainer.network.modules()):
            say(
                f"batch norms take their statistics over the {batch // ranks} pictures of a rank, and the first rank's "
                "are kept; norm=group has none"
            )


def reference_lines(settings: TrainSettings, store: Store) -> dict[str, float]:
    """Validation Recall@1 of the nearest neighbour on features that know nothing of faces, and on the teacher's."""
    indices = store.indices("val")
    if not len(indices):
        say("too few people to validate with: the weights of the last epoch are kept")
        return {}
    pictures = store.images[indices]
    features = {"raw_pixels": raw_pixels(pictures), "color_histogram": color_histogram(pictures)}
    if settings.teacher:
        features["teacher"] = teacher_rows(settings, store, "val")
    lines = {
        name: retrieval(values, store.labels[indices]).figures()["recall_at_1"]
        for name, values in features.items()
    }
    say(
        "reference: validation Recall@1 "
        + ", ".join(f"{n.replace('_', ' ')} {v:.3f}" for n, v in lines.items())
    )
    return lines


def fit(trainer: Trainer, mlflow_run: Run, on_epoch: Callable[[dict[str, float]], None]) -> None:
    """Every epoch, into MLflow and on the console; what a killed run had no time to log comes first."""
    names = ("val/map_at_r", "train/loss")
    logged = set.union(*map(mlflow_run.logged_steps, names)) if trainer.history else set()
    for row in itertools.chain(list(trainer.history), trainer):
        epoch = int(row["epoch"])
        if epoch in logged:
            continue
        mlflow_run.log_metrics(
            {name: value for name, value in row.items() if name != "epoch"}, step=epoch
        )
        figures = " ".join(
            f"{name.removeprefix('val/')} {value:.3f}"
            for name, value in row.items()
            if "val/" in name
        )
        loss = f"loss {row['train/loss']:.4f} " if epoch else ""
        say(f"epoch {epoch}/{trainer.settings.epochs}: {loss}{figures}")
        on_epoch(row)

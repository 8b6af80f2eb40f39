"""A study from its settings to its best recipe: opened or joined, searched, concluded, and its best trial trained."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import optuna
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from facerec.config.recipe import validate, yaml_file
from facerec.config.settings import as_params, canonical, defaults
from facerec.data.settings import WHICH_DATA
from facerec.data.store import Store, open_store
from facerec.errors import InputError
from facerec.report.html import write_html
from facerec.runtime.console import say
from facerec.runtime.database_url import without_password
from facerec.runtime.files import write_bytes
from facerec.runtime.mlflow_client import patiently
from facerec.runtime.paths import as_given, folder_of_command
from facerec.runtime.signals import Stopped
from facerec.runtime.text import shown
from facerec.sweep.optuna_factory import open_storage
from facerec.sweep.report import best_trial, recipe_text, study_page
from facerec.sweep.settings import SPACES, SweepSettings
from facerec.sweep.space import Space
from facerec.sweep.space_yaml import NOT_SEARCHED, read_space
from facerec.sweep.study import DONE, count, open_study, wait_for
from facerec.sweep.trial import Job, study_trials, trial_settings, worker
from facerec.sweep.workers import supervise
from facerec.tracking.address import reach_tracking
from facerec.tracking.experiment import check_name, check_names
from facerec.tracking.lifecycle import nested, track
from facerec.tracking.registry import register
from facerec.tracking.run import Run
from facerec.training.distillation.mixup import ask_teacher
from facerec.training.resume import alone
from facerec.training.run import check, train
from facerec.training.settings import TrainSettings

# Settings that a recipe leaves to whoever trains with it.
NOT_IN_RECIPE = tuple(name for name in NOT_SEARCHED if name not in (*WHICH_DATA, "seed"))
BEST = "best."  # before a parameter's name, in the tag that holds its best value
LONGEST_NAME = 100  # of a study that is kept in a file of its name
FREE = tuple(name for name in NOT_SEARCHED if name != "seed")  # may differ between sessions


def run(settings: SweepSettings, config: str | None = None) -> None:
    """Brings a study to the number of trials asked for, and writes down what it found.

    Args:
        config: name of the recipe that fixed settings come from, for the record.

    Raises:
        InputError: for anything that cannot work; before a trial starts where possible.
    """
    space = read_space(settings.space, TrainSettings)
    space.pruner_name(settings.pruner)
    check_sweep(settings)
    for parameter in space.parameters:
        check_name(
            "parameter",
            BEST + parameter.name,
            f"space {settings.space}: parameter {parameter.name}",
        )
    first = {p.setting: p.values[0] for p in space.parameters if not p.when}
    check(validate(TrainSettings, {**trial_settings(settings), **first}))
    reach_tracking(settings)
    store = open_store(settings)
    if not len(store.indices("val")) and any(m.startswith("val/") for m in space.objectives):
        raise InputError(f"{store.name} has too few people to validate with: a study needs some")
    if settings.teacher:  # asked once, and not by every worker
        searched = [max(p.values) for p in space.parameters if p.setting == "blends"]
        most = max([settings.blends, *searched])
        ask_teacher(settings.model_copy(update={"blends": most}), store)
    name = study_name(settings)
    where = settings.storage or str(Path(settings.output) / "studies" / f"{name}.journal")
    study, parent = join(name, where, described(settings, space, store), space)
    named = settings.model_copy(update={"run_name": settings.run_name or f"study {name}"})
    with track(named, parent) as mlflow_run:
        if parent is None:
            study.set_user_attr("mlflow_run", mlflow_run.id)
            record(settings, space, mlflow_run, store, config)
        mlflow_run.tag({"study": name, "study.storage": without_password(where)})
        uri = mlflow.get_tracking_uri()
        job = Job(settings, space, name, where, mlflow_run.id, uri)
        done = count(study, *DONE)
        say(
            f"study {name}: {done} of {settings.trials} trials done, kept in {without_password(where)}; "
            f"MLflow run {mlflow_run.id}"
        )
        try:
            search(job)
        except Stopped:
            conclude(job, mlflow_run)
            over = count(study, *DONE) >= settings.trials
            say(
                f"stopped; {'all trials were done, and ' if over else ''}the same command goes on with study {name}"
            )
            raise
        recipe = conclude(job, mlflow_run)
        if settings.train_best and recipe:
            train_best(job, recipe, mlflow_run)


def study_name(settings: SweepSettings) -> str:
    """The study's name."""
    return settings.study or Path(settings.space).stem


def model_name(settings: SweepSettings) -> str:
    """Name under which the model of train_best is registered."""
    return f"facerec-{study_name(settings)}" if settings.register is None else settings.register


def check_sweep(settings: SweepSettings) -> None:
    """Refuses what `train` takes and a study cannot."""
    check_names(settings)
    name = study_name(settings)
    if not name.strip():
        raise InputError("study: the name is blank; give one, or leave it out")
    if settings.storage is None and (len(name) > LONGEST_NAME or set(name) & set("/\\:\0")):
        raise InputError(
            f"study={shown(name)} names a file here: at most {LONGEST_NAME} characters, none of them / \\ :"
        )
    check_name("run_name", f"best of {name}", f"study={shown(name)}")
    if settings.train_best:
        check_name("register", model_name(settings))
    if settings.resume:
        raise InputError("resume is for train: a study goes on when it is started again")
    if settings.workers > 1 and (settings.storage or "").startswith("sqlite"):
        raise InputError(
            "storage: SQLite is not made for several workers; leave storage out, or use PostgreSQL"
        )


def described(settings: SweepSettings, space: Space, store: Store) -> dict[str, Any]:
    """What trials of one study have in common: the space, every other setting, the pictures."""
    settings_kept = {
        name: canonical(getattr(settings, name))
        for name in TrainSettings.model_fields
        if name not in FREE and name not in space.always_searched
    }
    return {**space.described(), "settings": settings_kept, "data": store.digest}


def join(
    name: str, where: str, description: Mapping[str, Any], space: Space
) -> tuple[optuna.Study, str | None]:
    """The study, and the MLflow run that it has already.

    Raises:
        InputError: if the study is about something else, or its run cannot be gone on in.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(where, heartbeat=60)
    usual = {k: v for k, v in defaults(TrainSettings).items() if k in description["settings"]}
    study, made = open_study(storage, name, description, list(space.objectives.values()), usual)
    parent = None if made else wait_for(study, "mlflow_run")
    if parent is None:
        return study, None
    try:
        stage = patiently(lambda: MlflowClient().get_run(parent)).info.lifecycle_stage
    except MlflowException:
        stage = "unknown"
    if stage != "active":
        raise InputError(
            f"study {name} belongs to MLflow run {parent}, which is {stage} in "
            f"{without_password(mlflow.get_tracking_uri())}: set MLFLOW_TRACKING_URI to the store that has it, "
            "restore it, or give the study another name"
        )
    return study, parent


def record(
    settings: SweepSettings, space: Space, mlflow_run: Run, store: Store, config: str | None
) -> None:
    """What the study is, in its run; settings that are searched are the trials' to tell."""
    known = as_params(settings)
    if settings.storage:
        known["storage"] = without_password(settings.storage)
    searched = space.always_searched
    mlflow_run.log_params({k: v for k, v in known.items() if k not in searched})
    if config:
        mlflow_run.log_params({"config": config})
    mlflow_run.log_data(store, "tuning")
    with tempfile.TemporaryDirectory(prefix="facerec-") as folder:
        # A copy: MLflow keeps a file's mode, and this one's is not of our making.
        space_file = yaml_file(settings.space, SPACES)
        mlflow_run.log_file(Path(shutil.copyfile(space_file, Path(folder) / space_file.name)))


def search(job: Job) -> None:
    """Runs trials here, or in workers of this machine."""
    study, deaths = job.open()
    workers = job.settings.workers
    if workers == 1:
        study_trials(job)
        return
    supervise(
        workers,
        worker,
        (job,),
        on_death=deaths.look,
        progress=lambda: count(study, *DONE),
        gpus=torch.cuda.device_count(),
    )


def conclude(job: Job, mlflow_run: Run) -> dict[str, Any] | None:
    """The study's page, its best trial, and the recipe; None where no trial is complete."""
    study, _ = job.open()
    best = best_trial(study)
    folder = Path(job.settings.output) / mlflow_run.id
    recipe, text = None, ""
    if best is not None:
        recipe = {**kept(job.settings), **job.space.settings(best.params)}
        values = dict(zip(job.space.objectives, best.values, strict=True))
        reached = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        run_of_trial = best.user_attrs["mlflow_run"]
        said = [
            f"Trial {best.number} of study {job.study}, MLflow run {run_of_trial}:",
            f"{reached} on the validation people.",
        ]
        text = recipe_text(recipe, said)
        write_bytes(folder / "best.yaml", text.encode("utf-8", "backslashreplace"))
        mlflow_run.log_file(folder / "best.yaml")
        done = count(study, *DONE)
        mlflow_run.log_metrics({f"best/{name}": value for name, value in values.items()}, step=done)
        tags = {BEST + name: value for name, value in best.params.items()}
        mlflow_run.tag({"best.trial": best.number, "best.run": run_of_trial, **tags})
    page = study_page(study, list(job.space.objectives), text, f"MLflow run {mlflow_run.id}")
    mlflow_run.log_file(write_html(page, folder / "study.html"))
    if best is not None:
        found = ", ".join(f"{k}={canonical(v)}" for k, v in best.params.items())
        say(
            f"best: trial {best.number}, {found}; {folder / 'best.yaml'} and {folder / 'study.html'}"
        )
    return recipe


def kept(settings: SweepSettings) -> dict[str, Any]:
    """Settings of `train` that were given, for the recipe."""
    names = [n for n in TrainSettings.model_fields if n in settings.model_fields_set]
    values = {name: getattr(settings, name) for name in names if name not in NOT_IN_RECIPE}
    typed_in = folder_of_command()
    return {n: as_given(v, typed_in) if isinstance(v, str) else v for n, v in values.items()}


def train_best(job: Job, recipe: Mapping[str, Any], mlflow_run: Run) -> None:
    """Trains the recipe in a run under the study's, and registers its model."""
    settings = job.settings
    epochs = {"epochs": settings.best_epochs} if settings.best_epochs else {}
    where = {n: getattr(settings, n) for n in NOT_IN_RECIPE if n not in ("run_name", "resume")}
    full = validate(TrainSettings, {**where, **recipe, **epochs}, lambda key: "best recipe")
    store = open_store(full)
    with nested(mlflow_run.id, f"best of {job.study}", {"study": job.study}) as run_of_best:
        run_of_best.log_settings(full, "best.yaml")
        run_of_best.log_data(store, "training")
        with alone(Path(full.output) / run_of_best.id):
            train(full, store, run_of_best)
    mlflow_run.tag({"best.model": f"runs:/{run_of_best.id}/model"})
    say(register(run_of_best.id, model_name(settings)).told)
    sys.stderr.flush()

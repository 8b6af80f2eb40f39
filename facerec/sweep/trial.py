"""The trials of a sweep: each one a training in a run of its own under the study's, judged on validation people.

A trial keeps metrics, parameters and, until it is over, checkpoints; no model and no pages.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import optuna
from optuna import Trial, TrialPruned
from optuna.trial import FrozenTrial, TrialState

from facerec.config.recipe import validate
from facerec.config.settings import as_params, canonical, defaults
from facerec.data.settings import AlignSettings, DataSettings
from facerec.data.store import Store, open_store
from facerec.errors import InputError
from facerec.model.network import parameter_count
from facerec.runtime.console import prepare, say
from facerec.runtime.mlflow_errors import reason_of
from facerec.runtime.signals import Stopped, stop_softly
from facerec.sweep.optuna_factory import make_pruner, make_sampler, open_storage
from facerec.sweep.settings import SweepSettings
from facerec.sweep.space import Space
from facerec.sweep.study import Deaths, count, work
from facerec.sweep.workers import BAD_INPUT, follow_parent
from facerec.tracking.lifecycle import bury_nested, nested
from facerec.tracking.run import Run
from facerec.training.checkpoint import Checkpoint, Checkpoints
from facerec.training.resume import FREE, alone, same_threads
from facerec.training.run import check, make_trainer
from facerec.training.settings import TrainSettings
from facerec.training.trainer import Trainer

SPEED = "train/images_per_second"
IMPOSSIBLE = 1e12  # excess over a bound on something that a trial did not live to measure


@dataclass(frozen=True)
class Job:
    """What every worker of a study knows; it is sent to other processes.

    Attributes:
        settings: what `sweep` was told.
        space: what is searched.
        study: its name.
        storage: journal or URL.
        parent: id of the study's MLflow run.
        tracking: MLflow's tracking URI.
    """

    settings: SweepSettings
    space: Space
    study: str
    storage: str
    parent: str
    tracking: str

    def open(self) -> tuple[optuna.Study, Deaths]:
        """The study, and who watches over it."""
        heartbeat = self.settings.heartbeat_seconds
        watch: list[Deaths] = []
        storage = open_storage(
            self.storage, heartbeat, lambda study, trial: watch[0].mourn(study, trial)
        )
        study = optuna.load_study(study_name=self.study, storage=storage, pruner=self.pruner())
        watch.append(Deaths(study, 3 * heartbeat, lambda trial: bury(self.parent, trial)))
        return study, watch[0]

    def pruner(self) -> optuna.pruners.BasePruner:
        """What stops hopeless trials."""
        searched = {parameter.setting for parameter in self.space.parameters}
        epochs = None if "epochs" in searched else self.settings.epochs
        return make_pruner(self.space.pruner_name(self.settings.pruner), epochs)

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """What chooses the parameters of one trial."""
        name = self.settings.sampler or self.space.sampler
        return make_sampler(name, seed, self.space.conditional)


def trial_settings(settings: TrainSettings) -> dict[str, Any]:
    """Settings of `train` that every trial starts from."""
    kept = {name: getattr(settings, name) for name in TrainSettings.model_fields}
    return {**kept, "run_name": None, "register": None, "rebuild_store": False}


def bury(parent: str, trial: FrozenTrial) -> None:
    """Ends the MLflow run of a trial whose worker died."""
    tags = {"trial.state": "failed", "trial.reason": "its worker died"}
    bury_nested(parent, {"trial.number": str(trial.number)}, tags)


def worker(job: Job, index: int) -> None:
    """A worker process: trials until the study is through."""
    prepare()
    follow_parent()
    try:
        mlflow.set_tracking_uri(job.tracking)
        study_trials(job, index)
    except InputError as error:
        print(f"facerec: worker {index}: {error}", file=sys.stderr, flush=True)
        sys.exit(BAD_INPUT)


def study_trials(job: Job, index: int = 0) -> None:
    """Works on the study in this process.

    Raises:
        InputError: if trials keep failing.
        Stopped: after Ctrl-C or SIGTERM; the trial at hand is saved and queued again.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, deaths = job.open()
    trials = Trials(job)
    with stop_softly(trials.stop):
        work(
            study,
            job.settings.trials,
            trials,
            deaths,
            job.sampler,
            stopping=lambda: trials.stopped is not None,
            told=lambda study, trial: tell(job, study, trial),
            seed=job.settings.seed,
            index=index,
            heartbeat=job.settings.heartbeat_seconds,
        )
    if trials.stopped:
        raise trials.stopped


def tell(job: Job, study: optuna.Study, trial: FrozenTrial) -> None:
    """A trial that has ended, on the console and in the study's run."""
    reason = trial.user_attrs.get("reason") or trial.user_attrs.get("error")
    names = list(job.space.objectives)
    values = ", ".join(f"{n} {v:.4g}" for n, v in zip(names, trial.values or [], strict=False))
    params = ", ".join(f"{name}={short(value)}" for name, value in trial.params.items())
    state = f"{trial.state.name.lower()}{f' ({reason})' if reason else ''}"
    done = count(study, TrialState.COMPLETE, TrialState.PRUNED)
    say(f"trial {trial.number} {state}: {values or 'no value'}; {params} [{done} done]")
    if len(names) == 1 and trial.state == TrialState.COMPLETE:
        try:
            best = study.best_value
        except ValueError:  # nothing within the constraints yet
            return
        Run(job.parent).log_metrics({f"best/{names[0]}": best}, step=done)


def short(value: Any) -> str:
    """A parameter's value for the console."""
    return f"{value:.3g}" if isinstance(value, float) else canonical(value)


class Trials:
    """Trains trials, one after another, in one process. Called with a trial, it returns its value or values."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stores: dict[tuple[Any, ...], Store] = {}
        self.trainer: Trainer | None = None
        self.stopped: Stopped | None = None

    def stop(self, stopped: Stopped) -> None:
        """Asks the training at hand to stop after its step, and begins no other."""
        self.stopped = stopped
        if self.trainer is not None:
            self.trainer.stop = stopped

    def __call__(self, trial: Trial) -> float | Sequence[float]:
        chosen = self.job.space.suggest(trial)
        before = trial.user_attrs.get("continues", "")
        tags = {
            "trial.number": str(trial.number),
            "trial.state": "running",
            "study": self.job.study,
            **({"trial.continues": before} if before else {}),
        }
        with nested(self.job.parent, f"trial {trial.number}", tags) as run:
            trial.set_user_attr("mlflow_run", run.id)
            try:
                values = self.learn(trial, chosen, run)
                run.tag({"trial.state": "complete"})
                return values
            except TrialPruned as pruned:
                tag_state(run, "pruned", str(pruned))
                trial.set_user_attr("reason", str(pruned))
            except SystemExit:
                tag_state(run, "failed", "interrupted")
                raise
            except (
                InputError
            ) as error:  # settings that do not go together, or a training that diverged
                if len(self.job.space.objectives) > 1:
                    tag_state(run, "failed", reason_of(error))
                    raise
                tag_state(run, "pruned", reason_of(error))
                trial.set_user_attr("reason", reason_of(error))
            except Exception as error:
                tag_state(run, "failed", reason_of(error)[:500])
                raise
            finally:
                self.trainer = None
        raise TrialPruned

    def learn(self, trial: Trial, chosen: Mapping[str, Any], run: Run) -> float | Sequence[float]:
        """Trains one trial and judges it."""
        space = self.job.space
        settings = validate(
            TrainSettings, {**trial_settings(self.job.settings), **chosen}, lambda key: "trial"
        )
        run.log_settings(settings)
        check(settings)
        folder = Path(settings.output) / run.id
        store = self.store(settings)
        checkpoint = saved(trial, settings, store, folder)
        with alone(folder), same_threads(checkpoint, settings.device):
            trainer = make_trainer(settings, store, folder, checkpoint, progress=False)
            parameters = parameter_count(trainer.network)
            run.log_metrics({"parameters": parameters}, step=0)
            run.tag({"arithmetic": trainer.precision})
            self.trainer, trainer.stop = trainer, self.stopped
            facts: dict[str, float] = {"parameters": parameters}
            over: Exception | None = None
            try:
                if space.can_prune and exceeded(space, facts):
                    raise TrialPruned("it has more parameters than the constraints allow")
                for row in itertools.chain(list(trainer.history), trainer):
                    run.log_metrics(
                        {k: v for k, v in row.items() if k != "epoch"}, int(row["epoch"])
                    )
                    report(trial, space, row, settings.epochs)
            except (TrialPruned, InputError) as error:
                over = error
            facts |= judged(trainer.history)
            constrain(trial, space, facts)
            shutil.rmtree(folder, ignore_errors=True)  # checkpoints of a trial that is over
        if over:
            raise over
        missing = [name for name in space.objectives if name not in facts]
        if missing:
            raise InputError(
                f"{missing[0]} cannot be measured on these validation people: choose another objective"
            )
        values = [facts[name] for name in space.objectives]
        return values[0] if len(values) == 1 else values

    def store(self, settings: TrainSettings) -> Store:
        """The data of a trial, opened once a process."""
        names = (*DataSettings.model_fields, *AlignSettings.model_fields)
        key = tuple(getattr(settings, name) for name in names)
        if key not in self.stores:
            self.stores[key] = open_store(settings, progress=False)
        return self.stores[key]


def tag_state(run: Run, state: str, reason: str) -> None:
    """How a trial ended, for MLflow's table."""
    run.tag({"trial.state": state, **({"trial.reason": reason} if reason else {})})


def report(trial: Trial, space: Space, row: Mapping[str, float], epochs: int) -> None:
    """Tells Optuna of an epoch, and stops a trial that it gives no hope."""
    epoch, (metric, *_) = int(row["epoch"]), space.objectives
    if not space.can_prune or epoch == 0 or metric not in row:
        return
    trial.report(row[metric], epoch)
    if epoch < epochs and trial.should_prune():
        raise TrialPruned(f"no hope after epoch {epoch}")


def judged(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of a training: those of the epoch whose weights `train` would keep, and its median speed."""
    if not history:
        return {}
    best = max(history, key=lambda row: row.get("val/map_at_r", row["epoch"]))
    facts = {name: value for name, value in best.items() if name.startswith("val/")}
    speeds = [row[SPEED] for row in history if SPEED in row]
    return facts | ({SPEED: statistics.median(speeds)} if speeds else {})


def exceeded(space: Space, facts: Mapping[str, float]) -> bool:
    """Whether a bound on something that is known already is broken."""
    return any(c.metric in facts and c.excess(facts[c.metric]) > 0 for c in space.constraints)


def constrain(trial: Trial, space: Space, facts: Mapping[str, float]) -> None:
    """Tells Optuna how far the trial is outside of each bound."""
    for bound in space.constraints:
        excess = bound.excess(facts[bound.metric]) if bound.metric in facts else IMPOSSIBLE
        trial.set_constraint(f"{bound.metric} {bound.bound} {bound.limit:g}", excess)


def saved(trial: Trial, settings: TrainSettings, store: Store, folder: Path) -> Checkpoint | None:
    """The checkpoint of the attempt that this trial continues, moved to `folder`.

    Only where it lies here and is of the same training: elsewhere the trial begins anew, to the same end.
    """
    before = trial.user_attrs.get("continues")
    if not before:
        return None
    old = Path(settings.output) / before
    checkpoint, _ = Checkpoints(old / "checkpoints").newest()
    if checkpoint is None or checkpoint.state.get("data_digest") != store.digest:
        return None
    if checkpoint.state.get("split_version", 1) != store.split_version:
        return None
    known = defaults(TrainSettings) | checkpoint.state.get("settings", {})
    wanted = as_params(settings)
    if any(known.get(key) != wanted[key] for key in wanted if key not in FREE):
        return None
    old.rename(folder)
    return checkpoint

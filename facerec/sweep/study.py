"""One Optuna study that any number of workers share: its storage, its trials, and those whose worker has died.

Workers know of each other through the storage alone. A trial is counted when it is complete or pruned; one whose
worker is gone is failed and waits to be tried again, so that the count asked for is reached whatever dies.
"""

from __future__ import annotations

import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from facerec.errors import InputError
from facerec.runtime.database_url import without_secrets
from facerec.runtime.text import brief, one_line
from facerec.sweep.space import differences
from facerec.sweep.workers import runs_here, this_host, this_worker

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
POLL_SECONDS = 0.5  # between two looks of a worker that waits for the others
JOIN_SECONDS = 60  # for the worker that made the study to say what it searches
MAX_RETRIES = 3  # of a trial that takes its worker down with it
MAX_FAILURES = 5  # errors in a row after which a study is given up

Objective = Callable[[Trial], float | Sequence[float]]


class Surplus(Exception):
    """A trial that two workers began at once where one was wanted."""


def count(study: optuna.Study, *states: TrialState) -> int:
    """Trials in one of the states."""
    return len(study.get_trials(deepcopy=False, states=states))


def open_study(
    storage: BaseStorage,
    name: str,
    described: Mapping[str, Any],
    directions: Sequence[str],
    usual: Mapping[str, str],
) -> tuple[optuna.Study, bool]:
    """The study of that name, made where there is none.

    Args:
        described: what its trials have in common, plain JSON values.
        usual: settings that an older study may not tell of, since they came later, and what they were for it.

    Returns:
        The study, and whether it was made here.

    Raises:
        InputError: if there is one that is about something else; what differs is named.
    """
    try:
        ways = [StudyDirection[direction.upper()] for direction in directions]
        study = optuna.create_study(storage=storage, study_name=name, directions=ways)
        study.set_user_attr("described", described)
        return study, True
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
    before = wait_for(study, "described") or described  # its maker died before it could say
    before = {**before, "settings": {**usual, **before["settings"]}}
    if differing := differences(before, described):
        raise InputError(
            f"study {name} is about something else: {'; '.join(differing)}; give this one another name by study, "
            "or leave out what differs"
        )
    return study, False


def wait_for(study: optuna.Study, key: str) -> Any:
    """A user attribute that the maker of a study sets right away; None if it died before it could."""
    deadline = time.monotonic() + JOIN_SECONDS
    while key not in study.user_attrs and time.monotonic() < deadline:
        time.sleep(0.2)
    return study.user_attrs.get(key)


class Deaths:
    """Notices trials whose worker is gone, fails them and has them tried again.

    Args:
        study: to watch.
        grace: seconds without a sign of life after which a worker elsewhere counts as gone.
        bury: called with every trial that is failed.
    """

    def __init__(
        self, study: optuna.Study, grace: float, bury: Callable[[FrozenTrial], None]
    ) -> None:
        self.study, self.grace, self.bury = study, grace, bury
        self.signs: dict[int, tuple[Any, float]] = {}  # trial → last sign, when it was first seen
        self.journal = isinstance(study._storage, JournalStorage)

    def look(self) -> None:
        """Fails whatever is dead by now."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)  # by Optuna's heartbeat, on a database
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self.gone(trial):
                self.fail(trial)

    def gone(self, trial: FrozenTrial) -> bool:
        """Whether nobody works on a running trial any more.

        Here the process is looked for. One elsewhere, and one that died before it could sign its trial, is gone
        when it has shown no sign of life for as long as we have watched: no two clocks are compared.
        """
        worker = trial.user_attrs.get("worker")
        if worker and worker["host"] == this_host():
            return not runs_here(worker)
        if worker and not self.journal:
            return False
        sign, now = trial.user_attrs.get("alive", 0), time.monotonic()
        before, since = self.signs.get(trial._trial_id, (None, now))
        if sign != before:
            self.signs[trial._trial_id] = sign, now
            return False
        return now - since > self.grace

    def fail(self, trial: FrozenTrial) -> None:
        """Fails a trial, unless somebody else does so first."""
        try:
            self.study._storage.set_trial_user_attr(trial._trial_id, "reason", "its worker died")
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return
        self.mourn(self.study, trial)

    def mourn(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """What follows a death, also one that Optuna's heartbeat has found."""
        self.bury(trial)
        if len(retry_history(trial)) <= MAX_RETRIES:
            try_again(study, trial)


def retry_history(trial: FrozenTrial) -> list[int]:
    """Numbers of the attempts at a trial, its own last."""
    return [*trial.system_attrs.get("retry_history", []), trial.number]


def try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues the same parameters; the next attempt may go on from the checkpoint of the run it continues."""
    if not trial.params:  # it died before it was given any
        return
    history = retry_history(trial)
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"continues": trial.user_attrs.get("mlflow_run", "")},
            system_attrs={"failed_trial": history[0], "retry_history": history},
        )
    )


@contextmanager
def signs_of_life(study: optuna.Study, trial: Trial, seconds: float) -> Iterator[None]:
    """Keeps saying that the trial is worked on, where the storage has no heartbeat of its own."""
    if not isinstance(study._storage, JournalStorage):
        yield
        return
    over = threading.Event()

    def beat() -> None:
        number = 0
        while not over.wait(seconds):
            number += 1
            try:
                trial.set_user_attr("alive", number)
            except optuna.exceptions.UpdateFinishedTrialError:
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def work(
    study: optuna.Study,
    goal: int,
    objective: Objective,
    deaths: Deaths,
    sampler: Callable[[int], optuna.samplers.BaseSampler],
    stopping: Callable[[], bool] = lambda: False,
    told: Callable[[optuna.Study, FrozenTrial], None] = lambda study, trial: None,
    seed: int = 0,
    index: int = 0,
    heartbeat: float = 20,
) -> None:
    """Runs trials until `goal` of them are complete or pruned, whoever ran them.

    A worker for which no trial is left stays until the others are through, since one of them may die.

    Args:
        sampler: seed → sampler; a new one a trial, so that a study goes on as if it had never stopped.
        stopping: whether no further trial is to be begun.
        told: called with every trial that this worker has ended.
        index: of this worker among those that share `seed`.

    Raises:
        InputError: if several trials in a row ended with an error.
    """
    guarded = guard(study, goal, objective, heartbeat)
    while not stopping():
        deaths.look()
        done, running = count(study, *DONE), count(study, TrialState.RUNNING)
        if done >= goal:
            return
        if done + running >= goal:
            time.sleep(POLL_SECONDS)
            continue
        give_up_failing(study)
        study.sampler = sampler(trial_seed(study, seed, index))
        before = len(own_trials(study))
        try:
            study.optimize(guarded, n_trials=1, catch=(Exception,), callbacks=[told])
        except Exception:
            # Optuna raises where a trial has been failed from outside: this worker was silent for too long.
            mine = own_trials(study)
            if len(mine) == before or mine[-1].state != TrialState.FAIL:
                raise


def guard(study: optuna.Study, goal: int, objective: Objective, heartbeat: float) -> Objective:
    """`objective` of a trial that is signed, wanted, and queued again when it is interrupted."""

    def guarded(trial: Trial) -> float | Sequence[float]:
        trial.set_user_attr("worker", this_worker())
        if is_surplus(study, goal, trial.number):
            trial.set_user_attr("reason", "one more than was asked for")
            raise Surplus
        with signs_of_life(study, trial, heartbeat):
            try:
                return objective(trial)
            except SystemExit:
                trial.set_user_attr("reason", "interrupted")
                study.tell(trial, state=TrialState.FAIL)
                try_again(study, study._storage.get_trial(trial._trial_id))
                raise
            except optuna.TrialPruned:
                raise
            except Exception as error:
                trial.set_user_attr("error", brief(without_secrets(one_line(error))))
                raise

    return guarded


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that this process has begun, oldest first."""
    me = this_worker()
    return [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get("worker") == me]


def is_surplus(study: optuna.Study, goal: int, number: int) -> bool:
    """Whether enough trials are done or were begun before this one: of two that race, the later gives way."""
    trials = study.get_trials(deepcopy=False)
    earlier = [t for t in trials if t.state == TrialState.RUNNING and t.number < number]
    return sum(t.state in DONE for t in trials) + len(earlier) >= goal


def give_up_failing(study: optuna.Study) -> None:
    """Raises InputError where the trials that ended last all ended with an error."""
    ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    last = sorted(ended, key=_ended_at)[-MAX_FAILURES:]
    errors = [t.user_attrs["error"] for t in last if "error" in t.user_attrs]
    if len(errors) == MAX_FAILURES:
        raise InputError(f"{MAX_FAILURES} trials in a row failed, the last with: {errors[-1]}")


def _ended_at(trial: FrozenTrial) -> datetime:
    assert trial.datetime_complete is not None  # of one that has
    return trial.datetime_complete


def trial_seed(study: optuna.Study, seed: int, index: int) -> int:
    """Seed of the next trial's sampler: the same for the same history, another one for everybody at work now."""
    trials = study.get_trials(deepcopy=False)
    words = [seed, len(trials), index]
    if any(trial.state == TrialState.RUNNING for trial in trials):
        worker = this_worker()
        words.append(zlib.crc32(f"{worker['host']} {worker['pid']}".encode()))
    return int(np.random.SeedSequence(words).generate_state(1)[0])

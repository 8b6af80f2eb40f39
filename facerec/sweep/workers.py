"""Processes that work on one thing together, watched by the one that started them.

They are spawned, since a fork would not survive the kernels' threads; the machine's threads are divided among them.
A worker that dies is replaced. Ctrl-C reaches the parent alone, which asks the others to finish the step at hand.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from facerec.errors import InputError
from facerec.runtime.console import say
from facerec.runtime.cores import usable_cores
from facerec.runtime.signals import Stopped, stop_softly

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
BAD_INPUT = 2  # exit code of a worker that has told why it cannot work
MAX_DEATHS = 3  # a worker, with nothing finished in between
PATIENCE_SECONDS = 20  # for a worker that was told to stop at once


@contextmanager
def environment_of_workers(index: int, workers: int, gpus: int) -> Iterator[None]:
    """What a worker inherits: its share of the threads, one of several GPUs, deafness to the terminal's Ctrl-C."""
    share = str(max(1, usable_cores() // workers))
    given = {name: os.environ.get(name, share) for name in THREADS}
    if gpus > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        given["CUDA_VISIBLE_DEVICES"] = str(index % gpus)
    before = {name: os.environ.get(name) for name in given}
    deaf = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(given)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, deaf)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def supervise(
    workers: int,
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    on_death: Callable[[], None],
    progress: Callable[[], int],
    gpus: int = 0,
) -> None:
    """Runs `target(*arguments, index)` in so many processes until each has returned.

    Args:
        target: importable; exits with BAD_INPUT after telling what is wrong.
        on_death: called when a worker has died of anything else.
        progress: what has been finished so far; deaths count from its last change.
        gpus: in this machine.

    Raises:
        InputError: if a worker said that it cannot work, or they keep dying.
        Stopped: after Ctrl-C or SIGTERM, when all have stopped.
    """
    spawn = multiprocessing.get_context("spawn")
    processes: dict[int, BaseProcess] = {}
    stopped: list[Stopped] = []

    def start(index: int) -> None:
        process = spawn.Process(target=target, args=(*arguments, index), name=f"worker {index}")
        with environment_of_workers(index, workers, gpus):
            process.start()
        processes[index] = process

    def stop(asked: Stopped) -> None:
        stopped.append(asked)
        for process in processes.values():
            process.terminate()

    with stop_softly(stop):
        try:
            for index in range(workers):
                start(index)
            deaths, finished = 0, progress()
            while processes:
                for index, code in ended(processes).items():
                    if stopped or code == 0:
                        continue
                    if code == BAD_INPUT:
                        raise InputError(f"worker {index} gave up; its reason stands above")
                    say(f"worker {index} died ({cause(code)}); another one takes its place")
                    on_death()
                    deaths, finished = (0 if progress() > finished else deaths) + 1, progress()
                    if deaths > MAX_DEATHS * workers:
                        raise InputError(
                            f"workers keep dying ({cause(code)}) and finish nothing: if memory is short, "
                            "use fewer workers or a smaller batch_size"
                        )
                    start(index)
        finally:
            end(list(processes.values()))
    if stopped:
        raise stopped[0]


def ended(processes: dict[int, BaseProcess]) -> dict[int, int]:
    """Takes out those that have ended within the next half second: index → exit code."""
    wait([process.sentinel for process in processes.values()], timeout=0.5)
    gone = [index for index, process in processes.items() if not process.is_alive()]
    return {index: int(processes.pop(index).exitcode or 0) for index in gone}


def end(processes: list[BaseProcess]) -> None:
    """Ends what is left: asked, asked to be quick, killed."""
    for _ in range(2):
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        processes = [process for process in processes if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()


def cause(code: int) -> str:
    """What an exit code says, in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def follow_parent() -> None:
    """Stops this worker as SIGTERM does when the process that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@cache
def this_host() -> str:
    """Name of the machine, its start and its process numbering: a process id means something only within."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            found = Path(path)
            parts.append(
                str(found.stat().st_ino)
                if "ns" in path
                else found.read_text(encoding="utf-8").strip()
            )
        except OSError:
            continue
    return "/".join(parts)


def this_worker() -> dict[str, Any]:
    """How others tell whether this process still runs."""
    process = psutil.Process()
    return {"host": this_host(), "pid": process.pid, "started": process.create_time()}


def runs_here(worker: Mapping[str, Any]) -> bool:
    """Whether a worker of this host is still there, and its process id not somebody else's by now."""
    try:
        process = psutil.Process(worker["pid"])
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and abs(process.create_time() - worker["started"]) < 2
    except psutil.Error:
        return False

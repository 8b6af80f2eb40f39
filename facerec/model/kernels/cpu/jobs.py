"""How the CPU kernels are compiled, given their tensors, and run on PyTorch's own threads.

A kernel is a function of one integer, the address of a *job*: an array of int64 that holds two counters
(next task, next worker), the number of tasks, scratch memory, sizes, and *views* of tensors (an address
and four strides in bytes, so that any strides cost nothing and a negative one walks backwards). Every
thread runs the kernel; it takes tasks from the counter until there are none.

The threads are those of the OpenMP pool that PyTorch itself uses (GOMP_parallel): a second pool, such as
Numba's, would fight with the first over the cores while its threads still spin. Several Python threads
may launch at once. Where there is no such pool, Python threads do it; kernels hold no GIL.

Compiled code is kept in a folder that only the user can write, since loading it is running it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import stat
import sys
import tempfile
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, CFUNCTYPE, c_int64, c_uint, c_void_p
from functools import cached_property
from pathlib import Path
from typing import Any

import numba
import torch
from numba import njit, types
from platformdirs import user_cache_dir
from torch import Tensor

from facerec.model.kernels.cpu.simd import fetch_add, load_int

_SOURCES = (
    "jobs.py",
    "simd.py",
    "tiles.py",
    "scan.py",
    "scan_grad.py",
    "conv.py",
)
_HEADER, _SIZES, _VIEW = 5, 11, 5  # int64 of a job: counters and scratch, sizes, one view


# Inside kernels.


@njit(forceinline=True)
def size(job, index):
    """The index-th size of a job."""
    return load_int(job, _HEADER + index)


@njit(forceinline=True)
def view(job, index):
    """The index-th view of a job: (address, four strides in bytes); address 0 is None."""
    first = _HEADER + _SIZES + _VIEW * index
    return (
        load_int(job, first),
        load_int(job, first + 1),
        load_int(job, first + 2),
        load_int(job, first + 3),
        load_int(job, first + 4),
    )


@njit(forceinline=True)
def at(tensor, i, j, k):
    """Address of element (i, j, k) of a view."""
    return tensor[0] + i * tensor[1] + j * tensor[2] + k * tensor[3]


@njit(forceinline=True)
def worker_scratch(job):
    """Address of this worker's own scratch memory, aligned to a cache line."""
    return load_int(job, 3) + fetch_add(job, 1) * load_int(job, 4)


@njit(forceinline=True)
def next_task(job):
    """Number of a task that nobody has taken; -1 when all are."""
    task = fetch_add(job, 0)
    return task if task < load_int(job, 2) else -1


# Compiling.


class Kernel:
    """A function of a job's address, compiled on its first use; decorates the Python source."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    @cached_property
    def _compiled(self):
        with _compiling:
            return self.__dict__.get("_compiled") or _compile(self._function)

    @cached_property
    def address(self) -> int:
        """Of the machine code."""
        return self._compiled.address

    @cached_property
    def call(self) -> Callable[[int], None]:
        """The machine code as a function of a job's address, which holds no GIL."""
        return CFUNCTYPE(None, c_int64)(self.address)


_compiling = threading.RLock()
_said = False
_numba: dict[str, Any] = vars(numba.config)  # Numba's settings, which it makes as it starts


def _compile(function: Callable[[int], None]):
    signature = types.void(types.int64)
    folder = kernel_folder()
    _say_if_new(function, folder)
    _load_arrays()
    # Numba reads the folder while it makes the function; other functions of the process keep theirs.
    before, _numba["CACHE_DIR"] = _numba["CACHE_DIR"], str(folder or "")
    try:
        return numba.cfunc(signature, cache=folder is not None, error_model="numpy")(function)
    except (OSError, RuntimeError):  # the folder filled up, or the source is not a file
        return numba.cfunc(signature, error_model="numpy")(function)
    finally:
        _numba["CACHE_DIR"] = before


def _load_arrays() -> None:
    """Load Numba's array functions without SciPy, whose import would take longer than all else here.

    While this module loads, Numba asks whether SciPy has a BLAS, for np.vdot alone, which it also does without.
    """
    blas = "scipy.linalg.cython_blas"
    if blas in sys.modules:
        return
    sys.modules[blas] = None  # type: ignore[assignment]  # as Python's import takes it: not there
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules[blas]


def _say_if_new(function: Callable[[int], None], folder: Path | None) -> None:
    global _said
    if _said or (folder is not None and any(folder.rglob(f"*.{function.__name__}-*.nbi"))):
        return
    _said = True
    kept = f"kept in {folder}" if folder else "no folder to keep them in: NUMBA_CACHE_DIR names one"
    print(f"facerec: compiling CPU kernels, under a minute, {kept}", file=sys.stderr, flush=True)


def kernel_folder() -> Path | None:
    """Where compiled kernels are kept: under NUMBA_CACHE_DIR, or else the user's own cache folder.

    Returns:
        A folder for this very source and Numba, that nobody else can write or replace, by a folder above it either;
        where the first choice is not, one in the system's temporary folder; None where there is none.
    """
    here = Path(__file__).parent
    source = b"".join((here / name).read_bytes() for name in _SOURCES)
    source += numba.__version__.encode()
    name = f"kernels-{hashlib.sha256(source).hexdigest()[:16]}"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    candidates = [
        Path(_numba["CACHE_DIR"] or user_cache_dir("facerec", False)),
        Path(tempfile.gettempdir()) / f"facerec-{user}",
    ]
    return next(filter(None, (_private(folder / name) for folder in candidates)), None)


def _private(folder: Path) -> Path | None:
    """Make the folder if need be; its path without links, if we can write it, and only we can put another there."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        folder = folder.resolve()
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not hasattr(os, "getuid"):
            return folder
        own = all(_is_kept(path, (os.getuid(),), 0) for path in (folder, folder.parent))
        above = folder.parent.parents
        # In a sticky folder, such as /tmp, others can neither rename nor replace what is ours.
        safe = own and all(_is_kept(path, (os.getuid(), 0), stat.S_ISVTX) for path in above)
        return folder if safe else None
    except OSError:
        return None


def _is_kept(folder: Path, owners: tuple[int, ...], sticky: int) -> bool:
    """Whether a folder is one of these users', who alone can write it, or who let nobody replace what is in it."""
    status = folder.lstat()
    return status.st_uid in owners and (not status.st_mode & 0o022 or bool(status.st_mode & sticky))


# Running.


def as_view(tensor: Tensor | None, reverse: int | None = None) -> list[int]:
    """A tensor of up to four axes as the integers of a view.

    The tensor must outlive the launch: an address keeps nothing alive.

    Args:
        tensor: float32, any strides; None is address 0.
        reverse: axis to be walked backwards.
    """
    if tensor is None:
        return [0] * _VIEW
    integers = [tensor.data_ptr(), 0, 0, 0, 0]
    for axis, stride in enumerate(tensor.stride(), 1):
        integers[axis] = 4 * stride
    if reverse is not None:
        integers[0] += (tensor.shape[reverse] - 1) * integers[reverse + 1]
        integers[reverse + 1] *= -1
    return integers


def launch(
    kernel: Kernel, tasks: int, sizes: list[int], views: list[list[int]], scratch: int = 0
) -> None:
    """Run a kernel over `tasks` tasks on PyTorch's threads; returns when all are done.

    Tasks are handed out one by one, so that results may not depend on who runs which.

    Args:
        kernel: what to run.
        tasks: how many.
        sizes: up to eleven, for `size`.
        views: for `view`, from `as_view`.
        scratch: bytes of scratch memory a worker.
    """
    threads = torch.get_num_threads() if tasks > 1 else 1
    scratch = (scratch + 4095) // 4096 * 4096
    memory = torch.empty(threads * scratch + 64, dtype=torch.uint8)
    address = (memory.data_ptr() + 63) // 64 * 64
    numbers = [0, 0, tasks, address, scratch, *sizes, *[0] * (_SIZES - len(sizes))]
    for integers in views:
        numbers += integers
    job = array("q", numbers)
    if threads == 1:
        kernel.call(job.buffer_info()[0])
    else:
        _run_in_parallel(kernel, job.buffer_info()[0], threads)


def _openmp():
    """GOMP_parallel of the OpenMP library that PyTorch brought, GNU's or one that speaks its tongue."""
    try:
        function = CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # another OpenMP; another operating system
        return None
    function.argtypes, function.restype = (c_void_p, c_void_p, c_uint, c_uint), None
    return function


_gomp_parallel = _openmp()
_executor: ThreadPoolExecutor | None = None
_ran_in_parallel = False


def _run_in_parallel(kernel: Kernel, job: int, threads: int) -> None:
    global _executor, _ran_in_parallel
    _ran_in_parallel = True
    if _gomp_parallel is not None:
        _gomp_parallel(kernel.address, job, threads, 0)
        return
    if _executor is None:
        _executor = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="facerec")
    others = [_executor.submit(kernel.call, job) for _ in range(threads - 1)]
    kernel.call(job)
    for other in others:
        other.result()


def _after_fork() -> None:
    """In a child: the pool's threads stayed with the parent, and GNU's OpenMP would wait for them."""
    global _compiling, _executor
    _compiling, _executor = threading.RLock(), None
    if _ran_in_parallel:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

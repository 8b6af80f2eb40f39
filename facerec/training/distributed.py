"""Training by several processes that torchrun starts: who is who, what they exchange, how they end together.

A process is a *rank*, and rank 0 is the first. Every rank holds the same weights, sees its own share of a batch and
computes the loss of the whole batch; the first alone speaks to MLflow, prints and writes. Without torchrun there is
one rank, no process group, and every function here hands back what it is given.

Axes: B pictures of one rank, W ranks, E embedding_dim.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from facerec.errors import InputError
from facerec.runtime.device import resolve_device

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # with the first rank, which decodes a data set or validates


class World(NamedTuple):
    """rank: of this process, from 0. size: how many ranks. patient: a gloo group for what is no gradient."""

    rank: int = 0
    size: int = 1
    patient: dist.ProcessGroup | None = None


_world = World()


class RankLost(InputError):
    """Another rank has ended, so that this one cannot go on."""


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


@cache
def rendezvous() -> tuple[dist.Store, int, int]:
    """The store over which ranks find each other, this process's rank and their number."""
    return next(dist.rendezvous("env://"))


@contextmanager
def ranks(device: str) -> Iterator[None]:
    """Joins the other ranks, if torchrun has started any; all but the first are mute meanwhile.

    After an error the group is left to the end of the process: the others notice by the closed connections, and
    whoever failed has told why by then.

    Args:
        device: the `device` setting; gradients go through NCCL on CUDA and through gloo on CPUs.

    Raises:
        InputError: if there are fewer GPUs than ranks on this machine.
        RankLost: if another rank ends.
    """
    global _world
    if not launched():
        yield
        return
    cuda = resolve_device(device).type == "cuda"
    if cuda:
        take_gpu()
    store, rank, size = rendezvous()
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert not isinstance(patient, int)  # which stands for a group without this rank
    _world = World(rank, size, patient)
    with lost_ranks_told(), ExitStack() as stack:
        if rank > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8", errors="replace"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield
    _world = World()
    dist.destroy_process_group()


def take_gpu() -> None:
    """Makes `cuda` mean the GPU of this rank."""
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= gpus:
        raise InputError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', local + 1)} ranks and {gpus} GPUs on this machine: "
            "start at most one rank a GPU, or set device to cpu"
        )
    torch.cuda.set_device(local)


@contextmanager
def lost_ranks_told() -> Iterator[None]:
    """Turns the error of a connection that another rank's end has closed into one sentence."""
    try:
        yield
    except RuntimeError as error:
        of_connection = isinstance(error, dist.DistError) or "gloo" in str(error)
        if world().size == 1 or not of_connection:
            raise
        # torchrun asks those who are left to end, too: they do, and have a run in MLflow to end before.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RankLost(
            "another rank of this training has ended, and the others end with it: go on from the last checkpoint "
            f"with resume=last and {world().size} ranks, as now"
        ) from error


def first_to_tell() -> bool:
    """Whether this process is the one to tell an error that may have met several ranks: the first that asks."""
    if not launched():
        return True
    try:
        return rendezvous()[0].add("facerec/told", 1) == 1
    except RuntimeError:  # the store has gone with its host
        return os.environ["RANK"] == "0"


def world() -> World:
    """This process's place among the ranks."""
    return _world


def is_first() -> bool:
    """Whether this is the rank that prints, writes and speaks to MLflow."""
    return _world.rank == 0


def share(positions: np.ndarray) -> np.ndarray:
    """This rank's part of the positions of a batch: (W * B,) → (B,)."""
    return positions.reshape(_world.size, -1)[_world.rank]


def replicate(network: nn.Module, pictures: Tensor) -> nn.Module:
    """The network as it is called in a training step: its gradients become the mean over ranks.

    Buffers are the first rank's at every step. Where a batch norm keeps statistics, they are of its share alone.

    Args:
        pictures: what the network can embed.
    """
    if _world.size == 1:
        return network
    replica = nn.parallel.DistributedDataParallel(network.eval())
    # It lays gradients out anew after its first backward pass, and the sum over three ranks depends on the layout:
    # that pass is made here, or else a resumed training would not end with the same bits.
    replica(pictures).sum().backward()
    network.zero_grad(set_to_none=True)
    return replica


def gather(embeddings: Tensor) -> Tensor:  # (B, E) → (W * B, E)
    """Embeddings of the whole batch, in order of rank; gradient flows into this rank's own.

    The factor: all ranks compute the same loss L from the same embeddings e = (e_0 ... e_{W-1}), so each knows the
    whole of dL/de. For the network's weights θ the gradient of the whole batch is the sum over r of dL/de_r · de_r/dθ.
    Rank r contributes its own term, and DistributedDataParallel divides the sum of the terms by W: hence W here.
    The objective's own parameters (class weights) stand behind this factor, between e and L: every rank has their
    whole gradient already, the same on all, so it is neither reduced nor scaled.
    """
    if _world.size == 1:
        return embeddings
    parts = [torch.empty_like(embeddings) for _ in range(_world.size)]
    dist.all_gather(parts, embeddings.detach().contiguous())
    parts[_world.rank] = embeddings
    whole = torch.cat(parts)
    whole.register_hook(lambda gradient: gradient * _world.size)
    return whole


def largest(*numbers: int) -> tuple[int, ...]:
    """The largest of each number over the ranks, on all of them: how they agree on what to do after a step."""
    if _world.size == 1:
        return numbers
    tensor = torch.tensor(numbers)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_world.patient)
    return tuple(tensor.tolist())


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives on the first rank, on all of them; the others wait. An InputError is raised on all."""
    if _world.size == 1:
        return work()
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = work()
        except InputError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, group=_world.patient)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def wait_for_first() -> None:
    """The others go on when the first has come here too."""
    from_first(lambda: None)


def first_before_others(work: Callable[[], T]) -> T:
    """`work` on the first rank, then on the others, who find on the disk what it has made."""
    done: list[T] = []
    from_first(lambda: done.append(work()))
    return done[0] if done else work()

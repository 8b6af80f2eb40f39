"""What test_parallel.py has every rank do: `torchrun ... tests/helpers/ranks.py exchange|resume FOLDER`."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file

from facerec.errors import InputError
from facerec.runtime.signals import Stopped
from facerec.training import distributed
from facerec.training.checkpoint import Checkpoints
from tests.helpers.trainers import Small, small, trainer

PLAIN = {
    "flip": 0,
    "rotate": 0,
    "zoom": 0,
    "shift": 0,
    "color": 0,
    "tint": 0,
    "gray": 0,
    "erase": 0,
}
EXACT = {
    **PLAIN,
    "norm": "group",
    "dropout": 0,
    "drop_path": 0,
    "grad_clip": 0,
    "precision": "fp32",
}
LOSSES = {"triplet": {"miner": "all"}, "arcface": {"miner": "none"}}


def one_step(loss: str, batch_size: int) -> dict[str, torch.Tensor]:
    """Loss and gradients of the first batch, nothing random in it."""
    made = trainer(small(loss=loss, **LOSSES[loss], batch_size=batch_size, **EXACT))
    made.train_step(made.plan(0)[0])
    modules = {"network": made.network, "objective": made.objective}
    return {"loss": made.last_loss} | {
        f"{part}/{name}": parameter.grad.contiguous()
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def exchange(folder: Path) -> None:
    """A step of each loss; a request to stop and an error that one rank alone has."""
    rank = distributed.world().rank
    for loss in LOSSES:
        save_file(one_step(loss, 16), folder / f"{loss}-{rank}.safetensors")
    facts = {"seed": torch.initial_seed()}
    stopped = trainer(small(epochs=9), progress=False)
    stopped.stop = Stopped(143) if rank == 1 else None
    try:
        list(stopped)
    except Stopped as stop:
        facts |= {"code": stop.code, "step": stopped.step}
    try:
        distributed.from_first(refuse)
    except InputError as error:
        facts["error"] = str(error)
    (folder / f"facts-{rank}.json").write_text(json.dumps(facts))


def refuse() -> None:
    raise InputError(f"refused by rank {distributed.world().rank}")


class Killed(Exception):
    pass


def killed_and_resumed(settings: Small, folder: Path, stop_after: int) -> dict[str, torch.Tensor]:
    """Weights of a training that has ended after step `stop_after`, and has gone on in new trainers."""

    def save(step, tensors, state):
        if distributed.is_first():
            Checkpoints(folder).save(step, tensors, state)
        if step == stop_after:
            raise Killed

    killed = trainer(settings.model_copy(update={"checkpoint_minutes": 1e-9}), save=save)
    with suppress(Killed):
        list(killed)
    resumed = trainer(settings)
    resumed.restore(distributed.from_first(lambda: Checkpoints(folder).newest()[0]))
    list(resumed)
    return everything(resumed)


def everything(made) -> dict[str, torch.Tensor]:
    """All weights of a training; the first rank's buffers and averages count."""
    kept = {f"objective/{name}": tensor for name, tensor in made.objective.state_dict().items()}
    kept |= {f"network/{name}": parameter for name, parameter in made.network.named_parameters()}
    if distributed.is_first():
        kept |= {
            f"average/{name}": value for name, value in made.average.network.state_dict().items()
        }
        kept |= {f"network/{name}": buffer for name, buffer in made.network.named_buffers()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in kept.items()}


def resume(folder: Path) -> None:
    """The same training whole, and killed in its second epoch; weights into FOLDER."""
    rank = distributed.world().rank
    more = {"batch_size": 8, "confusable": True, "epochs": 3, "d_model": 64}
    settings = small(loss="arcface", miner="none", **more)
    whole = trainer(settings)
    list(whole)
    save_file(everything(whole), folder / f"whole-{rank}.safetensors")
    resumed = killed_and_resumed(settings, folder / "checkpoints", whole.steps_per_epoch + 1)
    save_file(resumed, folder / f"resumed-{rank}.safetensors")


if __name__ == "__main__":
    with distributed.ranks("cpu"):
        {"exchange": exchange, "resume": resume}[sys.argv[1]](Path(sys.argv[2]))

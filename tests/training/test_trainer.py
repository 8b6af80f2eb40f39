"""The loop: the schedule by hand, learning on coloured squares, exact resume, failures told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from facerec.losses.objective import Objective
from facerec.model.network import build_network
from facerec.runtime.device import resolve_precision
from facerec.training.checkpoint import Checkpoints
from facerec.training.optim import learning_rate, parameter_groups
from facerec.training.resume import same_threads
from facerec.training.settings import TrainerSettings
from facerec.training.trainer import Trainer, TrainingFailed
from tests.helpers.trainers import colored_squares, small, trainer


def test_learning_rate_by_hand():
    settings = TrainerSettings(epochs=4, lr=1.0, warmup_epochs=1)
    rates = [learning_rate(step, 3, settings) for step in range(12)]
    assert rates[:3] == [0.25, 0.5, 0.75]  # a quarter more each step
    assert rates[3] == 1.0
    assert rates[3 + 4] == pytest.approx(0.5 * (1 + np.cos(np.pi * 4 / 9)))
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)


@pytest.mark.parametrize(
    "capabilities, meant", [({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32"), ({}, "fp32")]
)
def test_auto_precision_on_a_cpu(monkeypatch, capabilities, meant):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == meant
    assert [resolve_precision(name, cpu) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch before 2.11
    assert resolve_precision("auto", cpu) == "fp32"


def test_the_arithmetic_that_a_checkpoint_holds(monkeypatch):
    monkeypatch.setattr("facerec.training.trainer.resolve_precision", lambda name, device: "bf16")
    made = trainer(small(precision="auto"))
    assert made.precision_of({"precision": "fp32"}) == "fp32"
    assert made.precision_of({"precision": "bf16"}) == "bf16"
    assert made.precision_of({}) == "fp32"  # of before it was kept
    with pytest.raises(ValueError, match="half"):
        made.precision_of({"precision": "half"})


def test_what_must_not_decay_is_left_out():
    network = build_network(small())
    _, free = parameter_groups([network], 0.1)
    exempt = {id(p) for p in free["params"]}
    for name, parameter in network.named_parameters():
        should = parameter.ndim < 2 or name.endswith(("A_log", ".D", "positions"))
        assert (id(parameter) in exempt) == should, name


@pytest.mark.parametrize("loss", ["triplet", "cosface", "distill"])
def test_it_learns(loss):
    settings = small(
        loss=loss,
        miner="all" if loss == "triplet" else "none",
        epochs=8,
        lr=5e-3,
        color=0.0,
        gray=0,
    )
    rows = list(trainer(settings))
    assert [row["epoch"] for row in rows] == list(range(9))
    measure = (
        "train/triplets" if loss == "triplet" else "train/loss"
    )  # the loss is a mean over what is still wrong
    assert rows[-1][measure] < rows[1][measure]
    assert max(row["val/recall_at_1"] for row in rows) > 0.9


@pytest.mark.parametrize("stop_after", [2, 4, 6])
@pytest.mark.parametrize("stage", ["first", "second", "distill", "resnet18", "vit"])
def test_resume_ends_with_the_same_weights(tmp_path, stop_after, stage):
    """Stopped within an epoch and at its end: the same weights, averages and history, bit for bit."""
    stages = {
        "first": {"loss": "arcface", "miner": "none"},
        "second": {"miner": "hard", "confusable": True, "precision": "bf16"},
        "distill": {"loss": "distill", "teacher": "dlib", "miner": "none"},
        "resnet18": {"backbone": "resnet18"},
        "vit": {"backbone": "vit", "d_model": 64},
    }
    settings = small(**stages[stage])
    whole = trainer(settings)
    expected = list(whole)

    class Killed(Exception):
        pass

    def save(step, tensors, state):
        Checkpoints(tmp_path).save(step, tensors, state)
        if step == stop_after:
            raise Killed

    killed = trainer(settings.model_copy(update={"checkpoint_minutes": 1e-9}), save=save)
    with pytest.raises(Killed):
        list(killed)
    resumed = trainer(settings)
    resumed.precision = "fp32"  # of another processor: the checkpoint knows better
    checkpoint = Checkpoints(tmp_path).newest()[0]
    resumed.restore(checkpoint)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))  # of another machine, or as somebody has set it
    try:
        with same_threads(checkpoint, "cpu"):
            assert torch.get_num_threads() == threads
            list(resumed)
    finally:
        torch.set_num_threads(threads)
    for one, other in (
        (whole.network, resumed.network),
        (whole.average.network, resumed.average.network),
    ):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    assert all(torch.equal(whole.best[name], resumed.best[name]) for name in whole.best)
    timeless = [{k: v for k, v in row.items() if "per_second" not in k} for row in expected]
    assert timeless == [
        {k: v for k, v in row.items() if "per_second" not in k} for row in resumed.history
    ]


def test_a_loss_that_is_no_number_is_told_before_it_reaches_the_weights():
    failing = trainer(small())
    with torch.no_grad():
        failing.network.head.weight[0, 0] = float("nan")
    with pytest.raises(TrainingFailed, match="lower lr"):
        failing.train_step(np.arange(16))
    assert failing.step == 0


def test_a_collapse_is_told():
    failing = trainer(small())
    failing.step = 1
    with torch.no_grad():
        failing.average.network.head_norm.weight.zero_()
        failing.average.network.head_norm.bias.fill_(1.0)
    with pytest.raises(TrainingFailed, match="collapsed"):
        failing.validate()


def test_with_nobody_to_validate_the_last_weights_are_kept():
    settings = small(epochs=2)
    store = replace(colored_squares(), split=np.full(16 * 6, "train"))
    alone = Trainer(
        build_network(settings), Objective(settings, 16, settings.embedding_dim), store, settings
    )
    rows = list(alone)
    assert alone.best_row() == rows[-1] and not any(name.startswith("val/") for name in rows[-1])
    last = alone.average.network.state_dict()
    assert all(torch.equal(alone.best[name], last[name]) for name in last)

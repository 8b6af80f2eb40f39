"""A training step on a card that need not be there: on fake tensors, where whatever makes the host wait raises."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from facerec.data.augmentation import to_input
from facerec.losses import pairwise as pair_losses
from facerec.model.network import build_network
from facerec.runtime import device as compute
from facerec.training import optim, trainer
from tests.helpers import PROJECT
from tests.helpers.losses import MINERS
from tests.helpers.trainers import small
from tests.helpers.trainers import trainer as make_trainer

CARD = torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends that there is a card")


class Waited(Exception):
    """The host would have waited for the device."""


def refuse_to_wait(patch: pytest.MonkeyPatch) -> None:
    """What waits for a card, and not for a fake tensor on a CPU, raises where this package's code asks for it."""
    for name in ("cpu", "numpy", "tolist", "to"):
        method = getattr(torch.Tensor, name)

        def asked(tensor, *given, name=name, method=method, **named):
            moved = "device" in named or any(isinstance(g, (str, torch.device)) for g in given)
            by = Path(sys._getframe(1).f_code.co_filename)
            if (moved or name != "to") and by.is_relative_to(PROJECT):
                raise Waited(name)
            return method(tensor, *given, **named)

        patch.setattr(torch.Tensor, name, asked)


@pytest.fixture
def step(monkeypatch):
    """A trainer after a step, all tensors fake. Fake CUDA tensors have no backward pass without a driver: these are on
    a CPU, and the trainer holds it for a card."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("FACEREC_SCAN", "triton")
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)
    monkeypatch.setattr(trainer, "to_device", lambda array, device: torch.from_numpy(array))

    def run(first=1, **changes):  # the loss is looked at in step 0 and in every 50th
        settings = small(precision="fp32", **changes)
        again = SimpleNamespace(deepcopy=lambda network: build_network(settings))
        monkeypatch.setattr(optim, "copy", again)  # fake parameters cannot be copied
        made = make_trainer(settings)
        made.device, made.step = CARD, first
        with monkeypatch.context() as patch:
            refuse_to_wait(patch)
            made.train_step(np.arange(16))
        return made

    with FakeTensorMode():
        yield run


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("loss", ["triplet", "multi_similarity", "supcon"])
def test_no_step_waits_for_the_device(step, loss, miner):
    made = step(loss=loss, miner=miner)
    assert made.step == 2
    assert all(isinstance(total, FakeTensor) for total in made.sums.values())
    assert all(
        made.optimizer.state[p]["exp_avg"].shape == p.shape for p in made.network.parameters()
    )


@pytest.mark.parametrize("loss", ["arcface", "cosface", "subcenter_arcface"])
def test_no_step_with_a_margin_waits(step, loss):
    assert step(loss=loss).step == 2


def test_no_step_of_a_distillation_waits(step):
    assert step(loss="distill", teacher="dlib").step == 2


def test_what_waits_is_found(step, monkeypatch):
    """That the tests above would fail: looking at the loss, and a loss that picks its pairs by a mask."""
    with pytest.raises(DataDependentOutputException):
        step(first=50)
    monkeypatch.setattr(pair_losses, "mean_of_positive", lambda losses: losses[losses > 0].mean())
    with pytest.raises(DynamicOutputShapeException):
        step()
    monkeypatch.setattr(pair_losses, "mean_of_positive", lambda losses: losses.cpu().mean())
    with pytest.raises(Waited):
        step()


def test_the_store_on_the_card(step, monkeypatch):
    made = step()
    size = made.store.images[0].nbytes * len(made.train_indices)
    for free, fits in ((8 * size, True), (2 * size, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        resident = made.resident_pictures()
        assert (resident is not None) is fits
        if fits:
            assert resident.device == CARD and resident.shape[0] == len(made.train_indices)


def test_bf16_autocast_and_channels_last(monkeypatch):
    """The forward pass on fake CUDA tensors."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, device.index))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setenv("FACEREC_SCAN", "triton")
    seen = {}
    with FakeTensorMode():
        with CARD:
            network = build_network(small(stem_depth=2))
        for name, module in network.named_modules():
            module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)}))
        raw = torch.empty(16, 16, 16, 3, dtype=torch.uint8, device=CARD)
        with compute.autocast("auto", CARD):
            embeddings = network(to_input(raw))
    assert seen["embed.stem.0.conv1"][0].is_contiguous(memory_format=torch.channels_last)
    for name in (
        "embed.stem.0.conv1",
        "embed.stem.1.conv2",
        "embed.patch",
        "blocks.0.mixer.in_proj",
    ):
        assert seen[name][1].dtype == torch.bfloat16
    assert seen["blocks.1"][1].device == CARD and embeddings.dtype == torch.float32


def test_copies_run_on_their_own_stream(monkeypatch):
    """Pinned, without waiting; what computes waits for the copy, and the copy for nothing."""
    cuda, tensor, calls = MagicMock(), MagicMock(), []

    @contextmanager
    def stream(of):
        calls.append(("begin", of))
        yield
        calls.append(("end", of))

    cuda.stream.side_effect = stream
    tensor.pin_memory.return_value.to.side_effect = lambda *_, **__: calls.append("copy") or copied
    copied = MagicMock()
    copied.record_stream.side_effect = lambda of: calls.append(("recorded", of))
    cuda.current_stream.return_value.wait_stream.side_effect = lambda of: calls.append(("wait", of))
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch, "from_numpy", lambda array: tensor)
    compute.copy_stream.cache_clear()
    arrived = compute.to_device(np.zeros(3), CARD)
    copies, computes = cuda.Stream.return_value, cuda.current_stream.return_value
    tensor.pin_memory.return_value.to.assert_called_once_with(CARD, non_blocking=True)
    copies.wait_stream.assert_not_called()
    assert arrived is copied
    assert calls == [
        ("begin", copies),
        "copy",
        ("end", copies),
        ("wait", copies),
        ("recorded", computes),
    ]
    compute.copy_stream.cache_clear()


def test_compiled_network_is_another_way_to_call_the_same_weights(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    made = make_trainer(small(compile=True))
    assert compiled == [made.network] and made.average.network is not made.network

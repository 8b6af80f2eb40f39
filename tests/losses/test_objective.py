"""Objectives: every pair of loss and miner trains, margins are what they say."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils import loss_and_miner_utils

from facerec.errors import InputError
from facerec.losses.margin_softmax import MarginSoftmax
from facerec.losses.objective import Objective, check_objective, spread
from facerec.losses.settings import ObjectiveSettings
from tests.helpers.losses import MINERS

LOSSES = ["triplet", "arcface", "cosface", "subcenter_arcface", "multi_similarity", "supcon"]
LABELS = torch.arange(12) // 3


def embeddings():
    raw = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    return F.normalize(raw, dim=1).requires_grad_()


@pytest.mark.parametrize(("loss", "miner"), itertools.product(LOSSES, MINERS))
def test_every_pair_gives_a_gradient(loss, miner):
    faces = embeddings()
    value, mined = Objective(ObjectiveSettings(loss=loss, miner=miner), 4, 8)(faces, LABELS)
    value.backward()
    assert torch.isfinite(faces.grad).all() and faces.grad.abs().sum() > 0 and mined > 0


def test_all_triplets_by_hand():
    """Two people on a circle: distances of unit vectors at 0 and 60 degrees (one), 180 degrees (the other)."""
    angles = torch.tensor([0.0, torch.pi / 3, torch.pi])
    points = torch.stack([angles.cos(), angles.sin()], 1)
    loss, mined = Objective(ObjectiveSettings(margin=1.5), 2, 2)(points, torch.tensor([0, 0, 1]))
    # positive distance 1; negatives 2 (from 0 degrees) and sqrt(3) (from 60): 1 - 2 + 1.5 and 1 - 1.732 + 1.5
    assert mined == 2
    assert loss.item() == pytest.approx((0.5 + 2.5 - 3**0.5) / 2, abs=1e-6)


UNEVEN = torch.tensor([0] * 6 + [1, 1, 2, 2, 2, 3])  # one person has but one picture


def their_miner(name, margin):
    match name:
        case "batch_hard":
            return miners.BatchHardMiner()
        case "multi_similarity":
            return miners.MultiSimilarityMiner()
        case _:
            return miners.TripletMarginMiner(margin, name)


@pytest.mark.parametrize("labels", [LABELS, UNEVEN])
@pytest.mark.parametrize("margin", [0.2, 0.9])
@pytest.mark.parametrize("miner", MINERS[:-1])
def test_triplets_are_those_of_pytorch_metric_learning(miner, margin, labels):
    ours, theirs = (embeddings().detach().requires_grad_() for _ in range(2))
    settings = ObjectiveSettings(miner=miner, margin=margin)
    loss, mined = Objective(settings, 4, 8)(F.normalize(ours, dim=1), labels)
    indices = their_miner(miner, margin)(theirs, labels)
    triplets = loss_and_miner_utils.convert_to_triplets(indices, labels)
    expected = losses.TripletMarginLoss(margin)(theirs, labels, triplets)
    assert mined == len(triplets[0]) > 0
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("labels", [LABELS, UNEVEN])
@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", ["multi_similarity", "supcon"])
def test_pair_losses_are_those_of_pytorch_metric_learning(name, miner, labels):
    ours, theirs = (embeddings().detach().requires_grad_() for _ in range(2))
    settings = ObjectiveSettings(loss=name, miner=miner, temperature=0.3)
    loss, mined = Objective(settings, 4, 8)(F.normalize(ours, dim=1), labels)
    their_loss = {
        "multi_similarity": losses.MultiSimilarityLoss(),
        "supcon": losses.SupConLoss(temperature=0.3),
    }[name]
    indices = None if miner in ("all", "none") else their_miner(miner, 0.2)(theirs, labels)
    pairs = loss_and_miner_utils.convert_to_pairs(indices, labels)
    assert mined == len(set(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))) > 0
    expected = their_loss(theirs, labels, pairs)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


THEIRS = {
    "arcface": losses.ArcFaceLoss,
    "cosface": losses.CosFaceLoss,
    "subcenter_arcface": losses.SubCenterArcFaceLoss,
}


@pytest.mark.parametrize("extreme", [False, True])  # angles of 0 and pi
@pytest.mark.parametrize("margin", [0.0, 0.35, 1.2])
@pytest.mark.parametrize("name", THEIRS)
def test_margin_losses_are_those_of_pytorch_metric_learning(name, margin, extreme):
    faces = embeddings().detach().double()
    torch.manual_seed(0)  # of the class weights
    ours = MarginSoftmax(name, margin, 20, 4, 8).double()
    of_theirs = margin if name == "cosface" else math.degrees(margin)
    theirs = THEIRS[name](num_classes=4, embedding_size=8, margin=of_theirs, scale=20).double()
    with torch.no_grad():
        if extreme:  # to the first person the farthest, to the fifth face's the nearest
            centres = ours.W.view(8, 4, -1)
            centres[:, 0], centres[:, 1] = -faces[0, :, None], faces[4, :, None]
        theirs.W.copy_(ours.W)
    values, gradients = [], []
    for loss in (ours, theirs):
        leaf = faces.clone().requires_grad_()
        value = loss(leaf, LABELS)
        values.append(value)
        gradients.append(torch.autograd.grad(value, [leaf, loss.W]))
    # Theirs keeps all angles a little off 0 and pi.
    near = {"atol": 1e-4, "rtol": 1e-4} if extreme else {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(*values, **near)
    for got, expected in zip(*gradients, strict=True):
        finite = expected.isfinite()
        assert got.isfinite().all() and (extreme or finite.all())
        torch.testing.assert_close(got[finite], expected[finite], **near)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", ["triplet", "supcon", "multi_similarity"])
def test_a_loss_of_nothing_is_zero_and_of_a_nan_is_none(name, miner):
    settings = ObjectiveSettings(loss=name, miner=miner)
    if name != "multi_similarity":  # which pushes strangers apart without anybody's mate
        alone, faces = torch.arange(12), embeddings()
        loss, mined = Objective(settings, 12, 8)(faces, alone)
        loss.backward()
        assert loss == 0 and mined == 0 and not faces.grad.any()
    broken = embeddings().detach()
    broken[5] = float("nan")
    assert Objective(settings, 4, 8)(broken, LABELS)[0].isnan()


def test_a_margin_that_a_loss_does_not_have_is_refused():
    with pytest.raises(InputError, match="no margin"):
        check_objective(ObjectiveSettings(loss="multi_similarity", margin=0.5))


def test_margin_rises_over_the_warm_up():
    objective = Objective(
        ObjectiveSettings(loss="cosface", margin=0.4, margin_warmup_epochs=2), 4, 8
    )
    for epoch, margin in ((0, 0.0), (1, 0.2), (2, 0.4), (9, 0.4)):
        objective.at_epoch(epoch)
        assert objective.loss.margin == pytest.approx(margin)


def test_distillation_by_hand():
    """Cosines 1, 0 and -1 to the teacher's rows 2, 0 and 2."""
    targets = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1.0]])
    objective = Objective(ObjectiveSettings(loss="distill", teacher="dlib"), 2, 2, targets)
    points = torch.tensor([[0.0, 1], [0, 1], [0, -1]])
    loss, count = objective(points, torch.tensor([2, 0, 2]))
    assert objective.by_picture and count == 3 and loss.item() == pytest.approx((0 + 1 + 2) / 3)
    assert not objective.state_dict()  # the rows stay out of checkpoints


def test_spread():
    assert spread(torch.ones(5, 3)) == 0
    assert spread(torch.tensor([[1.0, 0], [-1, 0]])) == 1

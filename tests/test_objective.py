"""Objectives: every pair of loss and miner trains, margins are what they say."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from facerec.objective import Objective, ObjectiveSettings, check_objective, spread
from facerec.settings import InputError

LOSSES = ["triplet", "arcface", "cosface", "subcenter_arcface", "multi_similarity", "supcon"]
MINERS = ["all", "semihard", "hard", "batch_hard", "multi_similarity", "none"]
LABELS = torch.arange(12) // 3


def embeddings():
    raw = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    return F.normalize(raw, dim=1).requires_grad_()


@pytest.mark.parametrize(("loss", "miner"), itertools.product(LOSSES, MINERS))
def test_every_pair_gives_a_gradient_or_a_sentence(loss, miner):
    settings = ObjectiveSettings(loss=loss, miner=miner)
    try:
        check_objective(settings)
    except InputError as error:
        assert "set miner to" in str(error)
        return
    faces = embeddings()
    value, mined = Objective(settings, 4, 8)(faces, LABELS)
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

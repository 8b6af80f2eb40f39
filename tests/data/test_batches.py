"""Batches: who meets whom, the same on every machine, and augmentation that stays a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facerec.data.augmentation import augment, to_input
from facerec.data.sampling import check_batches, confusable_batches, epoch_batches
from facerec.data.settings import BatchSettings
from facerec.errors import InputError

LABELS = np.repeat(np.arange(20), np.arange(1, 21))  # person p has p + 1 pictures: 210 in all


def settings(**changes):
    return BatchSettings(**{"batch_size": 16, "images_per_identity": 4, **changes})


def test_balanced_batches():
    batches = epoch_batches(LABELS, settings(), seed=3, epoch=1)
    assert batches.shape == (210 // 16, 16)
    for batch in batches:
        people, counts = np.unique(LABELS[batch], return_counts=True)
        assert len(people) == 4 and (counts == 4).all()
        for person in people[people >= 3]:  # four pictures or more: none twice
            assert len(np.unique(batch[LABELS[batch] == person])) == 4
    appearances = np.bincount(LABELS[batches].ravel(), minlength=20) // 4
    assert appearances.max() - appearances.min() <= 1


def test_plain_batches_take_every_picture_once():
    batches = epoch_batches(LABELS, settings(images_per_identity=1, batch_size=21), seed=0, epoch=0)
    assert sorted(batches.ravel()) == list(range(210))


def test_batches_are_a_function_of_seed_and_epoch():
    one, again = (epoch_batches(LABELS, settings(), 1, 2) for _ in range(2))
    assert (one == again).all()
    assert (one != epoch_batches(LABELS, settings(), 1, 3)).any()
    assert (one != epoch_batches(LABELS, settings(), 2, 2)).any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 256}, "larger than the 210 training pictures"),
        ({"batch_size": 18}, "no multiple"),
        ({"batch_size": 84}, "there are 20 to train on"),
        ({"batch_size": 8, "images_per_identity": 8}, "holds one person"),
    ],
)
def test_batches_that_cannot_be(changes, said):
    with pytest.raises(InputError, match=said):
        check_batches(LABELS, settings(**changes))


def test_augmentation_off_is_the_identity():
    pictures = to_input(torch.randint(0, 256, (5, 12, 12, 3), dtype=torch.uint8))
    off = settings(flip=0, rotate=0, zoom=0, shift=0, color=0, tint=0, gray=0, erase=0)
    assert torch.equal(augment(pictures, off, torch.Generator().manual_seed(0)), pictures)


def test_flip_alone_mirrors():
    pictures = to_input(torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8))
    flipped = settings(flip=1, rotate=0, zoom=0, shift=0, color=0, tint=0, gray=0, erase=0)
    assert torch.equal(
        augment(pictures, flipped, torch.Generator().manual_seed(0)), pictures.flip(3)
    )


def test_warp_keeps_a_centred_disc_in_place():
    """A disc around the centre looks the same after rotation, whatever the mirror: the resampling has no drift."""
    rows, columns = torch.meshgrid(torch.arange(33), torch.arange(33), indexing="ij")
    disc = (((rows - 16) ** 2 + (columns - 16) ** 2) < 64).float() * 2 - 1
    turned = settings(rotate=180, zoom=0, shift=0, color=0, tint=0, gray=0, erase=0)
    out = augment(disc.expand(32, 3, 33, 33).contiguous(), turned, torch.Generator().manual_seed(0))
    assert (out - disc).abs().mean() < 0.04  # a shift by one pixel would be 0.06


def test_strong_augmentation_stays_in_range_and_is_reproducible():
    pictures = to_input(torch.randint(0, 256, (16, 16, 16, 3), dtype=torch.uint8))
    strong = settings(rotate=40, zoom=0.3, shift=0.2, color=0.9, gray=0.5, erase=1)
    one, again = (augment(pictures, strong, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, again) and one.abs().max() <= 1
    gray = (one - one.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-5
    assert 0 < gray.sum() < 16


def test_confusable_people_meet():
    """Person p is confused with p ^ 1: in every batch of two people, the two are such a pair."""
    labels = np.repeat(np.arange(8), 5)
    nearest = (np.arange(8) ^ 1)[:, None]
    pairs = settings(batch_size=4, images_per_identity=2, confusable=True)
    batches = confusable_batches(labels, nearest, pairs, seed=0, epoch=0)
    assert batches.shape == (10, 4)
    for batch in batches:
        people = np.unique(labels[batch])
        assert len(people) == 2 and people[0] ^ 1 == people[1]

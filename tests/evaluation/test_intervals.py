"""Intervals: against tables, against each other, and how often they hold the truth."""

import numpy as np
import pytest

from facerec.evaluation.confidence import (
    Figure,
    bootstrap,
    curve_figures,
    from_draws,
    identity_draws,
    pair_draws,
    paired_difference,
    wilson,
)
from facerec.evaluation.pair_counts import identity_pairs
from facerec.evaluation.verification import verification
from tests.helpers.pairs import flat_pairs, people


def test_wilson_by_hand():
    # 8 of 10, z² = 3.8415: middle (0.8 + 0.19207) / 1.38415 = 0.71674,
    # half 1.95996 / 1.38415 · √(0.016 + 0.0096037) = 0.22658
    found = wilson(8, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-4)
    # 0 of 10: from 0 to z² / (10 + z²)
    assert (wilson(0, 10).low, wilson(0, 10).high) == pytest.approx((0, 3.8415 / 13.8415), abs=1e-4)
    assert wilson(10, 10).high == 1 and wilson(10, 10).low < 1
    with pytest.raises(ValueError):
        wilson(0, 0)


def test_text():
    assert str(Figure(0.43125, 0.4, 0.46)) == "0.4313 [0.4000, 0.4600]"
    assert (
        str(Figure.missing("not measurable: 9 impostor pairs"))
        == "not measurable: 9 impostor pairs"
    )
    assert Figure(0.1, 0.05, 0.2).excludes_zero and not Figure(0.1, -0.05, 0.2).excludes_zero


def test_bootstrap_draws_people_whole():
    random = np.random.default_rng(0)
    person = random.normal(size=50)
    values, identity = np.repeat(person, 20), np.repeat(np.arange(50), 20)
    found = bootstrap(values, identity)
    # All pictures of a person agree, so there are 50 values, not 1,000: the error is s / √50.
    error = person.std() / np.sqrt(50)
    assert found.value == pytest.approx(person.mean())
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(error, rel=0.1)
    assert found == bootstrap(values, identity) != bootstrap(values, identity, seed=1)


def test_bootstrap_by_weight():
    # 1 with weight 3 and 0 with weight 1: the mean is 3/4; a draw is 0, 3/4 or 1.
    found = bootstrap(np.array([1.0, 0.0]), np.array(["a", "b"]), weights=np.array([3, 1]))
    assert (found.value, found.low, found.high) == (0.75, 0, 1)
    with pytest.raises(ValueError, match="same length"):
        bootstrap(np.zeros(2), np.zeros(3))


def test_intervals_hold_the_truth():
    random = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        person = random.normal(size=40)
        values = np.repeat(person, 3) + random.normal(size=120)
        found = bootstrap(values, np.repeat(np.arange(40), 3), seed=seed, resamples=500)
        held += found.low <= 0 <= found.high
    assert 0.9 <= held / 200 <= 0.98


def test_paired_difference_sees_what_two_intervals_miss():
    random = np.random.default_rng(0)
    hard = random.random(400)
    first, second = (
        hard < 0.6,
        hard < 0.55,
    )  # the second fails where the first does, and on 5 % more
    identity = np.arange(400)
    found = paired_difference(first, second, identity)
    assert found.value == pytest.approx(first.mean() - second.mean()) and found.excludes_zero
    assert bootstrap(second, identity).high > bootstrap(first, identity).low
    with pytest.raises(ValueError, match="same probes"):
        paired_difference(first, second[1:], identity)


def test_figures_of_many_curves():
    random = np.random.default_rng(0)
    same = random.random(500) < 0.5
    similarity = random.normal(size=500).round(1) + same
    found = verification(similarity, same)
    far, tar = (rate[None, 1:] for rate in found.roc)
    figures = curve_figures(far, tar)
    assert figures["auc"] == pytest.approx([found.auc])
    assert figures["eer"] == pytest.approx([found.eer])


def test_interval_of_the_area_by_resampled_pairs():
    random = np.random.default_rng(0)
    same = np.arange(600) < 300
    similarity = random.normal(size=600) + same
    draws = pair_draws(similarity, same, resamples=1000)
    auc = verification(similarity, same).auc
    # Hanley and McNeil (1982): Q1 = A / (2 - A), Q2 = 2A² / (1 + A)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + 299 * (q1 - auc**2) + 299 * (q2 - auc**2)
    assert draws["auc"].mean() == pytest.approx(auc, abs=0.003)
    assert draws["auc"].std() == pytest.approx(np.sqrt(variance) / 300, rel=0.15)
    assert len(draws["eer"]) == 1000


def test_pairs_are_drawn_alike_for_two_models():
    random = np.random.default_rng(0)
    same = np.arange(400) < 200
    similarity = random.normal(size=400) + same
    first = pair_draws(similarity, same, resamples=50)
    second = pair_draws(np.tanh(similarity), same, resamples=50)  # the same order
    assert np.array_equal(first["auc"], second["auc"])


def test_interval_over_identities():
    embeddings, labels = people(60, 3)
    plain = verification(*flat_pairs(embeddings, labels))
    accepted = 1024 * 3 // 8  # similarity 0.25
    draws = identity_draws(*identity_pairs(embeddings, labels), accepted=accepted, resamples=300)
    true_accepts, false_accepts = plain.counts(0.25)
    accuracy = (true_accepts / plain.genuine + 1 - false_accepts / plain.impostor) / 2
    for name, value in (("auc", plain.auc), ("eer", plain.eer), ("accuracy", accuracy)):
        assert draws[name].mean() == pytest.approx(value, abs=0.01)
        figure = from_draws(value, draws[name])
        assert figure.low <= value <= figure.high
        assert 0 < figure.high - figure.low < 0.1

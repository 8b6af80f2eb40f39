"""Verification figures against arithmetic by hand and against scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from facerec.errors import InputError
from facerec.evaluation.calibrate import calibration, platt
from facerec.evaluation.pair_counts import (
    all_pairs,
    identity_pairs,
    mates_accepted,
    similarity_bins,
)
from facerec.evaluation.retrieval import unit
from facerec.evaluation.verification import ten_fold, verification
from facerec.inference.calibration import Calibration, judge
from tests.helpers.pairs import flat_pairs, people


def test_by_hand():
    # genuine 0.9 0.8 0.4, impostor 0.7 0.3 0.2 0.1; by threshold, genuine and impostor pairs accepted:
    #   0.9: 1 0   0.8: 2 0   0.7: 2 1   0.4: 3 1   0.3: 3 2   0.2: 3 3   0.1: 3 4
    similarity = np.array([0.9, 0.8, 0.4, 0.7, 0.3, 0.2, 0.1])
    found = verification(similarity, np.array([1, 1, 1, 0, 0, 0, 0], bool))
    assert found.thresholds.tolist() == [0.9, 0.8, 0.7, 0.4, 0.3, 0.2, 0.1]
    assert found.true_accepts.tolist() == [1, 2, 2, 3, 3, 3, 3]
    assert found.false_accepts.tolist() == [0, 0, 1, 1, 2, 3, 4]
    # Of 12 genuine-impostor combinations only 0.4 against 0.7 is the wrong way round.
    assert found.auc == pytest.approx(11 / 12)
    # The rates meet on the step up from (1/4, 2/3) to (1/4, 1), where FRR passes 1/4.
    assert found.eer == pytest.approx(1 / 4)
    # Right: at 0.8, 2 + 4 of 7; at 0.4, 3 + 3 of 7; the higher threshold is taken.
    assert found.best_threshold == 0.8
    assert found.best_accuracy == pytest.approx(6 / 7)
    # Balanced: at 0.8 (2/3 + 1) / 2 = 5/6; at 0.4 (1 + 3/4) / 2 = 7/8.
    assert (found.balanced_threshold, found.balanced_accuracy) == (0.4, 7 / 8)
    assert (
        found.counts(0.75) == (2, 0) and found.counts(0.7) == (2, 1) and found.counts(1) == (0, 0)
    )
    assert found.accuracy(0.35) == pytest.approx(6 / 7)


def test_eer_between_two_points():
    # Points (0, 0), (0, 1/2), (1, 1): FAR = x, TAR = 1/2 + x/2 on the last line, FRR = 1/2 - x/2 = x at 1/3.
    found = verification(np.array([0.9, 0.5, 0.5]), np.array([True, True, False]))
    assert found.eer == pytest.approx(1 / 3)
    assert found.auc == pytest.approx(3 / 4)  # one win, one tie


def test_few_impostor_pairs_give_no_number():
    similarity = np.concatenate([np.linspace(0.5, 1, 20), np.linspace(0, 0.6, 1000)])
    found = verification(similarity, np.arange(1020) < 20)
    assert found.tar_at_far(1e-2).measurable  # 10 expected false accepts
    rate = found.tar_at_far(1e-3)
    assert not rate.measurable and np.isnan(rate.tar)
    assert str(rate) == "not measurable: 1,000 impostor pairs"
    assert not found.tar_at_far(9.9e-3).measurable


def test_thresholds_are_conservative():
    # 100 impostor pairs, the highest 11 of them equal: 10 may pass at FAR 0.1, so none of these does.
    similarity = np.concatenate([[0.9, 0.7], np.full(11, 0.8), np.linspace(0, 0.5, 89)])
    rate = verification(similarity, np.arange(102) < 2).tar_at_far(0.1)
    assert (rate.threshold, rate.true_accepts, rate.false_accepts, rate.tar) == (0.9, 1, 0, 0.5)
    # Nobody passes where the highest similarity of all is an impostor's too often.
    similarity = np.concatenate([[0.9], np.full(11, 0.9), np.linspace(0, 0.5, 89)])
    rate = verification(similarity, np.arange(101) < 1).tar_at_far(0.1)
    assert rate.threshold > 0.9 and rate.tar == 0


@pytest.mark.parametrize("seed", range(6))
def test_equals_scikit_learn(seed):
    random = np.random.default_rng(seed)
    same = random.random(3000) < 0.3
    similarity = np.tanh(random.normal(size=3000) + same)
    if seed % 2:
        similarity = similarity.round(1)  # many ties
    found = verification(similarity, same)
    far, tar, thresholds = roc_curve(same, similarity, drop_intermediate=False)
    assert np.allclose(found.roc, (far, tar))
    assert np.array_equal(found.thresholds, thresholds[1:])
    assert found.auc == pytest.approx(roc_auc_score(same, similarity), abs=1e-12)
    for limit in (0.1, 0.01, 0.3):
        assert found.tar_at_far(limit).tar == pytest.approx(tar[far <= limit].max())


def test_pairs_are_checked():
    with pytest.raises(ValueError, match="pairs of one person and pairs of two"):
        verification(np.zeros(3), np.ones(3, bool))
    with pytest.raises(ValueError, match="must both be"):
        verification(np.zeros(3), np.ones(4, bool))
    with pytest.raises(ValueError, match="NaN"):
        verification(np.array([0, np.nan]), np.array([True, False]))


def test_ten_folds_by_hand():
    # Fold 0: genuine 0.9, impostor 0.1; fold 1: genuine 0.6, impostor 0.5; fold 2: genuine 0.3, impostor 0.2.
    similarity = np.array([0.9, 0.1, 0.6, 0.5, 0.3, 0.2])
    same = np.array([True, False] * 3)
    found = ten_fold(similarity, same, np.array([0, 0, 1, 1, 2, 2]))
    # Without 0: at 0.6 three of 0.6+ 0.5- 0.3+ 0.2- are right, at 0.3 three too; 0.6 is taken → 1, 1.
    # Without 1: at 0.3 all of 0.9+ 0.1- 0.3+ 0.2- are right → 0.6 accepted, 0.5 accepted: 1/2.
    # Without 2: at 0.6 all of 0.9+ 0.1- 0.6+ 0.5- are right → 0.3 refused, 0.2 refused: 1/2.
    assert found.threshold.tolist() == [0.6, 0.3, 0.6]
    assert found.accuracy.tolist() == [1, 0.5, 0.5]
    # Deviations 1/3, -1/6, -1/6: variance (1/9 + 2/36) / 2 = 1/12; over 3, the root is 1/6.
    assert found.mean == pytest.approx(2 / 3)
    assert found.standard_error == pytest.approx(1 / 6)
    assert str(found) == "0.6667 ± 0.1667"
    with pytest.raises(ValueError, match="two or more folds"):
        ten_fold(similarity, same, np.zeros(6))


@pytest.mark.parametrize("pictures", [2, 7, 60])
def test_all_pairs_counts_every_pair_once(pictures):
    embeddings, labels = people(900 // pictures, pictures)
    shuffled = np.random.default_rng(1).permutation(len(labels))
    embeddings, labels = embeddings[shuffled], labels[shuffled]
    found = all_pairs(embeddings, labels)
    similarity, same = flat_pairs(embeddings, labels)
    plain = verification(similarity, same)
    assert (found.genuine, found.impostor) == (plain.genuine, plain.impostor)
    assert found.auc == pytest.approx(plain.auc, abs=1e-5)
    assert found.balanced_accuracy == pytest.approx(plain.balanced_accuracy, abs=1e-3)
    for threshold in found.thresholds[:: len(found.thresholds) // 50]:
        true_accepts, false_accepts = found.counts(threshold)
        # One pair in a chunk of another shape may be rounded across the edge.
        assert true_accepts == pytest.approx((similarity[same] >= threshold).sum(), abs=1)
        assert false_accepts == pytest.approx((similarity[~same] >= threshold).sum(), abs=1)


def test_bins_have_exact_edges():
    edges = np.arange(-(2**15), 2**15 + 1) / 2**15
    below = np.nextafter(edges.astype(np.float32), np.float32(-2))
    found = similarity_bins(unit(np.ones((1, 1))).new_tensor(edges))
    assert found.tolist() == [*range(2**16), 2**16 - 1]
    found = similarity_bins(unit(np.ones((1, 1))).new_tensor(below))
    assert found.tolist() == [0, *range(2**16)]


def test_pairs_of_each_identity():
    embeddings, labels = people(30, 4)
    genuine, impostor = identity_pairs(embeddings, labels)
    assert (genuine.sum(1) == 4 * 3).all() and (impostor.sum(1) == 4 * 116).all()
    similarity = (embeddings[4:8] @ embeddings.T).numpy()  # identity 1
    high = (similarity[:, labels != 1] >= 0.25).sum()
    assert impostor[1, : 1024 * 3 // 8].sum() == high  # 0.25 is 3/8 of the way down from 1 to -1


def test_many_identities_are_counted_in_groups(monkeypatch):
    embeddings, labels = people(30, 4)
    alone = identity_pairs(embeddings, labels)
    monkeypatch.setattr("facerec.evaluation.pair_counts.MAX_GROUPS", 10)
    for whole, grouped in zip(alone, identity_pairs(embeddings, labels), strict=True):
        assert np.array_equal(whole.reshape(10, 3, -1).sum(1), grouped)


def test_true_accepts_of_each_probe():
    embeddings, labels = people(30, 4)
    labels[-1] = 99  # alone: no probe
    found = mates_accepted(embeddings, labels, np.array([0.3, 0.6]))
    assert found.probe.tolist() == list(range(119))
    assert found.mates.tolist() == [3] * 116 + [2] * 3
    own = (embeddings[5] @ embeddings[[4, 6, 7]].T).numpy()
    assert found.accepted[5].tolist() == [np.mean(own >= 0.3), np.mean(own >= 0.6)]
    similarity, same = flat_pairs(embeddings, labels)
    total = np.average(found.accepted, axis=0, weights=found.mates)
    assert total == pytest.approx([np.mean(similarity[same] >= t) for t in (0.3, 0.6)])


def test_calibration_file():
    embeddings, labels = people(80, 4)
    made = calibration(embeddings, labels)
    assert Calibration.model_validate(json.loads(json.dumps(made.model_dump()))) == made
    assert (made.genuine, made.impostor) == (80 * 6, 320 * 319 // 2 - 480)
    assert [entry.measurable for entry in made.thresholds] == [True, True, True, False]
    similarity, same = flat_pairs(embeddings, labels)
    for far in (1e-1, 1e-2, 1e-3):
        verdict = judge(made, 0.5, far)
        assert verdict.impostor_pairs == made.impostor
        assert np.mean(similarity[~same] >= verdict.threshold) <= far
    with pytest.raises(InputError, match=r"too few pairs .* 0\.1, 0\.01, 0\.001"):
        judge(made, 0.5, 1e-4)
    best = made.balanced
    right = (
        np.mean(similarity[same] >= best.threshold),
        np.mean(similarity[~same] < best.threshold),
    )
    assert np.mean(right) == pytest.approx(best.accuracy, abs=1e-4)


def test_probability_is_calibrated():
    random = np.random.default_rng(0)
    # Logistic by construction: two normals of one width, 0.5 ± 0.2 and 0.1 ± 0.2, have log odds
    # (0.4 s - (0.25 - 0.01) / 2) / 0.04 = 10 s - 3, at equal priors, however many pairs of each there are.
    similarity = np.concatenate([random.normal(0.5, 0.2, 20_000), random.normal(0.1, 0.2, 80_000)])
    slope, intercept = platt(verification(similarity, np.arange(100_000) < 20_000))
    assert slope == pytest.approx(10, rel=0.03) and intercept == pytest.approx(-3, rel=0.03)


def test_probability_stays_finite_without_overlap():
    pairs = verification(np.array([0.9, 0.8, 0.1, 0.0]), np.array([1, 1, 0, 0], bool))
    assert np.isfinite(platt(pairs)).all()

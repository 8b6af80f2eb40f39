"""Search in a gallery, against arithmetic by hand."""

import numpy as np
import pytest

from facerec.evaluation.identification import identification


def on_circle(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def test_ranks_by_hand():
    # Gallery: ann at 0° and 90°, bob at 40°, cid at 60°. A person's best picture counts.
    gallery, names = on_circle(0, 40, 60, 90), np.array(["ann", "bob", "cid", "ann"])
    # 80°, ann: ann 10°, cid 20°, bob 40° → rank 1
    # 5°, bob: ann 5°, bob 35°, cid 55° → rank 2
    # 6°, cid: ann, bob, cid → rank 3
    # 41°, dan: not in the gallery
    found = identification(
        on_circle(80, 5, 6, 41),
        np.array(["ann", "bob", "cid", "dan"]),
        gallery,
        names,
        ranks=(1, 2),
    )
    assert found.mated.tolist() == [0, 1, 2]
    assert found.rank.tolist() == [1, 2, 3]
    assert found.nearest.tolist() == [3, 0, 0, 1]
    assert found.figures() == {
        "rate_at_rank_1": pytest.approx(1 / 3),
        "rate_at_rank_2": pytest.approx(2 / 3),
    }
    assert found.score == pytest.approx(np.cos(np.deg2rad([10, 35, 54])))
    assert not found.removed and found.unmated == pytest.approx([np.cos(np.deg2rad(1))])
    rate = found.tpir_at_fpir(0.1)
    assert str(rate) == "not measurable: 1 unmated searches"


def test_open_set_by_hand():
    # 20 strangers at 31° … 50° from ann, the only person near; ann's probes at 5° and 45.5°, bob's at 2° from him.
    gallery, names = on_circle(0, 180), np.array(["ann", "bob"])
    probes = on_circle(5, 45.5, 178, *range(31, 51))
    labels = np.array(["ann", "ann", "bob"] + ["?"] * 20)
    found = identification(probes, labels, gallery, names)
    # FPIR 1/2 lets in the 10 strangers at 31° … 40°: of ours 5° and 2°. FPIR 0.1 would expect only 2 of them.
    rate = found.tpir_at_fpir(0.5)
    assert (rate.tar, rate.true_accepts, rate.false_accepts) == (pytest.approx(2 / 3), 2, 10)
    assert rate.threshold == pytest.approx(np.cos(np.deg2rad(40)))
    assert not found.tpir_at_fpir(0.1).measurable


def test_own_person_removed_where_nobody_is_a_stranger():
    gallery, names = on_circle(0, 10, 100), np.array([1, 1, 2])
    found = identification(on_circle(2, 97), np.array([1, 2]), gallery, names)
    # Without themselves: 2° finds person 2 at 98°, 97° finds person 1 at 87°.
    assert found.removed
    assert found.unmated == pytest.approx(np.cos(np.deg2rad([98, 87])))


def test_ties_count_against_the_probe():
    found = identification(np.eye(2)[:1], np.array([1]), np.eye(2)[[0, 0]], np.array([0, 1]))
    assert found.rank.tolist() == [2]


def test_chunks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    data = random.normal(size=(90, 8)), random.integers(0, 30, 90)
    known = random.normal(size=(70, 8)), random.integers(0, 25, 70)
    whole = identification(*data, *known)
    monkeypatch.setattr("facerec.evaluation.identification.CHUNK_BYTES", 4 * 70 * 7)
    parts = identification(*data, *known)
    assert np.array_equal(whole.rank, parts.rank) and np.array_equal(whole.nearest, parts.nearest)


def test_what_cannot_be_searched_is_an_error():
    with pytest.raises(ValueError, match="two people or more"):
        identification(np.eye(2), np.array([0, 1]), np.eye(2), np.array([5, 6]))
    with pytest.raises(ValueError, match="same length"):
        identification(np.eye(2), np.array([0]), np.eye(2), np.array([5, 6]))

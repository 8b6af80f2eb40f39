"""Retrieval figures against arithmetic by hand and against pytorch-metric-learning."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from facerec.evaluation import retrieval as metrics
from facerec.evaluation.retrieval import retrieval, top, unit, validation_figures

NAMES = {
    "recall_at_1": "precision_at_1",
    "r_precision": "r_precision",
    "map_at_r": "mean_average_precision_at_r",
}


def on_circle(*degrees: float) -> np.ndarray:
    """(N, 2) unit vectors at these angles: the nearer the angles, the more similar."""
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def stable_neighbours(query, k, reference, ref_includes_query=False):
    """All neighbours sorted, ties by the lower row, the query itself left out."""
    similarity = query @ reference.T
    if ref_includes_query:
        similarity.fill_diagonal_(-torch.inf)
    values, columns = similarity.sort(dim=1, descending=True, stable=True)
    return values[:, :k], columns[:, :k]


def oracle(embeddings, labels, gallery=None) -> dict[str, float]:
    calculator = AccuracyCalculator(
        include=tuple(NAMES.values()),
        k="max_bin_count",
        knn_func=stable_neighbours,
        device=torch.device("cpu"),
    )
    reference = () if gallery is None else (unit(gallery[0]), torch.from_numpy(gallery[1]))
    found = calculator.get_accuracy(unit(embeddings), torch.from_numpy(labels), *reference)
    return {ours: found[theirs] for ours, theirs in NAMES.items()}


def test_by_hand():
    # Person 0 at 0°, 10°, 52°; person 1 at 22°, 35°; person 2, alone, at 5°: a distractor.
    found = retrieval(on_circle(0, 10, 52, 22, 35, 5), np.array([0, 0, 0, 1, 1, 2]))
    # As many neighbours as the person has mates, R, nearest first:
    #  0°, R 2: 5° wrong, 10° right → first wrong; 1/2 right; average precision (1/2) / 2
    # 10°, R 2: 5° wrong, 0° right → the same
    # 52°, R 2: 35° wrong, 22° wrong → 0
    # 22°, R 1: 10° wrong → 0
    # 35°, R 1: 22° right → 1
    assert found.probe.tolist() == [0, 1, 2, 3, 4]
    assert found.mates.tolist() == [2, 2, 2, 1, 1]
    assert found.nearest.tolist() == [5, 5, 4, 1, 3]
    assert found.recall_at_1.tolist() == [0, 0, 0, 0, 1]
    assert found.r_precision.tolist() == [0.5, 0.5, 0, 0, 1]
    assert found.average_precision_at_r.tolist() == [0.25, 0.25, 0, 0, 1]
    assert found.figures() == {"recall_at_1": 0.2, "r_precision": 0.4, "map_at_r": 0.3}


def test_average_precision_by_hand():
    # Person 0 at 0°, 1°, 4°, 30°; person 1 at 2°, 50°. Probe 0°, R 3: 1° right, 2° wrong, 4° right.
    # Recall@1 1; R-Precision 2/3; AP (1/1 + 2/3) / 3 = 5/9.
    # Probe 50°, R 1: 30° wrong. Probe 2°, R 1: 1° wrong.
    # Probe 30°, R 3: 50° wrong at 20°, 4° right at 26°, 2° wrong at 28° → 0; 1/3; (1/2) / 3 = 1/6.
    # Probe 1°, R 3: 0° and 2° tie; probe 4°, R 3: 2° wrong, 1° right, 0° right → 0; 2/3; (1/2 + 2/3) / 3.
    found = retrieval(on_circle(0, 1, 4, 30, 2, 50), np.array(list("aaaabb")))
    rows = [0, 2, 3, 4, 5]
    assert found.recall_at_1[rows].tolist() == [1, 0, 0, 0, 0]
    assert found.r_precision[rows] == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0, 0])
    assert found.average_precision_at_r[rows] == pytest.approx([5 / 9, 7 / 18, 1 / 6, 0, 0])
    assert found.identity.tolist() == list("aaaabb")
    assert found.figures()["map_at_r"] == pytest.approx(found.average_precision_at_r.mean())


def test_ties_go_to_the_lower_row():
    embeddings = np.eye(2, dtype=np.float32)[[0, 0, 0, 0, 1]]
    found = retrieval(embeddings, np.array([0, 1, 1, 0, 2]))
    # All of the first four are equal: probe 0 sees 1 first, the others see 0 first.
    assert found.nearest.tolist() == [1, 0, 0, 0]
    assert found.recall_at_1.tolist() == [0, 0, 0, 1]


def test_collapsed_embeddings_are_deterministic():
    labels = np.arange(700) % 70
    found = retrieval(np.ones((700, 8), np.float32), labels, chunk=64)
    again = retrieval(np.ones((700, 8), np.float32), labels, chunk=501)
    assert found.figures() == again.figures()
    assert (found.nearest == np.where(found.probe == 0, 1, 0)).all()


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_oracle(seed):
    random = np.random.default_rng(seed)
    count = int(random.integers(20, 900))
    people = int(random.integers(2, count))
    labels = random.integers(0, people, count)
    if seed % 3 == 0:  # one frequent person, many alone
        labels = np.where(random.random(count) < 0.4, 0, np.arange(count) + 1)
    embeddings = random.normal(size=(count, 24)) + random.normal(size=(count + 1, 24))[labels] / 2
    found = retrieval(embeddings.astype(np.float32), labels, chunk=int(random.integers(1, 300)))
    assert found.figures() == pytest.approx(oracle(embeddings, labels), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_oracle_with_ties(seed):
    random = np.random.default_rng(seed)
    # Halves only: products and norms are exact, so equal similarities are equal in every order of adding.
    embeddings = random.choice([-0.5, 0.5], size=(600, 4)).astype(np.float32)
    labels = random.integers(0, 60, 600) if seed % 2 else np.minimum(random.zipf(1.6, 600), 300)
    assert retrieval(embeddings, labels).figures() == pytest.approx(
        oracle(embeddings, labels), abs=1e-6
    )


def test_separate_gallery_equals_the_oracle():
    random = np.random.default_rng(0)
    probes, gallery = random.normal(size=(300, 16)), random.normal(size=(500, 16))
    labels, known = random.integers(0, 60, 300), random.integers(20, 80, 500)
    found = retrieval(probes, labels, gallery=(gallery, known))
    assert set(found.identity) == set(labels) & set(known)
    assert found.figures() == pytest.approx(oracle(probes, labels, (gallery, known)), abs=1e-6)


def test_a_frequent_person_does_not_take_more_memory(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_BYTES", 2**20)
    labels = np.where(np.arange(3000) < 1500, 0, np.arange(3000))
    parts = metrics._parts(np.full(1500, 1499), 3072, 1024)
    assert max(part.stop - part.start for part in parts) * 3072 * 16 <= 2**20
    embeddings = np.random.default_rng(0).normal(size=(3000, 8))
    assert retrieval(embeddings, labels).figures() == pytest.approx(
        oracle(embeddings, labels), abs=1e-6
    )


@pytest.mark.parametrize("width", [1, 2, 7, 64, 300, 1024])
def test_top_is_a_stable_sort(width):
    random = np.random.default_rng(width)
    similarity = torch.from_numpy(random.integers(-9, 9, (40, 1024)).astype(np.float32)) / 8
    similarity[0] = -torch.inf
    similarity[1, ::2] = -0.0
    expected = similarity.sort(dim=1, descending=True, stable=True).indices[:, :width]
    assert torch.equal(top(similarity, width), expected)


def test_what_cannot_be_measured_is_an_error():
    with pytest.raises(ValueError, match="nothing can be retrieved"):
        retrieval(np.eye(3), np.arange(3))
    with pytest.raises(ValueError, match="NaN"):
        retrieval(np.full((2, 2), np.nan), np.zeros(2))
    with pytest.raises(ValueError, match="same length"):
        retrieval(np.eye(3), np.zeros(2))


def test_validation_figures():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 5)
    embeddings = random.normal(size=(40, 16))[labels] + random.normal(size=(200, 16)) / 2
    figures = validation_figures(torch.from_numpy(embeddings).float(), labels)
    assert list(figures) == [
        "recall_at_1",
        "r_precision",
        "map_at_r",
        "verification_accuracy",
        "tar_at_far_1e-3",
    ]
    assert all(0.5 < value <= 1 for value in figures.values())
    # 20 pictures of 4 people: 190 - 4 * 10 = 150 impostor pairs, 0.15 expected false accepts
    assert "tar_at_far_1e-3" not in validation_figures(embeddings[:20], labels[:20])

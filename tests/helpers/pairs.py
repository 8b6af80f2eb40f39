"""Embeddings of people, and their pairs."""

from __future__ import annotations

import numpy as np

from facerec.evaluation.retrieval import unit


def people(count: int, pictures: int, seed: int = 0, noise: float = 0.7):
    """Unit embeddings of people with that many pictures each, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), pictures)
    embeddings = random.normal(size=(count, 16))[labels]
    return unit(embeddings + noise * random.normal(size=(len(labels), 16))), labels


def flat_pairs(embeddings, labels):
    """Similarity and sameness of every pair, the plain way."""
    first, second = np.triu_indices(len(labels), 1)
    similarity = (embeddings @ embeddings.T).numpy()[first, second]
    return similarity, labels[first] == labels[second]

"""Trainers of tiny networks on coloured squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from facerec.data.store import Store
from facerec.losses.objective import Objective
from facerec.losses.settings import ObjectiveSettings
from facerec.model.network import build_network
from facerec.model.settings import NetworkSettings
from facerec.training.settings import TrainingSettings
from facerec.training.trainer import Trainer

pass


class Small(TrainingSettings, ObjectiveSettings, NetworkSettings):
    image_size: int = 16


def small(**changes) -> Small:
    fixed = {
        "d_model": 16,
        "depth": 2,
        "d_state": 4,
        "stem_depth": 1,
        "stem_width": 8,
        "embedding_dim": 8,
        "batch_size": 16,
        "images_per_identity": 4,
        "epochs": 2,
        "dropout": 0.1,
        "drop_path": 0.1,
        "device": "cpu",
        "precision": "fp32",
    }
    return Small(**{**fixed, **changes})


def colored_squares(people: int = 16, pictures: int = 6) -> Store:
    """A store in memory: every person is a colour, every picture adds noise; a quarter validates."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(people), pictures)
    colors = rng.integers(40, 216, (people, 1, 1, 3))[labels]
    images = np.clip(colors + rng.normal(0, 20, (len(labels), 16, 16, 3)), 0, 255).astype(np.uint8)
    split = np.where(labels % 4 == 0, "val", "train")
    names = [f"person {i}" for i in range(people)]
    return Store(
        images=images, labels=labels, names=names, paths=[""] * len(labels), picture_hashes=[""] * len(labels),
        digest="", split=split, name="squares", layout="folder", skipped=[], root=Path(), folder=Path(),
    )  # fmt: skip


def trainer(settings, **options) -> Trainer:
    torch.manual_seed(settings.seed)
    store = colored_squares()
    network = build_network(settings)
    objective = Objective(settings, 12, settings.embedding_dim, colors_of(store))
    return Trainer(network, objective, store, settings, **options)


def colors_of(store: Store) -> torch.Tensor:
    """(N, 8) what a teacher might say of the training pictures: their colours, centred, of unit length."""
    colors = torch.from_numpy(store.images[store.indices("train")].mean((1, 2))).float()
    rows = torch.nn.functional.pad(colors - colors.mean(0), (0, 5))
    return torch.nn.functional.normalize(rows, dim=1)

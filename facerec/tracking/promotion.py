"""Whether one model is better than another, for sure, on the validation pictures of the newer one."""

from __future__ import annotations

import numpy as np
from mlflow import MlflowClient

from facerec.config.recipe import validate
from facerec.data.settings import AlignSettings, DataSettings
from facerec.data.store import Store, open_store
from facerec.errors import InputError
from facerec.evaluation.confidence import paired_difference
from facerec.evaluation.retrieval import retrieval
from facerec.inference.embedder import FaceEmbedder
from facerec.inference.provenance import met
from facerec.runtime.mlflow_client import patiently

# An interval from fewer people is too narrow: of two equal models the new one is called better in 8 % of cases with 5
# people and in 16 % with 3, where 2.5 % are meant.
MIN_PEOPLE = 20
MOST_LOST = 0.05  # of the pictures that the champion can use: what a challenger may refuse


def beats(challenger: str, champion: str, run_id: str) -> tuple[bool, str]:
    """Whether one model is better than another on a run's validation pictures, and by how much.

    Args:
        challenger, champion: sources for FaceEmbedder.
        run_id: the challenger's run; its parameters say where its data are.

    Raises:
        InputError: the data are gone or have changed, or a model cannot be loaded.
    """
    store = _validation_store(run_id)
    rows = store.indices("val")
    labels = store.labels[rows]
    people = [store.names[i] for i in labels]
    pictures = [store.picture_hashes[i] for i in rows]
    models = {"it": FaceEmbedder.load(champion), "the new model": FaceEmbedder.load(challenger)}
    known = {name: met(model.provenance, people, pictures) for name, model in models.items()}
    for name, seen in known.items():
        if seen["train_people"] or seen["train_pictures"]:
            return False, (
                f"{name} was trained on {seen['train_people']} of the {seen['people']} validation people and "
                f"{seen['train_pictures']} of their pictures, which flatters it; --force true moves it all the same"
            )
    paths = [store.root / store.paths[i] for i in rows]
    found = [models[name].embed_usable(paths) for name in ("the new model", "it")]
    usable = [set(kept) for _, kept, _ in found]
    lost, both = len(usable[1] - usable[0]), sorted(usable[0] & usable[1])
    if lost > MOST_LOST * len(usable[1]):
        return False, (
            f"the new model cannot use {lost} of the {len(usable[1])} validation pictures that it can use, such as "
            f"{next(str(e) for i, e in found[0][2].items() if i in usable[1])}; --force true moves it all the same"
        )
    try:
        new, was = (
            retrieval(embeddings[np.searchsorted(kept, both)], labels[both])
            for embeddings, kept, _ in found
        )
    except ValueError:
        raise InputError(
            f"of the {len(rows)} validation pictures of run {run_id}, both models can use {len(both)}, and no two show "
            "one person; --force true moves it all the same"
        ) from None
    people_with_mates = len(np.unique(new.identity))
    if people_with_mates < MIN_PEOPLE:
        return False, (
            f"{people_with_mates} validation people with two pictures are too few to tell, {MIN_PEOPLE} are needed; "
            "--force true moves it all the same"
        )
    gain = paired_difference(new.average_precision_at_r, was.average_precision_at_r, new.identity)
    figures = (
        f"val/map_at_r {new.figures()['map_at_r']:.4f} against {was.figures()['map_at_r']:.4f}"
    )
    verdict = "better" if gain.low > 0 else "not better for sure"
    return gain.low > 0, (
        f"{verdict}: {figures}, a gain of {gain.value:+.4f} with 95 % interval [{gain.low:+.4f}, {gain.high:+.4f}] on "
        f"{len(new.probe)} pictures of {people_with_mates} people"
        + (
            f", {len(rows) - len(both)} left out that one of them cannot use"
            * (len(both) < len(rows))
        )
        + (
            ""
            if known["it"]["val_people"]
            else "; the new model was tuned on these people, the old one was not"
        )
    )


class _RunData(DataSettings, AlignSettings):
    """Of a run's parameters, those that its store was made from."""


def _validation_store(run_id: str) -> Store:
    """The data set that a run was trained on, as it was.

    Raises:
        InputError: gone, or changed since.
    """
    data = patiently(lambda: MlflowClient().get_run(run_id)).data
    own = {
        n: data.params[n]
        for n in _RunData.model_fields
        if n in data.params and n != "rebuild_store"
    }
    store = open_store(validate(_RunData, own, lambda key: f"parameter of run {run_id}"))
    store = store.split_as(int(data.tags.get("data.split_version", 1)))
    if data.tags.get("data.digest", store.digest) != store.digest:
        raise InputError(
            f"{store.root} is not what run {run_id} was trained on: its content has changed"
        )
    return store

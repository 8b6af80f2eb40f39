"""Whom and what a model was made from, without saying so: salted hashes of people and pictures, and the card.

Hashes are salted per model, so that the lists of two models cannot be joined, unless one was trained from the other,
whose salt it keeps; but the salt stands beside them, so that anybody who has a name or a picture can ask whether it was
there. That is their purpose, and their limit: a name that can be guessed can be found.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facerec.data.names import fold_name, identity
from facerec.settings import InputError, Settings, as_params

if TYPE_CHECKING:
    from facerec.data.store import Store

PARTS = ("train", "val")
# What is hashed: names as they stand; names without accents, case and signs, for people who may be the same; pictures;
# and, in models of before and what was trained from them, names of the second kind alone.
NAMES, SIMILAR, PICTURES, OLDER = "name_hashes", "similar_hashes", "picture_hashes", "people_hashes"
HASHED = (NAMES, SIMILAR, PICTURES, OLDER)
HASH_DIGITS = 32  # hexadecimal: 128 bits, which no two of a data set's people share by chance
PATHS = ("data", "cache", "output", "init", "model")  # settings whose folders are nobody's business
LFW_TERMS = """
**For research only**: Labeled Faces in the Wild is offered for research, and its authors ask that it is not taken for
evidence that an algorithm suits a commercial purpose. Its pictures are of public figures in the news, found without
asking them; women, children, people above 80 and many ethnic groups are few in it, and extreme light and pose are rare.
"""


def provenance(
    store: Store,
    settings: Settings | Mapping[str, str],
    earlier: Mapping[str, Any] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """What a training saw, to be kept with the model.

    Args:
        store: the data; its train part was learnt from, its val part was tuned on.
        settings: the recipe; of paths in it only the last part is kept.
        earlier: provenance of the model whose weights this training started from; whom that one met, this one has,
            and its teacher was this one's.
        facts: more of it, as JSON holds it: `run_id`, `teacher`, `git_commit`, `initial_model` ...

    Returns:
        {"salt", "data": {"name", "digest", "split_version"}, "recipe", "train": {"people", "pictures", "name_hashes",
        "similar_hashes", "picture_hashes"}, "val": the same, **facts}. Hashes are sorted, so that their order tells
        nothing. Where `earlier` is of a model that knew folded names alone, its "people_hashes" go on.
    """
    salt = secrets.token_hex(16) if earlier is None else earlier["salt"]
    earlier = None if earlier is None else shortened(earlier)
    parts = {part: _seen(store, part, salt, (earlier or {}).get(part, {})) for part in PARTS}
    recipe = as_params(settings) if isinstance(settings, Settings) else dict(settings)
    recipe |= {
        name: Path(recipe[name]).name for name in PATHS if ":/" not in recipe.get(name, ":/")
    }
    data = {"name": store.name, "digest": store.digest, "split_version": store.split_version}
    teacher = (earlier or {}).get("teacher")
    if isinstance(teacher, Mapping):
        facts = {**facts, "teacher": {**teacher, **facts.get("teacher", {})}}
    return {"salt": salt, "data": data, "recipe": recipe, **parts, **facts}


def _seen(store: Store, part: str, salt: str, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What a provenance holds of `train` or `val`, with what the model before had seen."""
    rows = store.indices(part)
    names = {store.names[label] for label in store.labels[rows]}
    own = {
        NAMES: _hashes(salt, map(identity, names)),
        SIMILAR: _hashes(salt, map(fold_name, names)),
        PICTURES: _hashes(salt, {store.picture_hashes[i] for i in rows}),
    }
    known = {kind: earlier.get(kind, []) for kind in HASHED}
    hashes = {kind: sorted({*own.get(kind, ()), *known[kind]}) for kind in HASHED}
    # Of a model before, people who are here again count once.
    people = len(hashes[NAMES]) + len(set(hashes[OLDER]) - set(hashes[SIMILAR]))
    if not hashes[OLDER]:
        del hashes[OLDER]
    return {"people": people, "pictures": max(len(rows), len(hashes[PICTURES])), **hashes}


def met(
    provenance: Mapping[str, Any], names: Iterable[str], picture_hashes: Iterable[str]
) -> dict[str, int]:
    """How many of these people and pictures the model has seen.

    Args:
        provenance: a model's.
        names: people; each counts once.
        picture_hashes: hex SHA-256 of picture files; each counts once.

    Returns:
        {"people", "pictures": asked about, "train_people", "train_similar", "train_pictures", and the same of val}.
        `people` have the name of somebody seen; `similar` have it but for accents, case and signs, and may be others.
        Models of before tell no difference: there all count as `people`.

    Raises:
        InputError: the provenance lacks what `provenance` writes.
    """
    asked, pictures = {identity(name) for name in names}, set(picture_hashes)
    counts = {"people": len(asked), "pictures": len(pictures)}
    provenance = shortened(checked(provenance))
    salt = provenance["salt"]
    for part in PARTS:
        listed = {kind: set(provenance[part].get(kind, ())) for kind in HASHED}
        exact = {name for name in asked if _hash(salt, name) in listed[NAMES]}
        folded = {name: _hash(salt, fold_name(name)) for name in asked - exact}
        exact |= {name for name, value in folded.items() if value in listed[OLDER]}
        similar = {name for name, value in folded.items() if value in listed[SIMILAR]} - exact
        counts[f"{part}_people"] = len(exact)
        counts[f"{part}_similar"] = len(similar)
        counts[f"{part}_pictures"] = len(set(_hashes(salt, pictures)) & listed[PICTURES])
    return counts


def checked(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, if it tells whom the model has met.

    Raises:
        InputError: it lacks what `provenance` writes; such files come from anywhere.
    """
    try:
        told = isinstance(provenance["salt"], str) and all(
            _is_complete(provenance[part]) for part in PARTS
        )
    except (KeyError, TypeError):
        told = False
    if not told:
        raise InputError(
            "the model's provenance.json does not say whom it was trained on, so leaks cannot be told"
        )
    return provenance


def _is_complete(part: Mapping[str, Any]) -> bool:
    """Whether there are names and pictures, and all are lists of hashes."""
    lists = {kind: part[kind] for kind in HASHED if kind in part}
    whole = PICTURES in lists and (OLDER in lists or {NAMES, SIMILAR} <= lists.keys())
    return whole and all(
        isinstance(hashes, list)
        and all(isinstance(h, str) and len(h) in (HASH_DIGITS, 64) for h in hashes)
        for hashes in lists.values()
    )


def shortened(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The same with hashes of HASH_DIGITS; files of before hold all 64 digits."""
    parts = {}
    for part in PARTS:
        known = provenance[part]
        lists = {kind: [h[:HASH_DIGITS] for h in known[kind]] for kind in HASHED if kind in known}
        parts[part] = {**known, **lists}
    return {**provenance, **parts}


def data_name(provenance: Mapping[str, Any]) -> str | None:
    """What the data set was called; None where a provenance from anywhere does not say."""
    data = provenance.get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    return name if isinstance(name, str) else None


def model_card(
    settings: Settings, figures: Mapping[str, float], provenance: Mapping[str, Any]
) -> str:
    """The model in Markdown: what it is for, what it was made from, how good it is, where it ends.

    Args:
        settings: the recipe.
        figures: validation figures by name, as they stand in MLflow.
        provenance: what `provenance` returned.
    """
    recipe, data = {**as_params(settings), **provenance["recipe"]}, provenance["data"]
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(figures.items()))
    knobs = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
    seen = "\n".join(
        f"- {use}: {provenance[part]['pictures']:,} pictures of {provenance[part]['people']:,} people."
        for part, use in (("train", "Learnt from"), ("val", "Tuned on"))
    )
    return f"""# Face embedding model

A {recipe.get("backbone")} network that turns a picture of a face, {recipe.get("image_size")} pixels square, into
{recipe.get("embedding_dim")} numbers of unit length: close together for pictures of one person, far apart for two.
Made with facerec.

## Intended use

Comparing and searching faces of people who have agreed to it; research on face embeddings.
Not for deciding anything about a person without a human who can overrule it, nor for identifying strangers.

## Made from

Data set `{data["name"]}`, content digest `{data["digest"][:16]}`.

{seen}

People of the data set's test part were not seen. `provenance.json` lists salted hashes of the names and pictures,
so that an evaluation can tell whether its people were met in training. **A salted hash of a name can still be
guessed**: who tries a list of names learns which of them are in it. It holds no names, pictures or paths of pictures.
{teacher_words(provenance.get("teacher"))}{LFW_TERMS if data["name"] == "lfw" else ""}
## Figures

On the validation people, whom stopping and thresholds were chosen on; for a figure to quote, run `evaluate` on others.

| figure | value |
|---|---|
{rows}

## Limits

- Thresholds in `calibration.json` come from the validation people; other cameras, ages and populations shift them.
- Error rates differ between groups of people as the training data do; they have not been measured by group here.
- It does not notice a photograph of a photograph, a mask, or a manipulated picture.
- Faces must be cut out as in training: `align` {recipe.get("align", "none")}, `crop` {recipe.get("crop", "1.0")}.

## Recipe

| setting | value |
|---|---|
{knobs}
"""


def teacher_words(teacher: Mapping[str, str] | None) -> str:
    """What the card says of the network that the model, or the one that it started from, has learnt from."""
    if teacher is None:
        return ""
    teacher = defaultdict(lambda: "unknown", teacher)
    blends = ""
    if "blends" in teacher:
        blends = f", and for {teacher['blends']} times as many blends of two of them"
    return f"""
**It has learnt from a teacher**: from the embeddings that {teacher["name"]}'s {teacher["network"]} gives for these
pictures{blends} ({teacher["source"]}, {teacher["licence"]}, SHA-256 `{teacher["sha256"][:16]}`).
That network has learnt from {teacher["learnt_from"]}; {teacher["overlap"]}. So figures of this model are not those of
training without outside data, and the hashes tell only whom the student met, not whom its teacher did.
"""


def _hash(salt: str, value: str) -> str:
    return hashlib.sha256(f"{salt}:{value}".encode()).hexdigest()[:HASH_DIGITS]


def _hashes(salt: str, values: Iterable[str]) -> list[str]:
    return sorted(_hash(salt, value) for value in set(values))

"""Whom and what a model was made from, without saying so: salted hashes of people and pictures, and the card.

`Provenance` is what provenance.json holds; a file that holds anything else is refused when the model is read.

Hashes are salted per model, so that the lists of two models cannot be joined, unless one was trained from the other,
whose salt it keeps; but the salt stands beside them, so that anybody who has a name or a picture can ask whether it was
there. That is their purpose, and their limit: a name that can be guessed can be found.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from facerec.config.settings import Settings, as_params
from facerec.data.names import fold_name, identity
from facerec.errors import InputError
from facerec.runtime.untrusted import Record, Text

if TYPE_CHECKING:
    from facerec.data.store import Store

NAMES, SIMILAR, PICTURES, OLDER = "name_hashes", "similar_hashes", "picture_hashes", "people_hashes"
HASHED = (NAMES, SIMILAR, PICTURES, OLDER)
HASH_DIGITS = 32  # hexadecimal: 128 bits, which no two of a data set's people share by chance
HASH = re.compile(f"[0-9a-f]{{{HASH_DIGITS}}}|[0-9a-f]{{64}}")  # older files hold all 64 digits
MAX_HASHES = 3_000_000  # in one provenance, 40 bytes each: a million people with an image each, or 2.8 million images
PATHS = ("data", "cache", "output", "init", "model")  # settings whose folders are nobody's business
LFW_TERMS = """
**For research only**: Labeled Faces in the Wild is offered for research, and its authors ask that it is not taken for
evidence that an algorithm suits a commercial purpose. Its pictures are of public figures in the news, found without
asking them; women, children, people above 80 and many ethnic groups are few in it, and extreme light and pose are rare.
"""


def _short(hashes: list[Any]) -> list[str]:
    """The hashes, of HASH_DIGITS each; the first that is none ends it, since there may be millions."""
    for value in hashes:
        if not (isinstance(value, str) and HASH.fullmatch(value)):
            raise ValueError(f"a hash should be {HASH_DIGITS} or 64 hexadecimal digits")
    return [value[:HASH_DIGITS] for value in hashes]


Hashes = Annotated[list, AfterValidator(_short)]


class Seen(Record):
    """Whom a model has met in its training, or in its validation.

    Attributes:
        people, pictures: how many.
        name_hashes: of names as they stand.
        similar_hashes: of names without accents, case and signs, for people who may be the same.
        picture_hashes: of the files.
        people_hashes: in older models and what was trained from them, of names of the second kind alone.
    """

    people: int = Field(0, ge=0)
    pictures: int = Field(0, ge=0)
    name_hashes: Hashes | None = None
    similar_hashes: Hashes | None = None
    picture_hashes: Hashes
    people_hashes: Hashes | None = None

    @model_validator(mode="after")
    def _names_are_there(self) -> Seen:
        if self.people_hashes is None and None in (self.name_hashes, self.similar_hashes):
            raise ValueError("hashes of names are missing")
        return self

    def hashes(self) -> dict[str, set[str]]:
        """Each list by its name, empty where there is none."""
        return {kind: set(getattr(self, kind) or ()) for kind in HASHED}


class DataSet(Record):
    """Which data set a model was made from: what it was called, what was in it, and how people were split."""

    name: Text | None = None
    digest: Text | None = None
    split_version: int | None = None


class Provenance(Record):
    """What provenance.json holds. A model from elsewhere may hold nothing: then leaks cannot be told.

    Attributes:
        salt: of the hashes.
        data: the data set.
        recipe: setting → value.
        train, val: whom it has learnt from, and whom it was tuned on.
        run_id: of the MLflow run that made it.
        teacher: what is known of the network that it, or the model before, has learnt from.
    """

    salt: Annotated[str, Field(max_length=64, pattern="^[!-~]+$")] | None = None
    data: DataSet = Field(DataSet())
    recipe: dict[Text, Text] = Field({})
    train: Seen | None = None
    val: Seen | None = None
    run_id: Text | None = None
    teacher: dict[Text, Text] | None = None


def provenance(
    store: Store,
    settings: Settings | Mapping[str, str],
    earlier: Provenance | None = None,
    *,
    run_id: str | None = None,
    teacher: Mapping[str, str] | None = None,
) -> Provenance:
    """What a training saw, to be kept with the model.

    Args:
        store: the data; its train part was learnt from, its val part was tuned on.
        settings: the recipe; of paths in it only the last part is kept.
        earlier: provenance of the model whose weights this training started from; whom that one met, this one has,
            and its teacher was this one's.
        run_id: of the MLflow run.
        teacher: what is known of this training's own.

    Returns:
        Hashes are sorted, so that their order tells nothing. Where `earlier` is of a model that knew folded names
        alone, its `people_hashes` go on.
    """
    before = Provenance() if earlier is None else checked(earlier)
    salt = before.salt or secrets.token_hex(16)
    recipe = as_params(settings) if isinstance(settings, Settings) else dict(settings)
    recipe |= {
        name: Path(recipe[name]).name for name in PATHS if ":/" not in recipe.get(name, ":/")
    }
    return Provenance(
        salt=salt,
        data=DataSet(name=store.name, digest=store.digest, split_version=store.split_version),
        recipe=recipe,
        train=_seen(store, "train", salt, before.train),
        val=_seen(store, "val", salt, before.val),
        run_id=run_id,
        teacher={**(before.teacher or {}), **(teacher or {})} or None,
    )


def check_hashes(store: Store, earlier: Provenance | None) -> None:
    """Raises InputError, before a training, where its provenance would be larger than a model folder's may be."""
    count = 2 * len(store.names) + len(store.labels)
    for part in seen_by(earlier)[1:] if earlier else ():
        count += sum(len(hashes) for hashes in part.hashes().values())
    if count > MAX_HASHES:
        raise InputError(
            f"{store.name}: a model keeps a hash of each image and two of each person, at most {MAX_HASHES:,} with "
            f"those of the model before, and these are {count:,}: take fewer people"
        )


def _seen(store: Store, part: str, salt: str, earlier: Seen | None) -> Seen:
    """What a provenance holds of `train` or `val`, with what the model before had seen."""
    rows = store.indices(part)
    names = {store.names[label] for label in store.labels[rows]}
    hashes = earlier.hashes() if earlier else {kind: set[str]() for kind in HASHED}
    hashes[NAMES] |= _hashes(salt, map(identity, names))
    hashes[SIMILAR] |= _hashes(salt, map(fold_name, names))
    hashes[PICTURES] |= _hashes(salt, {store.picture_hashes[i] for i in rows})
    # Of a model before, people who are here again count once.
    people = len(hashes[NAMES]) + len(hashes[OLDER] - hashes[SIMILAR])
    return Seen(
        people=people,
        pictures=max(len(rows), len(hashes[PICTURES])),
        **{kind: sorted(found) for kind, found in hashes.items() if found or kind != OLDER},
    )


def met(
    provenance: Provenance, names: Iterable[str], picture_hashes: Iterable[str]
) -> dict[str, int]:
    """How many of these people and pictures the model has seen.

    Args:
        provenance: a model's.
        names: people; each counts once.
        picture_hashes: hex SHA-256 of picture files; each counts once.

    Returns:
        {"people", "pictures": asked about, "train_people", "train_similar", "train_pictures", and the same of val}.
        `people` have the name of somebody seen; `similar` have it but for accents, case and signs, and may be others.
        Older models do not know the difference: there all count as `people`.

    Raises:
        InputError: as `checked`.
    """
    asked, pictures = {identity(name) for name in names}, set(picture_hashes)
    counts = {"people": len(asked), "pictures": len(pictures)}
    salt, train, val = seen_by(provenance)
    for part, seen in (("train", train), ("val", val)):
        listed = seen.hashes()
        exact = {name for name in asked if _hash(salt, name) in listed[NAMES]}
        folded = {name: _hash(salt, fold_name(name)) for name in asked - exact}
        exact |= {name for name, value in folded.items() if value in listed[OLDER]}
        similar = {name for name, value in folded.items() if value in listed[SIMILAR]} - exact
        counts[f"{part}_people"] = len(exact)
        counts[f"{part}_similar"] = len(similar)
        counts[f"{part}_pictures"] = len(_hashes(salt, pictures) & listed[PICTURES])
    return counts


def checked(provenance: Provenance) -> Provenance:
    """The same. Raises InputError as `seen_by`."""
    seen_by(provenance)
    return provenance


def seen_by(provenance: Provenance) -> tuple[str, Seen, Seen]:
    """The salt of its hashes, whom the model was trained on, and whom it was tuned on.

    Raises:
        InputError: it does not say whom the model has seen.
    """
    salt, train, val = provenance.salt, provenance.train, provenance.val
    if salt is None or train is None or val is None:
        raise InputError(
            "the model's provenance.json does not say whom it was trained on, so leaks cannot be told"
        )
    return salt, train, val


def model_card(settings: Settings, figures: Mapping[str, float], provenance: Provenance) -> str:
    """The model in Markdown: what it is for, what it was made from, how good it is, where it ends.

    Args:
        settings: the recipe.
        figures: validation figures by name, as they stand in MLflow.
        provenance: what `provenance` returned.
    """
    recipe, data = {**as_params(settings), **provenance.recipe}, provenance.data
    _, train, val = seen_by(provenance)
    assert data.digest is not None  # as `provenance` has it from the store
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(figures.items()))
    knobs = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
    seen = "\n".join(
        f"- {use}: {seen.pictures:,} pictures of {seen.people:,} people."
        for use, seen in (("Learnt from", train), ("Tuned on", val))
    )
    return f"""# Face embedding model

A {recipe.get("backbone")} network that turns a picture of a face, {recipe.get("image_size")} pixels square, into
{recipe.get("embedding_dim")} numbers of unit length: close together for pictures of one person, far apart for two.
Made with facerec.

## Intended use

Comparing and searching faces of people who have agreed to it; research on face embeddings.
Not for deciding anything about a person without a human who can overrule it, nor for identifying strangers.

## Made from

Data set `{data.name}`, content digest `{data.digest[:16]}`.

{seen}

People of the data set's test part were not seen. `provenance.json` lists salted hashes of the names and pictures,
so that an evaluation can tell whether its people were met in training. **A salted hash of a name can still be
guessed**: who tries a list of names learns which of them are in it. It holds no names, pictures or paths of pictures.
{teacher_words(provenance.teacher)}{LFW_TERMS if data.name == "lfw" else ""}
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


def _hashes(salt: str, values: Iterable[str]) -> set[str]:
    return {_hash(salt, value) for value in values}

"""Say whether two pictures show one person, or who of a gallery a picture shows.

`facerec predict a.jpg b.jpg` gives similarity, probability and verdict; `facerec predict --gallery FOLDER --probe
PICTURE` gives the most similar people of a folder. The thresholds are the model's own, from its validation people.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from facerec.errors import InputError
from facerec.inference.model_uri import URIS, UsedDevice, UsedModel, check_model
from facerec.runtime import console
from facerec.runtime.paths import PathText, WrittenPath, as_given, expanded, folder_of_command
from facerec.runtime.text import brief, shown
from facerec.tracking.settings import PrivacySettings, may_keep_faces

if TYPE_CHECKING:
    from facerec.inference.embedder import FaceEmbedder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that `json` is a deprecated method of pydantic's too

    class PredictSettings(PrivacySettings):
        """What is asked of which model."""

        group: ClassVar[str] = "Prediction"

        a: PathText | None = Field(None, description="Picture to compare.")
        b: PathText | None = Field(None, description="Picture that it is compared with.")
        probe: PathText | None = Field(
            None, description="Picture of somebody to look for in the gallery."
        )
        gallery: PathText | None = Field(
            None, description="Folder of known people: a folder, or a picture, for each."
        )
        top: int = Field(5, ge=1, le=1000, description="People of the gallery to name.")
        model: UsedModel = "pretrained"
        far: float = Field(
            1e-3,
            gt=0,
            lt=1,
            description="False accept rate of one comparison: 0.1, 0.01, 0.001, 0.0001.",
        )
        flip: bool = Field(
            False,
            description="Average with the mirrored picture; twice the time. Thresholds are taken without it.",
        )
        align: Literal["auto", "none", "find"] = Field(
            "auto",
            description="auto: pictures as in training; find: the face is found and framed so; none: it is in place.",
        )
        choice: Literal["auto", "largest", "central", "only"] = Field(
            "auto", description="Which face, where several are found; auto = as in training."
        )
        device: UsedDevice = "auto"
        json: bool = Field(  # type: ignore[assignment]  # pydantic's method of old
            False, description="Answer in JSON."
        )
        picture: WrittenPath | None = Field(
            None, description="File (PNG, JPEG) for the faces side by side."
        )


SETTINGS = PredictSettings
ARGUMENTS = ("a", "b")


def run(settings: PredictSettings, config: str | None = None) -> None:
    """Compares or identifies, and prints the answer.

    Raises:
        InputError: neither a pair nor a probe with a gallery is given, or a picture or the model cannot be used.
    """
    pair = settings.a is not None and settings.b is not None
    search = settings.probe is not None and settings.gallery is not None
    asked = [n for n in ("a", "b", "probe", "gallery") if getattr(settings, n) is not None]
    if pair == search or len(asked) != 2:
        given = f"; given: {', '.join(asked)}" if asked else ""
        if asked == ["a", "gallery"]:
            given += f": --probe {settings.a}"
        raise InputError(f"give two pictures (a and b), or a probe and a gallery{given}")
    check_model(settings.model)
    from facerec.inference.embedder import FaceEmbedder

    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id or settings.model.startswith(URIS):
        from facerec.tracking.address import reach_tracking

        reach_tracking()
    target = None if settings.picture is None else writable(settings.picture, settings)
    embedder = FaceEmbedder.load(settings.model, settings.device)
    if embedder.provenance.data.name == "demo":
        print("facerec: this model knows rendered people alone, not photographs", file=sys.stderr)
    found = compare(embedder, settings) if pair else identify(embedder, settings)
    answer = with_given_paths(found, folder_of_command())
    if run_id:
        keep_answer(run_id, answer if may_keep_faces(settings) else without_people(answer))
    console.answer(json.dumps(answer) if settings.json else in_words(answer))
    if target:
        asked_about = [found["a"], found["b"]] if pair else [found["probe"]]
        others = [match["picture"] for match in found.get("matches", ())]
        side_by_side([*asked_about, *others], target, embedder, settings)


def compare(embedder: FaceEmbedder, settings: PredictSettings) -> dict[str, Any]:
    """The answer for two pictures."""
    a, b = settings.a, settings.b
    assert a is not None and b is not None  # `run` sees to it
    verdict = embedder.compare(a, b, settings.far, **how(settings))
    return {"a": a, "b": b, **verdict.as_dict()}


def identify(embedder: FaceEmbedder, settings: PredictSettings) -> dict[str, Any]:
    """The answer for a probe and a gallery."""
    probe, folder = settings.probe, settings.gallery
    assert probe is not None and folder is not None  # `run` sees to it
    embedder.judge(0.0, settings.far)  # an impossible FAR is told before any work
    gallery = embedder.gallery(folder, **how(settings))
    matches = embedder.identify(probe, gallery, settings.top, **how(settings))
    return {
        "probe": probe,
        "gallery": folder,
        "people": len(set(gallery.names)),
        "pictures": len(gallery.names),
        "stranger_accepted_at_most": min(1.0, settings.far * len(gallery.names)),
        "matches": [
            {
                "name": m.name,
                "picture": m.picture,
                **embedder.judge(m.similarity, settings.far).as_dict(),
            }
            for m in matches
        ],
        "skipped": [{"picture": picture, "reason": reason} for picture, reason in gallery.skipped],
        "notes": list(gallery.notes),
    }


def with_given_paths(value: Any, typed_in: Path) -> Any:
    """An answer, or a part of it, with paths as they were given, in the folder `typed_in`."""
    if isinstance(value, dict):
        return {key: with_given_paths(item, typed_in) for key, item in value.items()}
    if isinstance(value, list):
        return [with_given_paths(item, typed_in) for item in value]
    return as_given(value, typed_in) if isinstance(value, str) else value


def without_people(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without names, and without paths, which may hold names."""
    hidden = {"a", "b", "probe", "gallery", "name", "picture", "skipped", "notes"}
    kept = {key: value for key, value in answer.items() if key not in hidden}
    if "matches" in kept:
        kept["matches"] = [without_people(match) for match in kept["matches"]]
    return kept


def in_words(answer: dict[str, Any]) -> str:
    """An answer for people."""
    if "matches" not in answer:
        verdict = "the same person" if answer["same_person"] else "not the same person"
        return (
            f"{verdict} at FAR {answer['far']:g}\n"
            f"similarity   {answer['similarity']:.4f}, threshold {answer['threshold']:.4f} "
            f"(from {answer['impostor_pairs']:,} validation pairs of two people)\n"
            f"probability  {answer['probability']:.4f}, if half of all pairs show one person"
        )
    lines = [
        f"of {answer['people']} people, most like {shown(answer['probe'])}; threshold "
        f"{answer['matches'][0]['threshold']:.4f} at FAR {answer['matches'][0]['far']:g}",
        "similarity  probability",
    ]
    for match in answer["matches"]:
        verdict = "same person" if match["same_person"] else "below the threshold"
        numbers = f"{match['similarity']:10.4f}  {match['probability']:11.4f}"
        name, picture = shown(match["name"]), shown(match["picture"])
        lines.append(f"{numbers}  {verdict:19}  {name}  ({picture})")
    chance = f"{answer['stranger_accepted_at_most']:.2g}"
    lines.append(
        f"The threshold is that of one comparison; among {answer['pictures']:,} pictures it takes a stranger for "
        f"somebody in up to {chance} of searches."
    )
    lines += [f"skipped {s['reason']}" for s in answer["skipped"]]
    lines += answer["notes"]
    return "\n".join(lines)


def how(settings: PredictSettings) -> dict[str, Any]:
    """Keywords of FaceEmbedder.embed."""
    return {name: getattr(settings, name) for name in ("flip", "align", "choice")}


def keep_answer(run_id: str, answer: dict[str, Any]) -> None:
    """Adds the answer to the run that `mlflow run` made; a failure is told and does not keep it from the console."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from facerec.runtime.mlflow_client import patiently
    from facerec.runtime.mlflow_errors import reason_of

    try:
        patiently(lambda: MlflowClient().log_dict(run_id, answer, "answer.json"))
    except (MlflowException, OSError) as error:
        reason = brief(reason_of(error))
        print(f"facerec: answer.json is not in run {run_id}: {reason}", file=sys.stderr)


def writable(picture: str, settings: PredictSettings) -> Path:
    """Where the faces are to be shown.

    Raises:
        InputError: no name of a picture, no folder, or something that is asked about is there.
    """
    path, name = expanded(picture), f"picture={picture}"
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"{name}: a name that ends in .png or .jpg is due")
    if not path.parent.is_dir():
        raise InputError(f"{name}: there is no folder {path.parent}")
    asked = [expanded(p) for p in (settings.a, settings.b, settings.probe) if p]
    if path.exists() and any(p.exists() and path.samefile(p) for p in asked):
        raise InputError(f"{name} is one of the pictures asked about: give another name")
    gallery = expanded(settings.gallery) if settings.gallery else None
    if gallery and path.resolve().is_relative_to(gallery.resolve()):
        raise InputError(f"{name} lies in the gallery: give another folder")
    return path


def side_by_side(
    paths: list[str],
    target: Path,
    embedder: FaceEmbedder,
    settings: PredictSettings,
    side: int = 256,
) -> None:
    """Writes the faces in a row, as the network sees them but for their size.

    Raises:
        InputError: the file cannot be written.
    """
    import io

    import numpy as np
    from PIL import Image

    from facerec.runtime.files import write_bytes

    faces = embedder.faces(paths, side=side, align=settings.align, choice=settings.choice)
    file = io.BytesIO()
    kind = "PNG" if target.suffix.lower() == ".png" else "JPEG"
    Image.fromarray(np.concatenate(list(faces), axis=1)).save(file, kind)
    write_bytes(target, file.getvalue())

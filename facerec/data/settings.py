"""Which faces, how they are cut out and aligned, and what a batch of them holds, as settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from facerec.config.settings import Settings
from facerec.errors import InputError
from facerec.runtime.paths import PathText, expanded, located


class LayoutSettings(Settings):
    """How a data set says who is on which image, where that is in doubt."""

    group: ClassVar[str] = "Data"

    layout: Literal["auto", "folders", "lfw", "kaggle-faces"] = Field(
        "auto",
        description="How a folder is read: a folder per person, LFW, or Kaggle's Face Recognition Dataset; auto "
        "recognises them and refuses what is in doubt.",
    )
    path_column: str | None = Field(
        None, min_length=1, description="Column of a CSV that holds the paths of the images."
    )
    label_column: str | None = Field(
        None, min_length=1, description="Column of a CSV that says who is on an image."
    )


WHICH_DATA = ("data", *LayoutSettings.model_fields)  # settings that say what is read, and how


DataText = Annotated[str, AfterValidator(partial(located, names=("demo", "lfw")))]  # a setting's


class DataSettings(LayoutSettings):
    """Where the faces come from and how they are cut out."""

    group: ClassVar[str] = "Data"

    data: DataText = Field(
        "demo",
        description="demo (rendered people), lfw (downloads it), or a path: a folder with one folder per "
        "person, LFW or the Face Recognition Dataset as Kaggle ships them, lfw-funneled.tgz, or a CSV of "
        "path,identity",
    )
    image_size: int = Field(64, ge=16, le=512, description="side of the square pictures, in pixels")
    crop: float = Field(
        1.0,
        ge=0.1,
        le=1.0,
        description="side of the centred square cut out of each picture, as a share of its shorter side; "
        "0.42 suits LFW, whose faces stand in the middle with a wide margin",
    )
    cache: PathText | None = Field(
        None,
        description="folder for decoded pictures and demo faces; none: FACEREC_CACHE, else the user's "
        "cache folder",
    )
    rebuild_store: bool = Field(
        False, description="decode again, accepting that files were added, removed or altered"
    )


class AlignSettings(Settings):
    """How a face is brought into place before the network sees it; the model remembers it."""

    group: ClassVar[str] = "Alignment"

    align: Literal["none", "five-point"] = Field(
        "none",
        description="Bring faces into place by eyes, nose and mouth (needs facerec[align]), or only crop.",
    )
    face_choice: Literal["largest", "central", "only"] = Field(
        "largest",
        description="Which face to align where several are found; only = leave such a picture out.",
    )


class BatchSettings(Settings):
    """What a batch holds, and how its pictures are varied."""

    group: ClassVar[str] = "Batches"

    batch_size: int = Field(
        128, ge=2, le=65536, description="Pictures in a batch; under torchrun, of each rank."
    )
    images_per_identity: int = Field(
        4,
        ge=1,
        le=1024,
        description="Pictures of one person in a batch; 1 = every picture once an epoch, shuffled.",
    )
    confusable: bool = Field(
        False,
        description="Fill batches with people whom the network confuses, looked for anew each epoch.",
    )
    flip: float = Field(0.5, ge=0, le=1, description="Share of pictures mirrored.")
    rotate: float = Field(
        10.0, ge=0, le=180, description="Rotation up to so many degrees either way."
    )
    zoom: float = Field(0.1, ge=0, lt=1, description="Scaling by up to this share either way.")
    shift: float = Field(
        0.05, ge=0, lt=1, description="Shift by up to this share of the side either way."
    )
    color: float = Field(
        0.2, ge=0, le=1, description="Change of brightness, contrast and saturation either way."
    )
    tint: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Change of each colour channel either way, as by coloured light.",
    )
    gray: float = Field(0.05, ge=0, le=1, description="Share of pictures turned grey.")
    erase: float = Field(0.1, ge=0, le=1, description="Share of pictures with a rectangle erased.")


def check_data(data: str) -> None:
    """Raises InputError where the setting `data` names nothing that exists."""
    if data not in ("demo", "lfw"):
        existing(data)


def existing(data: str) -> Path:
    """What the setting `data` names. Raises InputError where there is nothing."""
    if not data.strip():
        raise InputError("data is empty: give demo, lfw, or the path of a folder, CSV or archive.")
    if "://" in data:
        raise InputError(
            f"data={data} is a URL: download it first and give the path of the folder."
        )
    path = expanded(data)
    try:
        if path.exists():
            return path.resolve()
    except (OSError, ValueError) as error:
        raise InputError(f"data={data!r} cannot be opened: {error}.") from None
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    hint = (
        ""
        if path.is_absolute()
        else "; an absolute path is safest, since mlflow run changes folder"
    )
    raise InputError(f"data={data} was not found{where}{hint}.")

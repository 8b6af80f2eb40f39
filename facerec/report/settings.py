"""What is measured, and what is drawn, as settings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from facerec.data.settings import DataText, LayoutSettings
from facerec.inference.model_uri import SHIPPED, UsedDevice, UsedModel
from facerec.runtime.paths import PathText, located
from facerec.tracking.settings import TrackingSettings

STORE_PROTOCOLS = ("identities", "lfw-view1", "lfw-view2")


def separate(models: str) -> list[str]:
    """The models of a setting that takes several, separated by commas."""
    return [source.strip() for source in models.split(",") if source.strip()]


def each_located(models: str) -> str:
    """Models separated by commas, each where it is."""
    return ",".join(located(source.strip(), SHIPPED) for source in models.split(","))


ModelTexts = Annotated[str, AfterValidator(each_located)]


class ProtocolSettings(LayoutSettings):
    """Which models are measured on what."""

    group: ClassVar[str] = "Evaluation"

    model: ModelTexts = Field(
        "pretrained",
        min_length=1,
        description="Model folder, runs:/ID/model, models:/NAME@ALIAS, pretrained or pretrained-lfw; several, "
        "separated by commas, are compared.",
    )
    protocol: Literal["identities", "lfw-view1", "lfw-view2", "pairs", "gallery"] = Field(
        "identities",
        description="identities: search among the people of a split. lfw-view1, lfw-view2: as LFW's authors define "
        "them. pairs: data is a CSV of path,path,same. gallery: data is a folder of people, who are searched in "
        "the folder gallery.",
    )
    data: DataText = Field(
        "demo", description="Data set as in train; for pairs a CSV; for gallery a folder."
    )
    gallery: PathText | None = Field(
        None,
        description="Folder of known people, a folder or a picture for each; for protocol gallery.",
    )
    split: Literal["train", "val", "test", "all"] = Field(
        "test",
        description="Which people, for protocol identities; only test was not seen in training.",
    )
    references: bool = Field(
        True, description="Measure raw pixels, whitened PCA and Fisherfaces beside the models."
    )
    flip: bool = Field(False, description="Average with the mirrored picture; twice the time.")
    cache: PathText | None = Field(
        None,
        description="Folder for decoded pictures; none: FACEREC_CACHE, else the user's cache folder.",
    )
    device: UsedDevice = "auto"


class EvaluateSettings(ProtocolSettings, TrackingSettings):
    """Everything that `evaluate` can be told."""

    system_metrics: bool = Field(False, description="Log CPU, memory and GPU use to MLflow.")


class PageSettings(LayoutSettings):
    """Which model is shown on which faces."""

    group: ClassVar[str] = "Page"

    model: UsedModel = "pretrained"
    data: DataText = Field(
        "demo", description="Data set, as in train; cut out as the model was trained on."
    )
    split: Literal["train", "val", "test", "all"] = Field(
        "test", description="Which people; only test was not seen when the model was made."
    )
    cache: PathText | None = Field(
        None,
        description="Folder for decoded pictures; none: FACEREC_CACHE, else the user's cache folder.",
    )
    faces: int = Field(
        2000, ge=2, le=10_000, description="Most faces on the map; whole people are drawn."
    )
    pairs: int = Field(12, ge=0, le=100, description="Hardest pairs of either kind to show.")
    occlusions: int = Field(6, ge=0, le=50, description="Faces to show an occlusion map of.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of which faces, and of t-SNE.")
    device: UsedDevice = "auto"


class VisualizeSettings(PageSettings, TrackingSettings):
    """Everything that `visualize` can be told."""

    system_metrics: bool = Field(False, description="Log CPU, memory and GPU use to MLflow.")

"""Where a run is kept, and what of people MLflow keeps, as settings."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from facerec.config.settings import Settings
from facerec.runtime.paths import PathText


class PrivacySettings(Settings):
    """Whether faces and names leave this machine for the tracking store."""

    group: ClassVar[str] = "Tracking"

    page_faces: bool | None = Field(
        None,
        description="Faces and names of people in the pages and answers that MLflow keeps; none = in pages those of "
        "rendered people, in answers nobody's.",
    )


class TrackingSettings(PrivacySettings):
    """Where the run is kept."""

    group: ClassVar[str] = "Tracking"

    experiment: str | None = Field(
        None,
        min_length=1,
        description="MLflow experiment; none: MLFLOW_EXPERIMENT_NAME, else MLFLOW_EXPERIMENT_ID, else facerec. Under "
        "mlflow run, its own counts.",
    )
    run_name: str | None = Field(
        None, description="Name of the run in MLflow; none lets MLflow choose."
    )
    output: PathText = Field(
        "outputs", min_length=1, description="Folder for checkpoints, models and pages, one a run."
    )
    system_metrics: bool = Field(True, description="Log CPU, memory and GPU use to MLflow.")


def may_keep_faces(settings: PrivacySettings, layout: str | None = None) -> bool:
    """Whether MLflow may keep faces and names of a data set, or without `layout` of images that anybody may be on.

    Of the demo's people it may, unless it is forbidden.
    """
    return layout == "demo" if settings.page_faces is None else settings.page_faces

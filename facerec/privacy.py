"""What of people MLflow keeps, by one setting of every command: their faces and names, or neither."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from facerec.settings import Settings


class PrivacySettings(Settings):
    """Whether faces and names leave this machine for the tracking store."""

    group: ClassVar[str] = "Tracking"

    page_faces: bool | None = Field(
        None,
        description="Faces and names of people in the pages and answers that MLflow keeps; none = in pages those of "
        "rendered people, in answers nobody's.",
    )


def may_keep_faces(settings: PrivacySettings, layout: str | None = None) -> bool:
    """Whether MLflow may keep faces and names of a data set, or without `layout` of images that anybody may be on.

    Of the demo's people it may, unless it is forbidden.
    """
    return layout == "demo" if settings.page_faces is None else settings.page_faces

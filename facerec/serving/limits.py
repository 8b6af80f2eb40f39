"""What one request may cost a server, counted before any of its images is decoded.

The limits are environment variables, FACEREC_LIMIT_ROWS and so on, so that they hold under `mlflow models serve`,
`facerec serve` and any server of one's own.
"""

from __future__ import annotations

import os
import time
from typing import ClassVar

from pydantic import Field

from facerec.config.recipe import validate
from facerec.config.settings import Settings
from facerec.errors import InputError
from facerec.runtime.text import nearest

PREFIX = "FACEREC_LIMIT_"


class Limits(Settings):
    """The budget of a request. An image that is in it twice counts once."""

    group: ClassVar[str] = "Limits of a request"

    rows: int = Field(1024, ge=1, description="rows")
    bytes: int = Field(24 * 2**20, ge=1, description="bytes of image files")
    pixels: int = Field(100_000_000, ge=1, description="pixels, by the headers of its images")
    scans: int = Field(
        1_000_000_000,
        ge=1,
        description="pixels times scans (a progressive JPEG usually has 10 scans)",
    )
    seconds: float = Field(50.0, gt=0, description="seconds; MLflow's server answers 504 after 60")

    @classmethod
    def from_environment(cls) -> Limits:
        """The limits that the environment sets, and the defaults of the others.

        Raises:
            InputError: a variable's value is out of range, or there is no such limit.
        """
        given = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in os.environ.items()
            if name.startswith(PREFIX) and value
        }
        for name in given.keys() - cls.model_fields.keys():
            near = nearest(name, cls.model_fields)
            hint = f"; did you mean {PREFIX}{near.upper()}?" if near else ""
            raise InputError(f"there is no limit {PREFIX}{name.upper()}{hint}")
        return validate(cls, given, lambda key: PREFIX + key.upper())

    def check(self, **found: int) -> None:
        """Refuses a request whose `rows`, `bytes`, `pixels` or `scans` are above their limit.

        Raises:
            InputError: names the limit and its variable.
        """
        for name, value in found.items():
            limit = getattr(self, name)
            if value > limit:
                what = type(self).model_fields[name].description
                raise InputError(
                    f"the request has {value:,} {what}; a server accepts up to {limit:,} ({PREFIX}{name.upper()})"
                )


class Deadline:
    """When a request is given up."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, 0 after it."""
        return max(0.0, self._end - time.monotonic())

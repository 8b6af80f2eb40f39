"""Serve a model over HTTP, with limits on what a request may cost.

`facerec serve --model models:/facerec@champion` answers at /invocations and /ping as `mlflow models serve` does, and
refuses bodies, images and crowds beyond its limits: docs/serving.md says which, and the variables that set the rest.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from facerec.config.settings import Settings
from facerec.inference.model_uri import URIS, UsedDevice, UsedModel, check_model


class ServeSettings(Settings):
    """Which model, where, for how many."""

    group: ClassVar[str] = "Server"

    model: UsedModel
    host: str = Field("127.0.0.1", min_length=1, description="Address; 0.0.0.0 is every network.")
    port: int = Field(5000, ge=0, le=65535, description="Port; 0 takes a free one.")
    device: UsedDevice = "auto"
    max_body_mb: int = Field(32, ge=1, le=1024, description="Largest body of a request, in MiB.")
    max_requests: int = Field(
        32, ge=1, description="Requests at the same time; others are answered with 503."
    )


SETTINGS = ServeSettings
ARGUMENTS = ("model",)


def run(settings: ServeSettings, config: str | None = None) -> None:
    """Serves until it is interrupted.

    Raises:
        InputError: the model cannot be loaded, or the address cannot be used.
    """
    check_model(settings.model)
    from facerec.serving.server import application, listen, serve

    if settings.model.startswith(URIS):
        from facerec.tracking.address import reach_tracking

        reach_tracking()
    place = listen(settings.host, settings.port)
    app = application(
        settings.model, settings.device, settings.max_body_mb * 2**20, settings.max_requests
    )
    host, port = place.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"facerec: {settings.model} is served at http://{host}:{port}/invocations", flush=True)
    serve(app, place)

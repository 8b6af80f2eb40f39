"""Draw one page about a model on a data set; MLflow keeps it, without faces and names unless page_faces is true.

A map of the embeddings with a face behind each point, neighbours on click, similarities, ROC, the hardest pairs and
occlusion maps: one HTML file that opens without a network.
"""

from __future__ import annotations

from facerec.data.settings import check_data
from facerec.inference.model_uri import check_model
from facerec.report.settings import VisualizeSettings

SETTINGS = VisualizeSettings


def run(settings: VisualizeSettings, config: str | None = None) -> None:
    """Embeds the faces, draws the page and logs it; see `report.explorer`."""
    check_model(settings.model)
    check_data(settings.data)
    from facerec.report.explorer import run as visualize

    visualize(settings, config)

"""Measure models on people they have not met, beside reference lines, and keep the figures in MLflow.

`facerec evaluate --model runs:/ID/model --data lfw --protocol lfw-view1` gives a table on the console, metrics under
`test/`, and a page. Several models, separated by commas, are compared on the same pictures.
"""

from __future__ import annotations

from facerec.data.settings import check_data
from facerec.inference.model_uri import check_model
from facerec.report.settings import STORE_PROTOCOLS, EvaluateSettings, separate

SETTINGS = EvaluateSettings


def run(settings: EvaluateSettings, config: str | None = None) -> None:
    """Embeds, measures, prints, logs; see `report.evaluation`."""
    for model in separate(settings.model):
        check_model(model)
    if settings.protocol in STORE_PROTOCOLS:
        check_data(settings.data)
    from facerec.report.evaluation import run as evaluate

    evaluate(settings, config)

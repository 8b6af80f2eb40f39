"""Optuna studies over the settings of `train`: spaces, trials in MLflow, workers, the study's page."""

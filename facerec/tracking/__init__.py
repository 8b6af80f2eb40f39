"""MLflow: runs, what waits for an unreachable server, logged and registered models, experiments."""

"""What a run left, in MLflow and on disk."""

from __future__ import annotations

from mlflow.tracking import MlflowClient
from safetensors.torch import load_file


def weights(output, run_id):
    return load_file(output / run_id / "model" / "weights.safetensors")


def histories(run_id) -> dict[str, list[tuple[int, float]]]:
    """Every metric but timings and system metrics."""
    client = MlflowClient()
    names = [
        n
        for n in client.get_run(run_id).data.metrics
        if not n.startswith("system/") and "per_second" not in n
    ]
    return {
        n: sorted((m.step, m.value) for m in client.get_metric_history(run_id, n)) for n in names
    }


MAIN = "\nfrom facerec.cli import main\nmain()"


def only_run(uri: str | None = None):
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("facerec").experiment_id])
    return run

"""Training by several ranks of torchrun: the gradient of one process, one run in MLflow, one sentence at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import mlflow
import numpy as np
import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from facerec.errors import InputError
from facerec.training.resume import find
from tests.helpers import PROJECT
from tests.helpers.commands import TINY, environment, flags
from tests.helpers.ranks import LOSSES, one_step
from tests.helpers.runs import histories, weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
]  # six seconds a process to import, where the machine is busy


def torchrun(ranks: int, *what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), *what]
    child = environment(PYTHONPATH=str(PROJECT), OMP_NUM_THREADS="1")
    return subprocess.Popen(command, env=child, stderr=subprocess.PIPE, text=True, cwd=PROJECT)


def finished(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code, and the sentences of facerec on stderr."""
    _, said = process.communicate(timeout=800)
    print(said)
    return process.returncode, [line for line in said.splitlines() if line.startswith("facerec: ")]


def test_two_ranks_have_the_gradient_of_one_process(tmp_path):
    code, _ = finished(torchrun(2, "tests/helpers/ranks.py", "exchange", str(tmp_path)))
    assert code == 0
    for loss in LOSSES:
        ranks = [load_file(tmp_path / f"{loss}-{rank}.safetensors") for rank in range(2)]
        alone = one_step(loss, 32)
        assert any(name.startswith("objective/") for name in alone) == (loss == "arcface")
        assert alone["loss"] > 0
        for name, expected in alone.items():
            assert torch.equal(ranks[0][name], ranks[1][name]), name
            torch.testing.assert_close(ranks[0][name], expected, atol=1e-5, rtol=1e-5)
    facts = [json.loads((tmp_path / f"facts-{rank}.json").read_text()) for rank in range(2)]
    assert facts[0]["seed"] != facts[1]["seed"]
    assert [(f["code"], f["step"]) for f in facts] == [(143, 1)] * 2  # rank 1 alone was asked
    assert [f["error"] for f in facts] == ["refused by rank 0"] * 2


def test_one_process_draws_what_it_always_did():
    with_rank, without = (np.random.SeedSequence(s).generate_state(4) for s in ([5, 7, 0], [5, 7]))
    assert (with_rank == without).all()


def test_three_ranks_resume_bit_for_bit(tmp_path):
    """Three, since the sum of two does not depend on the order in which it is taken."""
    code, _ = finished(torchrun(3, "tests/helpers/ranks.py", "resume", str(tmp_path)))
    assert code == 0
    first = load_file(tmp_path / "whole-0.safetensors")
    for kind in ("whole", "resumed"):
        for rank in range(3):
            for name, tensor in load_file(tmp_path / f"{kind}-{rank}.safetensors").items():
                assert torch.equal(tensor, first[name]), (kind, rank, name)


def train(output, *more: str) -> subprocess.Popen[str]:
    settings = {**TINY, "batch_size": "32", "epochs": "2", "checkpoint_minutes": "0.005"}
    return torchrun(
        2,
        "--shutdown-timeout=300",
        "-m",
        "facerec",
        "train",
        *flags({**settings, "output": str(output)}),
        *more,
    )


def kill_rank(process: subprocess.Popen[str], rank: int) -> None:
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == str(rank):
            os.kill(child.pid, signal.SIGKILL)


def test_a_lost_rank_ends_the_others_and_the_run_goes_on(tmp_path, own_tracking):
    code, said = finished(train(tmp_path / "whole"))
    assert code == 0 and not said
    (whole,) = mlflow.search_runs(experiment_names=["facerec"], output_format="list")

    killed = train(tmp_path / "killed")
    for line in killed.stderr:
        if line.startswith("epoch 1/"):
            kill_rank(killed, 1)
            break
    code, said = finished(killed)
    told = [
        line for line in said if "stopping after" not in line
    ]  # torchrun's SIGTERM may come first
    assert code != 0 and len(told) == 1 and "another rank" in told[0], said
    newer = mlflow.search_runs(experiment_names=["facerec"], output_format="list")
    (run_id,) = {run.info.run_id for run in newer} - {whole.info.run_id}
    assert MlflowClient().get_run(run_id).info.status == "FAILED"
    with pytest.raises(InputError, match=r"trained by 2 rank\(s\), and this is to be 1"):
        find(str(tmp_path / "killed"), run_id).check_ranks(1)

    code, said = finished(train(tmp_path / "killed", "--resume", "last"))
    assert code == 0, said
    assert MlflowClient().get_run(run_id).info.status == "FINISHED"
    one, other = (
        weights(tmp_path / "whole", whole.info.run_id),
        weights(tmp_path / "killed", run_id),
    )
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    assert histories(run_id) == histories(whole.info.run_id)
    assert [m.step for m in MlflowClient().get_metric_history(run_id, "train/loss")] == [1, 2]


def test_sigterm_to_torchrun_saves_and_the_run_goes_on(tmp_path, own_tracking):
    """What a pre-empted node sends: torchrun hands it to every rank and waits."""
    process = train(tmp_path, "--epochs", "40")
    for line in process.stderr:
        if line.startswith("epoch 1/"):
            process.send_signal(signal.SIGTERM)
            break
    code, said = finished(process)
    assert code != 0 and any("stopping after this step" in line for line in said), said
    (run,) = mlflow.search_runs(experiment_names=["facerec"], output_format="list")
    assert run.info.status == "KILLED"
    saved = find(str(tmp_path), run.info.run_id).checkpoint
    assert saved.step > 0
    resumed = train(tmp_path, "--epochs", "40", "--resume", "last")
    for line in resumed.stderr:
        if line.startswith("epoch 2/"):
            resumed.send_signal(signal.SIGTERM)
            break
    finished(resumed)
    assert MlflowClient().get_run(run.info.run_id).info.status == "KILLED"
    assert find(str(tmp_path), run.info.run_id).checkpoint.step > saved.step


def test_bad_input_is_told_once(tmp_path, own_tracking):
    code, said = finished(train(tmp_path, "--batch-size", "60000"))
    assert code != 0 and len(said) == 1 and "all 2 ranks" in said[0], said

"""Ten skipped steps in a row, as a user sees them: `elasticmoe train` with a router that breaks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from elasticmoe.cluster.journal_file import read_journal
from elasticmoe.controller.decisions import Recover
from elasticmoe.controller.history import check_history
from elasticmoe.controller.record import Decided

ROOT = Path(__file__).parents[2]
JOB = """
version = 1
name = "tiny"
[model]
vocab_size = 256
hidden_size = 16
num_layers = 2
first_dense_layers = 1
dense_hidden_size = 16
attention = { kind = "gqa", num_heads = 2 }
moe = { num_experts = 4, top_k = 2, expert_hidden_size = 16, router = "breaking_router:BreakingRouter" }
[data]
sources = [{ path = "data" }]
seq_len = 16
[batch]
global_samples = 8
num_waves = 2
[optimizer]
learning_rate = 1e-3
[schedule]
steps = 40
[parallel]
stages = 2
[workers]
replicas = 2
min = 1
max = 2
device = "cpu"
[checkpoint]
interval_steps = 4
[storage]
dir = "run"
"""  # noqa: E501
STUCK = "steps 14 to 23 changed nothing: their losses or gradients were not finite"
BEFORE = "all went back to the checkpoint of step 12"
"""The newest checkpoint, of step 20, has the same weights as step 13."""
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(240)]


def train(directory: Path, waves: str) -> subprocess.CompletedProcess[str]:
    """Train with a router whose waves, two to a step, are not finite from one to another."""
    (directory / "job.toml").write_text(JOB)
    (directory / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 500)
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "BREAKING_ROUTER_WAVES": waves}
    for arguments in ("data pack text.txt --out data", "train job.toml --plain"):
        done = subprocess.run(
            [sys.executable, "-c", "from elasticmoe.cli import main; main()", *arguments.split()],
            cwd=directory,
            env={**os.environ, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return done


def check_records(directory: Path) -> None:
    """What was gone back to, and that every step and sample is there once."""
    records = read_journal(directory / "run" / "journal")
    assert check_history(records) == []
    decided = [record.body.decision for record in records if isinstance(record.body, Decided)]
    (recover,) = [one for one in decided if isinstance(one, Recover)]
    assert (recover.rung, recover.step) == ("checkpoint", 12)
    assert {Path(uri).name for uri in recover.refused} == {"step-00000020", "step-00000016"}


def test_steps_that_are_skipped_for_a_while_cost_a_way_back_to_before_them(tmp_path: Path) -> None:
    done = train(tmp_path, "27-46")

    assert done.returncode == 0, done.stdout
    assert re.search(rf"{STUCK}; {BEFORE} .* 11 steps redone; nothing else lost", done.stdout)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["outcome"], summary["steps"]) == ("done", 40)
    assert (summary["recoveries"], summary["workers_lost"]) == (1, 0)
    check_records(tmp_path)


def test_steps_that_are_skipped_again_end_the_job_with_advice(tmp_path: Path) -> None:
    done = train(tmp_path, "27-1000000")

    assert done.returncode == 1, done.stdout
    assert len(re.findall(BEFORE, done.stdout)) == 1
    assert "error: the job ended at step 22: the same failure twice" in done.stdout
    assert "Trying again does not cure it. Lower optimizer.learning_rate" in done.stdout
    check_records(tmp_path)

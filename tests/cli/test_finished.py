"""`train` on a directory that holds a finished run, and `--fresh`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from elasticmoe.cli import finished, main
from elasticmoe.cli import train as train_module
from elasticmoe.cluster.directory import lock_directory
from elasticmoe.errors import SpecError, StorageError
from elasticmoe.job_file import read_job
from elasticmoe.report.summary import Summary

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.toml"
SUMMARY = Summary(
    name="quickstart", outcome="done", reason="all 600 steps are done", steps=600, loss=1.5,
    bits_per_byte=2.0, order2_bits_per_byte=3.0, heldout_tokens=100, tokens_per_s=10.0, wall_s=9.0,
    faults=0, recoveries=0, redone_steps=0, outage_s=0.0, workers_lost=0, nodes_lost=0,
    checkpoint="step-00000600", plot=None, sample="def f", note="", directory="run",
    first_error=None, first_error_log=None,
)  # fmt: skip


def test_a_finished_run_is_shown_again_and_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, outcome = tmp_path / "run", {"outcome": "done", "steps": 600}
    run.mkdir()
    (run / "summary.json").write_text(json.dumps(asdict(SUMMARY)))
    monkeypatch.setattr(train_module, "check_data_is_packed", lambda job: None)
    monkeypatch.setattr(train_module, "finished_outcome", lambda job: outcome)

    with pytest.raises(SystemExit) as left:
        main(["train", str(QUICKSTART), "--set", f"storage.dir={run}"])

    out = capsys.readouterr().out
    assert left.value.code in (0, None)
    assert "2.000 bits per byte" in out
    assert "--fresh" in out


@pytest.mark.parametrize(
    "outcome",
    [None, {"outcome": "stopped", "steps": 600}, {"outcome": "done", "steps": 599}],
    ids=["none", "stopped", "shorter"],
)
def test_a_run_that_did_not_take_all_steps_goes_on(
    outcome: dict[str, Any] | None, tmp_path: Path
) -> None:
    job = read_job(QUICKSTART, [f"storage.dir={tmp_path}", "schedule.steps=600"])
    if outcome is not None:
        (tmp_path / "outcome.json").write_text(json.dumps(outcome))

    assert finished.finished_outcome(job) is None


def test_fresh_keeps_every_older_run_beside_the_new_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "run.1").mkdir()
    run.mkdir()
    (run / "summary.json").write_text("{}")

    kept = finished.set_aside(read_job(QUICKSTART, [f"storage.dir={run}"]))

    assert kept == tmp_path / "run.2"
    assert (kept / "summary.json").exists()
    assert not run.exists()


def test_fresh_does_not_move_the_directory_of_a_running_job(tmp_path: Path) -> None:
    job = read_job(QUICKSTART, [f"storage.dir={tmp_path / 'run'}"])

    with lock_directory(tmp_path / "run"), pytest.raises(StorageError, match="running job"):
        finished.set_aside(job)

    assert (tmp_path / "run").exists()


def test_fresh_refuses_when_checkpoints_lie_elsewhere(tmp_path: Path) -> None:
    places = [f"storage.dir={tmp_path / 'run'}", "storage.checkpoints=s3://bucket/run"]

    with pytest.raises(SpecError, match="moves only"):
        finished.set_aside(read_job(QUICKSTART, places))

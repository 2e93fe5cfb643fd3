import json
from pathlib import Path
from typing import Any

import pytest
from untrained import build_job, write_untrained

from elasticmoe.report.history import STEPS_FILE
from elasticmoe.report.summary import SUMMARY_FILE, conclude

OUTCOME = {
    "outcome": "done",
    "reason": "all 10 steps are done",
    "steps": 10,
    "loss": 3.0,
    "wall_s": 20.0,
    "faults": 1,
    "recoveries": 1,
    "redone_steps": 4,
    "outage_s": 0.5,
    "workers_lost": 1,
    "nodes_lost": 0,
    "newest_checkpoint": "somewhere",
    "first_error": None,
    "first_error_log": None,
}


def _write_steps(job_dir: Path, count: int) -> None:
    job_dir.mkdir(exist_ok=True)
    lines = [
        json.dumps({"at_s": 100.0 + step, "step": step, "generation": 1, "loss": 3.0})
        for step in range(1, count + 1)
    ]
    (job_dir / STEPS_FILE).write_text("\n".join(lines) + "\n")


def _written(job_dir: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((job_dir / SUMMARY_FILE).read_text())
    return written


def test_a_job_that_is_done_is_evaluated_and_drawn(tmp_path: Path) -> None:
    job = build_job(tmp_path)
    write_untrained(job)
    _write_steps(tmp_path / "run", 10)

    summary = conclude(job, OUTCOME)

    assert summary.bits_per_byte == pytest.approx(8.0, abs=0.3)
    assert summary.tokens_per_s == pytest.approx(10 * 8 * 16 / 20.0)
    assert summary.plot is not None
    assert Path(summary.plot).exists()
    written = _written(tmp_path / "run")
    expected = {"steps", "loss", "bits_per_byte", "order2_bits_per_byte", "tokens_per_s", "wall_s"}
    assert expected <= written.keys()
    assert (written["faults"], written["redone_steps"]) == (1, 4)


def test_a_job_that_failed_is_not_evaluated(tmp_path: Path) -> None:
    job = build_job(tmp_path)
    _write_steps(tmp_path / "run", 3)

    summary = conclude(job, OUTCOME | {"outcome": "failed", "steps": 3})

    assert summary.bits_per_byte is None
    assert summary.outcome == "failed"
    assert _written(tmp_path / "run")["outcome"] == "failed"


def test_a_checkpoint_that_is_gone_is_a_note_and_no_failure(tmp_path: Path) -> None:
    job = build_job(tmp_path)
    _write_steps(tmp_path / "run", 10)

    summary = conclude(job, OUTCOME)

    assert summary.outcome == "done"
    assert summary.bits_per_byte is None
    assert "not evaluated" in summary.note

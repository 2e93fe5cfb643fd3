"""A run of faults comes to a verdict, whatever the job does."""

from pathlib import Path

from chaos.run import execute
from chaos.scenario import from_plain


def test_a_job_that_never_begins_is_a_verdict_when_the_time_is_over(tmp_path: Path) -> None:
    scenario = from_plain(
        {
            "name": "nothing",
            "limit_s": 0.05,
            "fault": [{"at_step": 1, "strike": [{"nemesis": "kill_worker"}]}],
        }
    )
    (tmp_path / "job" / "journal").mkdir(parents=True)

    report = execute(scenario, tmp_path, attach=tmp_path / "job")

    assert not report.is_clean
    assert "time limit of 0.05 s: waited for a first step" in report.problems[0]
    assert (tmp_path / "report.md").exists()

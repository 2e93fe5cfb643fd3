import json

import numpy as np
import pytest

from benchmarks.cold_start import _as_toml
from benchmarks.figures import Report, upper_95
from benchmarks.rivals.job import Workload
from elasticmoe.spec.load import parse_toml, to_data


def test_the_last_line_of_a_report_is_json_of_its_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report()
    report.times("step", [0.1, 0.3, 0.2])
    report.figure("ratio", 0.9, least=0.95)

    report.print()

    lines = capsys.readouterr().out.splitlines()
    assert "200.00 ms" in lines[0]
    assert "MISSED" in lines[1]
    assert json.loads(lines[-1]) == {"ratio": 0.9}


def test_the_upper_bound_covers_the_mean_about_39_times_in_40() -> None:
    random = np.random.default_rng(0)
    covered = [upper_95(random.normal(3.0, 1.0, 20).tolist()) > 3.0 for _ in range(2000)]

    assert sum(covered) / len(covered) == pytest.approx(0.975, abs=0.01)


def test_a_workload_written_as_a_job_file_is_read_back_the_same() -> None:
    job = Workload("quickstart", data="corpus").job(storage={"dir": "somewhere"})

    assert parse_toml(_as_toml(to_data(job))) == job

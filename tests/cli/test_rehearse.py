"""`elasticmoe rehearse`: full size in the simulator, real steps here, and a report."""

import json
from pathlib import Path
from typing import Any

import pytest

from elasticmoe.cli import main

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "examples" / "quickstart.toml")
LARGE = """
version = 1
name = "large"
[model]
preset = "deepseek-v3"
[data]
sources = [{ path = "nowhere" }]
seq_len = 4096
[batch]
global_samples = 1024
num_waves = 16
[optimizer]
learning_rate = 2e-4
[schedule]
steps = 100000
[parallel]
stages = 8
expert_replicas = "one"
[workers]
replicas = 32
min = 16
max = 32
[storage]
dir = "run"
"""


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(("rehearse", *arguments))
    code = left.value.code
    return code if isinstance(code, int) else 0


def _report(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "rehearsal.json").read_text())
    return found


def test_a_simulated_rehearsal_reports_what_failures_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"

    code = _run(
        QUICKSTART, "--steps", "0", "--seeds", "3", "--mtbf", "0.005", "--nodes", "4",
        "--hours", "0.01", "--out", str(out),
    )  # fmt: skip

    assert code == 0
    report = _report(out)
    simulated = report["simulated"]
    assert (report["sound"], report["real"], simulated["seeds"]) == (True, None, 3)
    assert sum(simulated["faults"].values()) > 0
    goodput = simulated["goodput"]
    assert 0 < goodput["low"] < goodput["mean"] < goodput["high"] <= 1
    assert goodput["smallest"] < goodput["mean"] < goodput["largest"] < 1
    outages = sum(rung["outages"] for rung in simulated["rung_s"].values())
    assert outages > 0
    assert all(0 < rung["median_s"] <= rung["largest_s"] for rung in simulated["rung_s"].values())
    text = (out / "rehearsal.txt").read_text()
    assert "goodput" in text
    assert "Weibull" in text
    assert "report: " in capsys.readouterr().out


def test_equal_seeds_give_equal_reports(tmp_path: Path) -> None:
    command = (QUICKSTART, "--steps", "0", "--seeds", "2", "--mtbf", "0.01", "--hours", "0.01")

    first = _run(*command, "--seed", "5", "--out", str(tmp_path / "first"))
    second = _run(*command, "--seed", "5", "--out", str(tmp_path / "second"))

    assert (first, second) == (0, 0)
    assert _report(tmp_path / "first") == _report(tmp_path / "second")


def test_a_trace_brings_its_own_nodes_and_length(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("0,add,a\n0,add,b\n20000,remove,a\n30000,add,c\n40000,remove,b\n60000,add,d\n")

    code = _run(
        QUICKSTART, "--steps", "0", "--seeds", "2", "--trace", str(trace), "--nodes", "2",
        "--out", str(tmp_path / "report"),
    )  # fmt: skip

    report = _report(tmp_path / "report")
    assert code == 0
    assert report["full"]["hours"] == pytest.approx(60 / 3600)
    assert report["simulated"]["faults"] == {"lose_node": 4, "node_up": 2}
    assert "trace.csv" in report["assumed"][0]


def test_a_model_of_671_billion_parameters_is_rehearsed_without_real_steps(
    tmp_path: Path,
) -> None:
    job = tmp_path / "large.toml"
    job.write_text(LARGE)

    code = _run(
        str(job), "--steps", "0", "--seeds", "2", "--hours", "0.25", "--mtbf", "4",
        "--out", str(tmp_path / "report"),
    )  # fmt: skip

    report = _report(tmp_path / "report")
    assert code == 0
    assert report["full"]["parameters"] > 670e9
    assert len(report["full"]["stage_worker_bytes"]) == 8
    assert min(report["full"]["stage_worker_bytes"]) > 671e9 * 12 / 32 / 2
    assert report["full"]["step_s"] > 1.0
    assert report["full"]["step_is"].startswith("estimated")
    assert report["full"]["nodes"] == 4


def test_real_steps_of_a_model_too_large_for_this_machine_are_refused_with_the_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    job = tmp_path / "large.toml"
    job.write_text(LARGE.replace("nowhere", str(tmp_path / "data")))

    code = _run(str(job), "--set", "workers.device=cpu", "--out", str(tmp_path / "report"))

    err = capsys.readouterr().err
    assert code == 1
    assert "bytes of memory left, the plan for 8 workers puts" in err
    assert "--steps 0" in err
    assert not (tmp_path / "report").exists()


def test_nodes_too_small_for_a_single_worker_are_refused_with_the_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _run(QUICKSTART, "--steps", "0", "--node-gb", "0.001", "--out", str(tmp_path / "report"))

    err = capsys.readouterr().err
    assert code == 1
    assert "--node-gb 0.001: the fullest of 4 nodes would need" in err
    assert not (tmp_path / "report").exists()


def test_nodes_get_no_more_workers_than_their_memory_holds(tmp_path: Path) -> None:
    command = (QUICKSTART, "--steps", "0", "--seeds", "2", "--hours", "0.001", "--mtbf", "0")
    _run(*command, "--set", "workers.replicas=8", "--out", str(tmp_path / "wide"))
    worker_gb = max(_report(tmp_path / "wide")["full"]["stage_worker_bytes"]) / 1e9

    code = _run(
        *command, "--set", "workers.replicas=8", "--node-gb", str(2.5 * worker_gb),
        "--out", str(tmp_path / "narrow"),
    )  # fmt: skip

    assert code == 0
    assert _report(tmp_path / "wide")["full"]["nodes"] == 2
    assert _report(tmp_path / "narrow")["full"]["nodes"] == 4


@pytest.mark.parametrize(
    "options, said",
    [
        (("--steps", "2"), "--steps 2: 3 or more show a speed; 0 only simulates"),
        (("--step-s", "0"), "--step-s 0: must be a number above 0"),
        (("--mtbf", "inf"), "--mtbf inf: must be a number above 0"),
        (("--hours", "nan"), "--hours nan: must be a number above 0"),
        (("--node-gb", "-1"), "--node-gb -1: must be a number above 0"),
        (("--trace", "nowhere.csv"), "nowhere.csv cannot be read: No such file or directory"),
        (("--set", "workers.replicas=9"), "replicas 9 is not in min 1 .. max 8"),
        (("--steps", "5"), "elasticmoe data pack --stdlib --out data/stdlib"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_code_2(
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    code = _run(QUICKSTART, *options)

    err = capsys.readouterr().err
    assert code == 2
    assert said in err
    assert err.count("error: ") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_real_steps_are_taken_at_the_smallest_layout_and_leave_only_the_report(
    tmp_path: Path,
) -> None:
    from elasticmoe.runtime.pack import pack

    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 2000)
    pack([text], tmp_path / "data")
    out = tmp_path / "report"

    code = _run(
        QUICKSTART, "--steps", "6", "--seeds", "2", "--hours", "0.005", "--plain",
        "--set", f'data.sources=[{{path="{tmp_path / "data"}"}}]', "--set", "data.seq_len=32",
        "--set", "workers.device=cpu", "--out", str(out),
    )  # fmt: skip

    assert code == 0
    report = _report(out)
    real = report["real"]
    assert (real["workers"], real["stages"]) == (2, 2)
    assert real["steps"] >= 6
    assert 0 < real["step_s"] <= real["slowest_step_s"]
    assert real["full_step_s"] == pytest.approx(real["step_s"] / 2)
    assert real["seen_bytes"] > real["planned_bytes"] > 0
    assert real["last_loss"] < real["first_loss"]
    assert report["cut"][0].startswith("2 of 4 workers")
    assert sorted(path.name for path in out.iterdir()) == ["rehearsal.json", "rehearsal.txt"]

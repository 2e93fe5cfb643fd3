"""`elasticmoe simulate`: a table, a report, and hostile schedules."""

import json
import re
from pathlib import Path

import pytest

from elasticmoe.cli.app import main

JOB = Path(__file__).parents[2] / "examples" / "quickstart.toml"


def _run(*arguments: str) -> None:
    main(["simulate", *arguments])


def _last_json(text: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(text.strip().splitlines()[-1])
    return found


def _ends_well(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        _run(*arguments)
    assert ended.value.code == 0


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        _run(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_run_prints_its_bill_and_leaves_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"

    _ends_well(str(JOB), "--nodes", "4", "--hours", "0.05", "--mtbf", "0.1", "--out", str(out))

    text = capsys.readouterr().out
    figures = json.loads((out / "simulation.json").read_text())
    assert "goodput" in text
    assert figures["faults"] > 0
    assert figures["broken_promises"] == []
    assert 0.0 < figures["goodput"] < 1.0
    assert (out / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert "train from step 1" in (out / "story.txt").read_text()


def test_a_trace_takes_nodes_away_and_brings_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("0,add,a\n0,add,b\n30000,remove,a\n60000,add,c\n")

    _ends_well(str(JOB), "--trace", str(trace), "--nodes", "2", "--hours", "0.03")

    text = capsys.readouterr().out
    assert "lose_node 1, node_up 1" in text
    assert "failover 1" in text
    assert re.search(r"on the trace +[5-9]\d\.\d\d% of what its nodes could do", text)


def test_hostile_schedules_end_with_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    _ends_well("--schedules", "3", "--workers", "6")

    figures = _last_json(capsys.readouterr().out)
    assert figures["schedules"] == 3
    assert figures["faults"] >= 3
    assert figures["failing"] == 0


def test_processes_that_share_the_work_find_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    _ends_well("--schedules", "3", "--workers", "6")
    alone = _last_json(capsys.readouterr().out)

    _ends_well("--schedules", "3", "--workers", "6", "--processes", "2")

    shared = _last_json(capsys.readouterr().out)
    same = ("schedules", "faults", "failing")
    assert [shared[name] for name in same] == [alone[name] for name in same]


def test_one_schedule_is_told_as_a_story(capsys: pytest.CaptureFixture[str]) -> None:
    _ends_well("--schedules", "1", "--seed", "2")

    text = capsys.readouterr().out
    assert "fault: " in text
    assert "job simulated: 30 steps" in text


def test_a_wrong_cost_is_a_mistake_in_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = tmp_path / "costs.json"
    costs.write_text('{"stepp_s": 1}')

    with pytest.raises(SystemExit) as ended:
        _run(str(JOB), "--costs", str(costs))

    assert ended.value.code == 2
    assert "costs.stepp_s: unknown; did you mean step_s?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("step_s = 1", "is not JSON: Expecting value"),
        ("[1]", 'write a JSON object, {"step_s": 0.2} for example'),
        ('{"step_s": 0}', "costs.step_s: 0 is not a number above 0"),
        ('{"step_s": [1, 2]}', "costs.step_s: [1, 2] is not a number above 0"),
        ('{"move_bytes_per_s": Infinity}', "costs.move_bytes_per_s: inf is not a number above 0"),
        ('{"fork_s": true}', "costs.fork_s: True is not a number of at least 0"),
        ('{"park_s": [2, 1]}', "costs.park_s: [2, 1] is not two numbers, the smaller one first"),
        ('{"park_s": 1}', "costs.park_s: 1 is not two numbers"),
        ('{"fixed_share": 3}', "costs.fixed_share: 3 is not a number from 0 to 1"),
        (f'{{"fork_s": {10**400}}}', "is not a number of at least 0"),
    ],
)
def test_costs_that_nothing_can_cost_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    costs = tmp_path / "costs.json"
    costs.write_text(text)

    assert sentence in _refused(capsys, str(JOB), "--costs", str(costs))


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ("", "has no row: write rows ms,op,node"),
        ("0,add,a\n5,drop,a\n", "trace line 2: op is 'drop'; write add or remove."),
        ("0,add,a\n5,remove,b\n", "trace line 2: node is 'b'; add a node before it is removed."),
        ("0,add,\xff\n", "cannot be read: it is not text"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_trace_is_refused_with_its_name_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: str | None, sentence: str
) -> None:
    trace = tmp_path / "trace.csv"
    if rows is not None:
        trace.write_bytes(rows.encode("latin-1"))

    said = _refused(capsys, str(JOB), "--trace", str(trace))

    assert f"--trace {trace}" in said
    assert sentence in said


def test_endless_time_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = _refused(capsys, str(JOB), "--hours", "inf", "--mtbf", "inf")

    assert "--hours inf: must be a number above 0" in said
    assert "--mtbf inf: must be a number above 0" in said


def test_a_report_that_has_no_place_is_refused_before_anything_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SystemExit) as ended:
        _run(str(JOB), "--hours", "1000", "--out", str(tmp_path / "file"))

    assert ended.value.code == 1
    assert f"--out {tmp_path / 'file'} cannot be made: File exists" in capsys.readouterr().err


def test_rivals_are_compared_on_a_trace_with_measured_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, measured, out = tmp_path / "trace.csv", tmp_path / "recovery.txt", tmp_path / "out"
    rows = [f"0,add,n{number}" for number in range(24)]
    trace.write_text("\n".join([*rows, "3600000,remove,n3", "7200000,remove,n5"]) + "\n")
    measured.write_text('a table\n{"node_loss_s": 0.5}\n')

    _ends_well("--rivals", "--trace", str(trace), "--measured", str(measured), "--out", str(out))

    text = capsys.readouterr().out
    assert "failover_s of elasticmoe is 0.5 (node_loss_s)" in text
    assert 0.5 < _last_json(text)["goodput, elasticmoe"] < 1.0
    kept = json.loads((out / "rivals.json").read_text())
    assert [row["model"] for row in kept["rows"]][:2] == ["elasticmoe", "elasticmoe, 3 homes"]
    assert ["elasticmoe", "failover_s", "0.5"] in kept["assumptions"]
    assert (out / "rivals.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_of_measurements_with_a_wrong_field_is_refused_by_both_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, measured = tmp_path / "trace.csv", tmp_path / "recovery.json"
    trace.write_text("0,add,a\n")
    measured.write_text('{"parts": {"ours-2": {"recoveries": []}}}')

    said = _refused(capsys, "--rivals", "--trace", str(trace), "--measured", str(measured))

    assert f"--measured {measured}: parts.ours-2.recoveries: there is none" in said


def test_rivals_need_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _run("--rivals")

    assert ended.value.code == 2
    assert "add --trace FILE" in capsys.readouterr().err

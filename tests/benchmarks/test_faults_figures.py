"""Figures of the faults benchmark, from made-up parts: no process is started here."""

from typing import Any

import pytest

from benchmarks.faults import PARTS
from benchmarks.faults_report import report_faults
from benchmarks.recovery_sides import stall_bound_s
from benchmarks.recovery_timeline import Kill, Recovery
from elasticmoe.controller.decisions import Break, Casualty
from elasticmoe.controller.record import Decided, Record

KILL = Kill(at_s=10.0, victim=1, pid=4711, era=3, into_step=0.5)


def part(*overheads_s: float, rung: str = "replace", **more: Any) -> dict[str, Any]:
    recoveries = [
        Recovery(
            overhead_s=overhead_s,
            any_s=overhead_s + 0.1,
            beyond_s=overhead_s + 0.1,
            full_s=overhead_s + 0.1,
            rolled_back=0,
            open_redone=True,
            rung=rung,
            **more,
        ).to_json()
        for overhead_s in overheads_s
    ]
    return {
        "run": "today",
        "name": "ours",
        "step_s": 0.1,
        "false_alarms": 0,
        "other_rungs": 0,
        "recoveries": recoveries,
    }


def figures(**parts: dict[str, Any]) -> dict[str, float]:
    named = {name.replace("_", "-"): each for name, each in parts.items()}
    return report_faults({"workload": [], "parts": named, "watches": {}}).figures


def test_a_hang_is_what_it_costs_beyond_a_step_in_the_worst_gang() -> None:
    found = figures(hang_2=part(0.3, 0.4, 0.5), hang_4=part(0.35, 0.45, 0.65))

    assert found["hang_s"] == pytest.approx(0.35)
    assert 0.5 < found["hang_p95_s"] < 0.55
    assert (found["faults"], found["other_rungs"]) == (6, 0)


def test_a_loop_is_held_to_its_stall_bound_and_a_step() -> None:
    found = figures(loop_2=part(0.6, 0.6, bound_s=0.4))

    assert found["loop_s"] == pytest.approx(0.6)
    assert found["loop_beyond_bound_s"] == pytest.approx(0.1)


def test_what_was_not_to_be_had_has_no_figure_and_is_said() -> None:
    left_out = {"run": "today", "left_out": "network namespaces need root"}
    report = report_faults({"workload": [], "parts": {"node-loss": left_out}, "watches": {}})

    assert report.figures == {}


def test_every_part_of_ours_has_its_figures() -> None:
    names = [name for group in PARTS.values() for name in group]

    found = figures(**{name: part(0.5) for name in names})

    kinds = ["hang", "loop", "loop_beyond_bound", "node_loss", "partition", "dropped_connection"]
    kinds += ["hang_busy", "kill_busy", "loop_busy_beyond_bound", "dropped_connection_busy"]
    kinds += ["node_loss_busy", "partition_busy"]
    assert {f"{kind}_s" for kind in kinds} <= set(found)
    assert found["faults"] == len(names)


def test_a_rival_that_never_noticed_is_said_to_have_noticed_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rival = {"run": "today", "name": "rival", "limit_s": 120.0, "seconds": [None, 3.25]}

    report_faults({"workload": [], "parts": {}, "watches": {"rival": rival}}).print()

    assert "not within 120 s, 3.25 s" in capsys.readouterr().out


@pytest.mark.parametrize("kind,bound_s", [("stalled", 0.25), ("silent", 0.0)])
def test_the_stall_bound_is_told_where_a_stall_was_the_sign(kind: Any, bound_s: float) -> None:
    broken = Break(10.4, 3, (Casualty(kind, -1, "", "no step"),), "no step")

    assert stall_bound_s(KILL, [Record(0, Decided(0, broken))]) == bound_s

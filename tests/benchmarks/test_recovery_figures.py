"""What a kill cost, from made-up timelines: no process is started here."""

import threading
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.crew import CrewError
from benchmarks.recovery_report import best_heartbeat, combine, report_recovery
from benchmarks.recovery_rivals import split_restart, split_torchft
from benchmarks.recovery_sides import split_journal
from benchmarks.recovery_timeline import (
    NO_ERA,
    Commit,
    Kill,
    Mark,
    Recovery,
    Timeline,
    as_recovery,
    count_alarms,
    look_after,
    split_at,
)
from elasticmoe.controller.decisions import Break, Form, Recover
from elasticmoe.controller.record import Decided, Record
from elasticmoe.messages.events import Reported
from elasticmoe.messages.worker import GangFormed

KILL = Kill(at_s=10.0, victim=1, pid=4711, era=3, into_step=0.5)


def commit(at_s: float, step: int, era: int = 3, workers: int = 2, **more: float) -> Commit:
    return Commit(at_s=at_s, step=step, seconds=0.1, workers=workers, era=era, **more)


def test_overhead_ends_where_the_first_step_that_commits_begins() -> None:
    commits = [commit(9.95, 7), commit(10.15, 8, era=4)]

    found = look_after(KILL, commits, 2)

    assert found is not None
    recovery = as_recovery(KILL, found)
    assert recovery.overhead_s == pytest.approx(0.05)
    assert recovery.any_s == recovery.beyond_s == recovery.full_s == pytest.approx(0.15)
    assert recovery.rolled_back == 0
    assert recovery.open_redone


def test_a_step_of_the_old_generation_is_no_recovery_however_late_it_is_told() -> None:
    late = replace(commit(10.2, 8), seconds=0.05)
    commits = [commit(9.95, 7), late, commit(10.4, 9, era=4)]

    found = look_after(KILL, commits, 2)

    assert found is not None
    assert found.first.step == 9
    assert as_recovery(KILL, found).rolled_back == 0


def test_an_open_step_that_survivors_committed_is_not_redone() -> None:
    found = look_after(KILL, [commit(9.95, 7), commit(10.2, 9, era=4)], 2)

    assert found is not None
    assert not as_recovery(KILL, found).open_redone


def test_steps_that_come_again_were_rolled_back() -> None:
    kill = replace(KILL, era=NO_ERA)
    steps = [commit(9.9, 7, era=0), commit(12.0, 6, era=0), commit(12.1, 7, era=0)]
    steps += [commit(12.2, 8, era=0)]

    found = look_after(kill, steps, 2)

    assert found is not None
    recovery = as_recovery(kill, found)
    assert recovery.rolled_back == 2
    assert not recovery.open_redone
    assert recovery.any_s == pytest.approx(2.0)
    assert recovery.beyond_s == pytest.approx(2.2)


def test_full_strength_comes_with_the_step_that_all_workers_take() -> None:
    steps = [commit(9.9, 7), commit(10.2, 8, era=4, workers=1), commit(13.0, 9, era=5)]

    found = look_after(KILL, steps, 2)

    assert found is not None
    assert as_recovery(KILL, found).full_s == pytest.approx(3.0)
    assert look_after(KILL, steps[:2], 2) is None


def test_a_wait_inside_the_first_step_counts_as_overhead() -> None:
    found = look_after(KILL, [commit(9.95, 7), commit(10.25, 8, era=4, waited_s=0.06)], 2)

    assert found is not None
    assert as_recovery(KILL, found).overhead_s == pytest.approx(0.15 + 0.06)


def journal() -> list[Record]:
    plan: dict[str, Any] = {}
    formed = [
        GangFormed(4, 0, 8, {"groups": 0.01, "state": 0.02}),
        GangFormed(4, 2, 8, {"groups": 0.01, "state": 0.03}),
    ]
    bodies = [
        Decided(0, Break(10.02, 3, (), "")),
        Decided(1, Recover(10.05, "checkpoint", 7, 0, (), 1, 0.0, (), "")),
        Decided(2, Form(10.06, 4, 0, plan, (0, 2), "a", 7, None, 1, "")),
        *(Reported(10.12, "a", report) for report in formed),
    ]
    return [Record(number, body) for number, body in enumerate(bodies)]


def test_phases_of_ours_add_up_to_the_first_step() -> None:
    first = commit(10.25, 8, era=4)

    found = split_journal(KILL, first, journal())

    assert found["rung"] == "checkpoint"
    assert found["attempts"] == 1
    phases = found["phases"]
    assert list(phases) == ["detect", "decide", "start", "communicate", "move", "first step"]
    expected = [0.02, 0.03, 0.01, 0.06, 0.03, 0.1]
    assert list(phases.values()) == pytest.approx(expected)
    assert sum(phases.values()) == pytest.approx(first.at_s - KILL.at_s)


def test_phases_of_a_restart_end_with_the_slowest_worker() -> None:
    steps = [commit(9.9, 7, era=4), commit(12.0, 6, era=4), commit(12.2, 8, era=4)]
    found = look_after(KILL, [replace(steps[0], era=3), *steps[1:]], 2)
    marks = [Mark(10.5, "process", 0), Mark(10.6, "process", 1), Mark(11.5, "loaded", 0)]

    assert found is not None
    phases = split_restart(KILL, found, marks)

    assert phases["detect, start processes"] == pytest.approx(0.6)
    assert phases["load"] == pytest.approx(0.9)
    assert phases["redo"] == pytest.approx(0.2)
    assert sum(phases.values()) == pytest.approx(found.beyond.at_s - KILL.at_s)


def test_phases_of_torchft_tell_of_the_survivor_and_of_the_one_that_returns() -> None:
    alone = Commit(10.26, 8, 0.15, workers=1, era=4, waited_s=0.04)
    found = look_after(KILL, [commit(9.9, 7), alone, commit(13.0, 30, era=4)], 2)
    marks = [Mark(10.1, "failed", 0), Mark(10.2, "process", 1), Mark(12.5, "start", 1)]

    assert found is not None
    phases = split_torchft(KILL, found, marks)

    assert phases["detect"] == pytest.approx(0.1)
    assert phases["decide"] == pytest.approx(0.05)
    assert phases["first step"] == pytest.approx(0.11)
    assert phases["return: heal"] == pytest.approx(0.5)


def test_a_phase_that_ended_early_has_no_length() -> None:
    assert split_at(1.0, [("a", 2.0), ("b", 1.5), ("c", 3.0)]) == {"a": 1.0, "b": 0.0, "c": 1.0}


def test_signs_outside_every_outage_are_false_alarms() -> None:
    assert count_alarms([10.1, 11.9], [(10.0, 12.0)]) == 0
    assert count_alarms([10.1, 12.5, 12.6, 20.0], [(10.0, 12.0)]) == 2


def test_waiting_fails_with_the_reason_once_the_job_has_ended() -> None:
    timeline = Timeline()
    threading.Timer(0.05, timeline.end, ["the job ended: out of luck"]).start()

    with pytest.raises(CrewError, match="out of luck"):
        timeline.wait(lambda: False, "a step", 30.0)


def test_waiting_ends_with_the_line_that_was_waited_for() -> None:
    timeline = Timeline()
    threading.Timer(0.05, timeline.add, [commit(1.0, 1)]).start()

    timeline.wait(lambda: bool(timeline.commits()), "a step", 30.0)

    assert timeline.commits() == [commit(1.0, 1)]


def part(overhead_s: float, run: str = "one", false_alarms: int = 0) -> dict[str, Any]:
    recovery = Recovery(overhead_s, 0.2, 0.2, 0.3, 0, True, {"detect": 0.01}, "replace")
    return {
        "run": run,
        "name": "somebody",
        "step_s": 0.1,
        "false_alarms": false_alarms,
        "recoveries": [recovery.to_json(), recovery.to_json()],
    }


def found(**parts: dict[str, Any]) -> dict[str, Any]:
    named = {name.replace("_", "-"): each for name, each in parts.items()}
    return {"workload": ["--batch=8"], "parts": named, "watches": {}}


def test_the_figures_compare_us_with_the_best_of_each_rival(
    capsys: pytest.CaptureFixture[str],
) -> None:
    everything = found(
        ours_2_replace=part(0.05),
        torchrun=part(3.0),
        ray_train_fastest=part(7.0),
        torchft_100=part(0.08, false_alarms=1),
        torchft_250=part(0.2),
        torchft_500=part(0.4),
    )

    report = report_recovery(everything)
    report.print()

    assert report.figures["recovery_overhead_s"] == 0.05
    assert report.figures["overhead_vs_torchft_swept"] == 0.25
    assert report.figures["vs_torchrun"] == report.figures["vs_ray_train"] == 1.0
    assert "NOT WATCHED" in capsys.readouterr().out


def test_a_heartbeat_with_a_false_alarm_in_its_watch_is_not_the_best() -> None:
    everything = found(torchft_100=part(0.1), torchft_250=part(0.2))
    assert best_heartbeat(everything) == "torchft-100"

    everything["watches"]["torchft-100"] = {"false_alarms": 1}

    assert best_heartbeat(everything) == "torchft-250"


def test_parts_of_separate_runs_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    both = combine([found(ours_2_replace=part(0.05)), found(torchrun=part(3.0, run="two"))])

    report_recovery(both).print()

    assert "SEPARATE RUNS" in capsys.readouterr().out


def test_different_work_is_not_combined() -> None:
    other = {**found(torchrun=part(3.0)), "workload": ["--batch=16"]}

    with pytest.raises(ValueError, match="different workloads"):
        combine([found(ours_2_replace=part(0.05)), other])

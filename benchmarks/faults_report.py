"""Tables and figures of the faults benchmark, from what its parts found."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.figures import Report
from benchmarks.recovery_report import describe, p95, recoveries_of, report_part
from benchmarks.recovery_timeline import Recovery

Parts = Mapping[str, Mapping[str, Any]]
Cost = Callable[[Mapping[str, Any], Recovery], float]


def report_faults(found: Mapping[str, Any]) -> Report:
    """All tables and figures for which there are parts."""
    report, rivals = Report(), found["watches"]
    report.section("faults other than a kill; " + " ".join(found["workload"]))
    runs = sorted({each["run"] for each in (*found["parts"].values(), *rivals.values())})
    if len(runs) > 1:
        report.note("SEPARATE RUNS", f"these parts were not measured in one run: {runs}")
    parts = {}
    for name, part in found["parts"].items():
        if "left_out" in part:
            report.section(name)
            report.note("LEFT OUT", part["left_out"])
            continue
        parts[name] = part
        report_part(report, name, part)
        bounds = [each.bound_s for each in recoveries_of(part) if each.bound_s]
        if bounds:
            report.note("stall bound", describe(bounds))
        report.note("answered by another rung", str(part["other_rungs"]))
    _report_rivals(report, rivals)
    report.section("figures")
    if parts:
        _figures(report, parts)
    return report


def beyond_step(part: Mapping[str, Any], recovery: Recovery) -> float:
    """From the fault to the first forward of a step that commits, less one undisturbed step."""
    return float(recovery.overhead_s - part["step_s"])


def beyond_bound(part: Mapping[str, Any], recovery: Recovery) -> float:
    """The same, less the stall bound too."""
    return beyond_step(part, recovery) - recovery.bound_s


def overhead(part: Mapping[str, Any], recovery: Recovery) -> float:
    """From the fault to the first forward of a step that commits."""
    return recovery.overhead_s


def _figures(report: Report, parts: Parts) -> None:
    """Each is the worst of the parts whose names begin so."""
    _worst(report, parts, ["hang-2", "hang-4"], "hang", beyond_step, most=0.5)
    _worst(report, parts, ["loop-2", "loop-4"], "loop", overhead)
    _worst(report, parts, ["loop-2", "loop-4"], "loop_beyond_bound", beyond_bound, most=0.25)
    _worst(report, parts, ["node-loss"], "node_loss", overhead, most=1.0)
    _worst(report, parts, ["partition"], "partition", overhead)
    dropped = ["dropped-connection-2", "dropped-connection-4"]
    _worst(report, parts, dropped, "dropped_connection", overhead)
    _worst(report, parts, ["hang-busy"], "hang_busy", beyond_step, most=0.5)
    _worst(report, parts, ["kill-busy"], "kill_busy", overhead)
    _worst(report, parts, ["loop-busy"], "loop_busy_beyond_bound", beyond_bound, most=0.25)
    _worst(report, parts, ["dropped-connection-busy"], "dropped_connection_busy", overhead)
    _worst(report, parts, ["node-loss-busy"], "node_loss_busy", overhead, most=1.0)
    _worst(report, parts, ["partition-busy"], "partition_busy", overhead)
    every = [each for part in parts.values() for each in recoveries_of(part)]
    report.figure("faults", len(every))
    report.figure("steps_rolled_back", sum(each.rolled_back for each in every), most=0)
    report.figure("other_rungs", sum(part["other_rungs"] for part in parts.values()), most=0)
    report.figure("false_alarms", sum(part["false_alarms"] for part in parts.values()), most=0)


def _worst(
    report: Report,
    parts: Parts,
    names: Sequence[str],
    figure: str,
    cost: Cost,
    most: float | None = None,
) -> None:
    """Worst median and worst 95th percentile; the bar is the median's."""
    costs = [
        [cost(parts[name], each) for each in recoveries_of(parts[name])]
        for name in names
        if name in parts
    ]
    if costs:
        report.figure(f"{figure}_s", max(map(statistics.median, costs)), most=most)
        report.figure(f"{figure}_p95_s", max(map(p95, costs)))


def _report_rivals(report: Report, rivals: Parts) -> None:
    if rivals:
        report.section("rivals: SIGSTOP of a worker to the first forward of a step that commits")
    for each in rivals.values():
        limit_s = each["limit_s"]
        told = [
            f"not within {limit_s:g} s" if seconds is None else f"{seconds:.2f} s"
            for seconds in each["seconds"]
        ]
        report.note(each["name"], ", ".join(told))

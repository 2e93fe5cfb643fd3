"""A rehearsal as a person reads it."""

from collections.abc import Mapping
from statistics import median

from elasticmoe.cli.saying import format_duration
from elasticmoe.plan.describe import format_amount
from elasticmoe.report.rehearsal import Bounds, FullSize, RealSteps, Rehearsal, Simulated


def rehearsal_rows(rehearsal: Rehearsal) -> list[tuple[str, str]]:
    """Names and values; what was assumed and what went wrong come last."""
    rows = [
        *_size_rows(rehearsal.full),
        *_goodput_rows(rehearsal.full, rehearsal.simulated),
        *_rung_rows(rehearsal.simulated),
    ]
    if rehearsal.real is not None:
        rows += _real_rows(rehearsal.full, rehearsal.real)
        rows += [("cut", text) for text in rehearsal.cut]
    rows += [("assumed", text) for text in rehearsal.assumed]
    rows += [("BROKEN", text) for text in rehearsal.simulated.problems]
    rows += [("FAILED", text) for text in rehearsal.problems]
    return rows


def _size_rows(full: FullSize) -> list[tuple[str, str]]:
    largest = max(full.stage_worker_bytes)
    stage = full.stage_worker_bytes.index(largest)
    return [
        (
            "full size",
            f"{full.workers:,} workers in {full.stages} stages on {full.nodes:,} nodes in "
            f"{full.domains:,} failure domains; {format_amount(full.parameters, '')} parameters",
        ),
        (
            "memory",
            f"{format_amount(largest)} on the fullest worker (stage {stage}), "
            f"{format_amount(full.node_bytes)} on the fullest node, by the plan",
        ),
        ("a step", f"{full.step_s:.3g} s ({full.step_is})"),
    ]


def _goodput_rows(full: FullSize, simulated: Simulated) -> list[tuple[str, str]]:
    goodput, lost = simulated.goodput, simulated.steps_lost
    rows = [
        (
            "simulated",
            f"{_hours(full.hours)} of the job's {_hours(full.job_hours)}, "
            f"{simulated.seeds} times with different seeds",
        ),
        (
            "goodput",
            f"{goodput.mean:.2%} of the steps of an undisturbed run, start included; 95 % range "
            f"{_range(goodput)}; worst seed {goodput.smallest:.2%}",
        ),
    ]
    if goodput.low > 0:
        rows.append(
            (
                "whole job",
                f"{_hours(full.job_hours / goodput.high)} to "
                f"{_hours(full.job_hours / goodput.low)} at this goodput",
            )
        )
    return [
        *rows,
        ("faults", _counts(simulated.faults) or "none fell into this time; try a smaller --mtbf"),
        (
            "steps lost",
            f"{lost.mean:.2g} committed steps a run were done again, at most {lost.largest:.0f}",
        ),
    ]


def _rung_rows(simulated: Simulated) -> list[tuple[str, str]]:
    rows = [("rungs", _counts(simulated.rungs) or "none")]
    for rung, times in simulated.rung_s.items():
        count = "1 outage" if len(times) == 1 else f"{len(times)} outages"
        rows.append(
            (f"  {rung}", f"{count}: median {median(times):.3g} s, longest {max(times):.3g} s")
        )
    if simulated.waits:
        rows.append(("waits", f"{simulated.waits} for nodes"))
    return rows


def _real_rows(full: FullSize, real: RealSteps) -> list[tuple[str, str]]:
    seen = (
        f", {format_amount(real.seen_bytes)} seen with Python and torch" if real.seen_bytes else ""
    )
    return [
        (
            "real steps",
            f"{real.steps} on {real.workers} workers in {real.stages} stages: median "
            f"{real.step_s:.3g} s, slowest {real.slowest_step_s:.3g} s; loss "
            f"{real.first_loss:.3f} to {real.last_loss:.3f}",
        ),
        (
            "their memory",
            f"{format_amount(real.planned_bytes)} planned for the fullest worker{seen}",
        ),
        (
            "so at full size",
            f"{real.full_step_s:.3g} s a step, if each of {full.workers:,} workers had what these "
            f"had (above: {full.step_s:.3g} s; to use it: --step-s {real.full_step_s:.3g})",
        ),
    ]


def _range(bounds: Bounds) -> str:
    return f"{bounds.low:.2%} to {bounds.high:.2%}"


def _hours(hours: float) -> str:
    days = hours / 24
    return f"{days:,.1f} days" if days >= 4 else format_duration(hours * 3600)


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items())

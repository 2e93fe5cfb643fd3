"""Tables and figures of the recovery benchmark, from what its parts found."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.figures import Report
from benchmarks.recovery_timeline import Recovery

OURS = "ours-2-replace"
"""What is held against the rivals, who have 2 workers and no stages."""
TIMES = {
    "overhead_s": "fault to first forward of a step that commits",
    "any_s": "fault to first step not in flight",
    "beyond_s": "fault to first new committed step",
    "full_s": "fault to first step with all workers",
}


def combine(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put what several runs found together; of a part found twice the later file's counts.

    Raises:
        ValueError: they measured different work.
    """
    workloads = {tuple(each["workload"]) for each in files}
    if len(workloads) > 1:
        raise ValueError(f"different workloads cannot be compared: {sorted(workloads)}")
    kinds = ("parts", "watches")
    together = {kind: {k: v for each in files for k, v in each[kind].items()} for kind in kinds}
    return {"workload": list(files[0]["workload"]), **together}


def best_heartbeat(found: Mapping[str, Any]) -> str | None:
    """The torchft part with the least overhead that has raised no false alarm so far."""
    candidates = {}
    for name, part in found["parts"].items():
        watched = found["watches"].get(name, {}).get("false_alarms", 0)
        if name.startswith("torchft") and not part["false_alarms"] + watched:
            candidates[name] = _median(part, "overhead_s")
    return min(candidates, key=candidates.__getitem__, default=None)


def report_recovery(found: Mapping[str, Any]) -> Report:
    """All tables and figures for which there are parts."""
    report, parts, watches = Report(), found["parts"], found["watches"]
    report.section("SIGKILL of a worker; " + " ".join(found["workload"]))
    runs = sorted({each["run"] for each in (*parts.values(), *watches.values())})
    if len(runs) > 1:
        report.note("SEPARATE RUNS", f"these parts were not measured in one run: {runs}")
    for name, part in parts.items():
        report_part(report, name, part)
    if watches:
        report.section("false alarms beside two busy processes")
    for watched in watches.values():
        seconds, alarms = watched["seconds"], watched["false_alarms"]
        step = f"median step {1e3 * watched['step_s']:.0f} ms"
        report.note(watched["name"], f"{alarms} in {seconds:.0f} s, {step}")
    report.section("figures")
    _figures_of_ours(report, found)
    _figures_against(report, found)
    return report


def report_part(report: Report, name: str, part: Mapping[str, Any]) -> None:
    """The table of one contestant."""
    recoveries = recoveries_of(part)
    report.section(f"{name}: {part['name']}, undisturbed step {1e3 * part['step_s']:.0f} ms")
    for key, title in TIMES.items():
        report.note(title, describe([getattr(each, key) for each in recoveries]))
    phases = dict.fromkeys(name for each in recoveries for name in each.phases)
    for phase in phases:
        told = [each.phases[phase] for each in recoveries if phase in each.phases]
        report.note(f"  {phase}", describe(told))
    lost = [each.rolled_back for each in recoveries]
    report.note("committed steps lost", f"{sum(lost)}: {lost}" if any(lost) else "0")
    redone = sum(each.open_redone for each in recoveries)
    report.note("open steps redone", f"{redone} of {len(recoveries)} faults")
    rungs = Counter(each.rung for each in recoveries if each.rung)
    if rungs:
        report.note("rungs", ", ".join(f"{rung} {count}" for rung, count in rungs.items()))
        again = sum(each.attempts - 1 for each in recoveries)
        report.note("further attempts", str(again))
    report.note("false alarms between the faults", str(part["false_alarms"]))


def describe(seconds: Sequence[float]) -> str:
    """Times in milliseconds: median (smallest-largest, 95th percentile, how many)."""
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    spread = f"({1e3 * low:.1f}-{1e3 * high:.1f}, p95 {1e3 * p95(seconds):.1f}, n={len(seconds)})"
    return f"{1e3 * middle:10.1f} ms  {spread}"


def p95(seconds: Sequence[float]) -> float:
    """The 95th percentile, linear between samples."""
    return float(np.percentile(seconds, 95))


def _figures_of_ours(report: Report, found: Mapping[str, Any]) -> None:
    """Each is the worst of all our configurations, or their sum."""
    ours = {name: part for name, part in found["parts"].items() if name.startswith("ours")}
    if not ours:
        return
    for name, part in ours.items():
        short = name.removeprefix("ours-").replace("-", "_")
        report.figure(f"recovery_overhead_s_{short}", _median(part, "overhead_s"))
    worst = max(_median(part, "overhead_s") for part in ours.values())
    report.figure("recovery_overhead_s", worst, most=0.10)
    tails = [p95([r.overhead_s for r in recoveries_of(part)]) for part in ours.values()]
    report.figure("recovery_overhead_p95_s", max(tails), most=0.25)
    every = [each for part in ours.values() for each in recoveries_of(part)]
    report.figure("steps_rolled_back", sum(each.rolled_back for each in every), most=0)
    report.figure("open_steps_redone", sum(each.open_redone for each in every))
    report.figure("kills", len(every))
    watched = [each for name, each in found["watches"].items() if name in ours]
    alarms = sum(each["false_alarms"] for each in (*ours.values(), *watched))
    report.figure("false_alarms", alarms, most=0)


def _figures_against(report: Report, found: Mapping[str, Any]) -> None:
    parts = found["parts"]
    ours, best = parts.get(OURS), best_heartbeat(found)
    if ours is None:
        return
    if best is not None:
        rival = parts[best]
        watched = found["watches"].get(best)
        state = f"no false alarm in {watched['seconds']:.0f} s" if watched else "NOT WATCHED"
        report.note("torchft's best", f"{best}: {state}")
        ratio = _median(ours, "overhead_s") / _median(rival, "overhead_s")
        report.figure("overhead_vs_torchft_swept", ratio, most=1.0)
        report.figure("full_strength_vs_torchft", _speedup(ours, rival, "full_s"), least=5)
        report.figure("new_step_vs_torchft", _speedup(ours, rival, "beyond_s"))
    rays = [part for name, part in parts.items() if name.startswith("ray-train")]
    if rays:
        fastest = min(rays, key=lambda part: _median(part, "beyond_s"))
        report.note("Ray Train's fastest", fastest["name"])
        report.figure("vs_ray_train", _speedup(ours, fastest, "beyond_s"), least=25)
    if "torchrun" in parts:
        report.figure("vs_torchrun", _speedup(ours, parts["torchrun"], "beyond_s"), least=10)


def _speedup(ours: Mapping[str, Any], rival: Mapping[str, Any], key: str) -> float:
    return _median(rival, key) / _median(ours, key)


def _median(part: Mapping[str, Any], key: str) -> float:
    return float(statistics.median(getattr(each, key) for each in recoveries_of(part)))


def recoveries_of(part: Mapping[str, Any]) -> list[Recovery]:
    """What each fault cost."""
    plain: Iterable[Mapping[str, Any]] = part["recoveries"]
    return [Recovery.from_json(each) for each in plain]

"""What a simulated run leaves behind: figures, a plot of its progress, its story."""

import json
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from elasticmoe.controller.story import story
from elasticmoe.report.plot import GRID, INK, LOSS
from elasticmoe.simulator.run import Outcome
from elasticmoe.spec.job import JobSpec

MARKS: Final = {
    "crash": "#dc2626",
    "hang": "#d97706",
    "lose_node": "#7c3aed",
    "lose_domain": "#be185d",
    "controller": "#0d9488",
    "node_up": "#16a34a",
}
"""Colours of the faults that are told apart; all others are grey."""
OTHER: Final = "#6b7280"


def write_report(spec: JobSpec, outcome: Outcome, directory: Path) -> None:
    """Write `simulation.json`, `progress.png` and `story.txt`."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures(outcome), indent=2)
    (directory / "simulation.json").write_text(text + "\n")
    (directory / "story.txt").write_text("\n".join(story(outcome.records)) + "\n")
    draw_progress(outcome, directory / "progress.png", title=spec.name)


def figures(outcome: Outcome) -> dict[str, Any]:
    """The run in numbers, as plain data."""
    account = outcome.account
    return {
        "goodput": account.goodput,
        "committed_steps": account.steps,
        "rolled_back_steps": account.rolled_back,
        "outages": account.outages,
        "outage_s": account.outage_s,
        "phase_s": account.phase_s,
        "rungs": account.rungs,
        "waits": account.waits,
        "faults": len(outcome.fired),
        "controller_crashes": outcome.crashes,
        "needless_rollbacks": outcome.needless_rollbacks,
        "slowest_decision_s": outcome.slowest_decision_s,
        "broken_promises": [problem.text for problem in outcome.problems],
    }


def draw_progress(outcome: Outcome, path: Path, *, title: str) -> None:
    """Draw committed steps over time as a PNG, with a mark for every fault."""
    account = outcome.account
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    hours = [at_s / 3600.0 for at_s, _ in account.curve]
    axes.plot(hours, [step for _, step in account.curve], color=LOSS, linewidth=1.6)
    named: set[str] = set()
    for at_s, kind in account.marks:
        label = kind.replace("_", " ") if kind in MARKS else "other faults"
        axes.axvline(
            at_s / 3600.0,
            ymax=0.06,
            color=MARKS.get(kind, OTHER),
            linewidth=1.0,
            label=None if label in named else label,
        )
        named.add(label)
    axes.set_xlabel("hours", color=INK)
    axes.set_ylabel("committed steps", color=INK)
    axes.set_ylim(bottom=0)
    axes.set_title(f"{title}: goodput {account.goodput:.1%}", loc="left", fontsize=13, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if named:
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(path, dpi=130)

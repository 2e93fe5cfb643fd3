"""What a comparison on a trace leaves behind: figures and a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from elasticmoe.report.plot import GRID, INK
from elasticmoe.simulator.rivals.compare import Comparison

COLOURS: Final = ("#2563eb", "#0d9488", "#d97706", "#7c3aed", "#dc2626", "#6b7280")


def write_comparison(
    found: Comparison, measured: Sequence[dict[str, Any]], directory: Path
) -> None:
    """Write `rivals.json` (rows, assumptions, measured costs) and `rivals.png`."""
    directory.mkdir(parents=True, exist_ok=True)
    plain = {
        "rows": [{**asdict(row), "recoveries": dict(row.recoveries)} for row in found.rows],
        "measured": list(measured),
        "assumptions": [list(one) for one in found.assumptions],
    }
    (directory / "rivals.json").write_text(json.dumps(plain, indent=2) + "\n")
    draw_comparison(found, directory / "rivals.png")


def draw_comparison(found: Comparison, path: Path) -> None:
    """Draw useful node-hours over time, one line per model, and the nodes that are there."""
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for place, row in enumerate(found.rows):
        series = found.series[row.model]
        hours = [(point.at_s - series[0].at_s) / 3600.0 for point in series]
        useful = [point.useful_node_s / 3600.0 for point in series]
        label, colour = f"{row.model} ({row.goodput:.1%})", COLOURS[place % len(COLOURS)]
        above.plot(hours, useful, color=colour, linewidth=1.5, label=label)
        if not place:
            below.step(hours, [point.alive for point in series], where="post", color=INK)
    above.set_ylabel("useful node-hours", color=INK)
    above.legend(frameon=False, fontsize=9, loc="upper left")
    below.set_ylabel("nodes", color=INK)
    below.set_xlabel("hours", color=INK)
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)

"""The picture of a run: loss above, imbalance of each MoE layer below, recoveries as marks.

Shapes: T = committed steps, L = MoE layers.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elasticmoe.report.history import History

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

INK: Final = "#1f2933"
GRID: Final = "#e4e7eb"
LOSS: Final = "#2563eb"
MARK: Final = "#dc2626"
SMOOTHING_SHARE: Final = 0.02
"""Width of the moving averages, as share of the run."""
MAX_NAMED_LAYERS: Final = 8
MAX_NAMED_MARKS: Final = 12


def draw_plot(history: History, path: Path, *, title: str) -> None:
    """Write loss and MaxVio over the committed steps as a PNG.

    Args:
        history: at least one committed step.
        path: file to write.
        title: shown above the plot.
    """
    records = list(history.steps.values())
    steps_T = np.array([record.step for record in records])
    loss_T = np.array([record.loss for record in records])
    num_layers = max(len(record.max_violation_L) for record in records)
    figure = Figure(figsize=(9, 6.4 if num_layers else 4), layout="constrained")
    axes = figure.subplots(
        2 if num_layers else 1,
        sharex=True,
        squeeze=False,
        height_ratios=(3, 2) if num_layers else None,
    )
    above, below = axes[0, 0], axes[-1, 0]
    _draw_loss(above, steps_T, loss_T)
    if num_layers:
        missing = (np.nan,) * num_layers
        rows = [record.max_violation_L or missing for record in records]
        _draw_imbalance(below, steps_T, np.array(rows))
    _mark_recoveries(axes[:, 0], history.reformed)
    for axis in axes[:, 0]:
        _dress(axis)
    above.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK)
    below.set_xlabel("committed step", color=INK)
    figure.savefig(path, dpi=130)


def smooth(values_T: FloatArray) -> FloatArray:
    """Centred moving average over `SMOOTHING_SHARE` of the run; narrower at the ends."""
    half = max(1, round(len(values_T) * SMOOTHING_SHARE / 2))
    total = np.concatenate(([0.0], np.cumsum(values_T)))
    position = np.arange(len(values_T))
    reach = np.minimum(half, np.minimum(position, len(values_T) - 1 - position))
    start, end = position - reach, position + reach + 1
    averaged: FloatArray = (total[end] - total[start]) / (end - start)
    return averaged


def _draw_loss(axis: Axes, steps_T: FloatArray, loss_T: FloatArray) -> None:
    axis.plot(steps_T, loss_T, color=LOSS, alpha=0.25, linewidth=0.8)
    axis.plot(steps_T, smooth(loss_T), color=LOSS, linewidth=1.8)
    axis.set_ylabel("training loss (nats per token)", color=INK)


def _draw_imbalance(axis: Axes, steps_T: FloatArray, violation_TL: FloatArray) -> None:
    num_layers = violation_TL.shape[1]
    named = num_layers <= MAX_NAMED_LAYERS
    colors = colormaps["viridis"](np.linspace(0.05, 0.85, num_layers))
    for layer, color in enumerate(colors):
        raw_T = violation_TL[:, layer]
        label = f"MoE layer {layer + 1}" if named else None
        axis.plot(steps_T, raw_T, color=color, linewidth=0.5, alpha=0.2)
        axis.plot(steps_T, smooth(raw_T), color=color, linewidth=1.6, label=label)
    axis.set_ylabel("MaxVio (0 is even load)", color=INK)
    axis.set_ylim(bottom=0)
    if named:
        axis.legend(  # above the axes: an imbalance that stays high would run through it
            ncols=MAX_NAMED_LAYERS, fontsize=8, frameon=False, loc="lower right",
            bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2,
        )  # fmt: skip


def _mark_recoveries(axes: FloatArray, steps: list[int]) -> None:
    for axis in axes:
        for step in steps:
            axis.axvline(step, color=MARK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for step in steps if len(steps) <= MAX_NAMED_MARKS else ():
        axes[0].text(  # x in steps, y as share of the height
            step, 0.98, f" {step}", transform=axes[0].get_xaxis_transform(), fontsize=8, color=MARK,
            verticalalignment="top",
        )  # fmt: skip
    if steps:
        axes[0].plot([], [], color=MARK, linestyle=(0, (4, 3)), label="gang formed again")
        axes[0].legend(frameon=False, fontsize=9, loc="upper right")


def _dress(axis: Axes) -> None:
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GRID)
    axis.tick_params(colors=INK, labelsize=9)

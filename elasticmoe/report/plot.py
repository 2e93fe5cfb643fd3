"""The picture of a run: loss above, imbalance of each MoE layer below, faults as marks in both."""

from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # draws to a file; never asks for a screen

from matplotlib import pyplot as plt  # noqa: E402  the back end is chosen first
from matplotlib.axes import Axes  # noqa: E402

from elasticmoe.report.history import History  # noqa: E402

INK: Final = "#1f2933"
GRID: Final = "#e4e7eb"
LOSS: Final = "#2563eb"
FAULT: Final = "#dc2626"
SMOOTHING_SHARE: Final = 0.02
"""Width of the moving average of the loss, as share of the run."""


def draw_plot(history: History, path: Path, *, title: str) -> None:
    """Write loss and MaxVio over the committed steps as a PNG.

    Args:
        history: at least one committed step.
        path: file to write.
        title: shown above the plot.
    """
    records = list(history.steps.values())
    steps = np.array([record.step for record in records])
    loss = np.array([record.loss for record in records])
    has_load = any(record.max_violation_L for record in records)
    figure, axes = plt.subplots(
        2 if has_load else 1,
        sharex=True,
        squeeze=False,
        figsize=(9, 6.4 if has_load else 4),
        height_ratios=(3, 2) if has_load else None,
        layout="constrained",
    )
    _draw_loss(axes[0, 0], steps, loss)
    if has_load:
        _draw_imbalance(axes[1, 0], steps, [record.max_violation_L for record in records])
    for axis in axes[:, 0]:
        _dress(axis)
        for step, _ in history.faults:
            axis.axvline(step, color=FAULT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    _name_faults(axes[0, 0], history)
    axes[0, 0].set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK)
    axes[-1, 0].set_xlabel("committed step", color=INK)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_loss(axis: Axes, steps: np.ndarray, loss: np.ndarray) -> None:
    axis.plot(steps, loss, color=LOSS, alpha=0.25, linewidth=0.8)
    width = max(1, round(len(loss) * SMOOTHING_SHARE))
    total = np.concatenate(([0.0], np.cumsum(loss)))
    end = np.arange(1, len(loss) + 1)
    start = np.maximum(0, end - width)
    axis.plot(steps, (total[end] - total[start]) / (end - start), color=LOSS, linewidth=1.8)
    axis.set_ylabel("training loss (nats per token)", color=INK)


def _draw_imbalance(
    axis: Axes, steps: np.ndarray, violation_by_step: list[tuple[float, ...]]
) -> None:
    num_layers = max(map(len, violation_by_step))
    missing = (np.nan,) * num_layers
    violation_TL = np.array([row or missing for row in violation_by_step])
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, num_layers))
    for layer in range(num_layers):
        axis.plot(steps, violation_TL[:, layer], color=colors[layer], linewidth=0.9, alpha=0.85,
                  label=f"MoE layer {layer + 1}" if num_layers <= 8 else None)  # fmt: skip
    axis.set_ylabel("MaxVio (0 is even load)", color=INK)
    axis.set_ylim(bottom=0)
    if num_layers <= 8:
        axis.legend(ncols=4, fontsize=8, frameon=False, loc="upper right")


def _name_faults(axis: Axes, history: History) -> None:
    if not history.faults:
        return
    count = len(history.faults)
    label = f"{count} fault{'s' if count > 1 else ''}"
    axis.plot([], [], color=FAULT, linewidth=1, linestyle=(0, (4, 3)), label=label)
    axis.legend(frameon=False, fontsize=9, loc="upper right")


def _dress(axis: Axes) -> None:
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GRID)
    axis.tick_params(colors=INK, labelsize=9)

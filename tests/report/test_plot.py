from pathlib import Path

import numpy as np
import pytest

from elasticmoe.report.history import History, StepRecord
from elasticmoe.report.plot import draw_plot, smooth

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("num_layers", [0, 1, 12])
@pytest.mark.parametrize("num_steps", [1, 200])
def test_any_history_becomes_a_picture(tmp_path: Path, num_steps: int, num_layers: int) -> None:
    history = History()
    for step in range(1, num_steps + 1):
        history.add(StepRecord(step, float(step), 1 + step // 100, 3.0, (0.5,) * num_layers))

    draw_plot(history, tmp_path / "plot.png", title="a run")

    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_smoothing_keeps_a_straight_line_straight() -> None:
    line = np.linspace(5.0, 1.0, 300)

    assert smooth(line) == pytest.approx(line)

import json
from pathlib import Path
from typing import Any

import pytest

from elasticmoe.report.history import STEPS_FILE, History, StepRecord, read_history


def _line(step: int, *, generation: int = 1, loss: float = 1.0) -> dict[str, Any]:
    layers = [{"layer": "layer.1", "max_violation": 0.5}]
    fields = {"step": step, "generation": generation, "loss": loss, "metrics": {"layers": layers}}
    return {"n": step, "at_s": float(step), "kind": "step", **fields}


def _write(job_dir: Path, *lines: dict[str, Any], torn: str = "") -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (job_dir / STEPS_FILE).write_text(text + torn)


def test_a_job_without_steps_has_an_empty_history(tmp_path: Path) -> None:
    history = read_history(tmp_path)

    assert history.steps == {}
    assert history.last is None
    assert history.steps_per_s() == 0.0


def test_steps_taken_again_replace_the_ones_given_up(tmp_path: Path) -> None:
    first = [_line(step) for step in range(1, 6)]
    again = [_line(step, generation=2, loss=2.0) for step in range(3, 5)]
    _write(tmp_path, *first, *again)

    history = read_history(tmp_path)

    assert [record.loss for record in history.steps.values()] == [1.0, 1.0, 2.0, 2.0]
    assert list(history.steps) == [1, 2, 3, 4]
    assert history.reformed == [2]


def test_a_mark_of_a_past_that_was_given_up_is_taken_back(tmp_path: Path) -> None:
    second = [_line(step, generation=2) for step in range(4, 7)]
    third = [_line(step, generation=3) for step in range(2, 9)]
    _write(tmp_path, *[_line(step) for step in range(1, 4)], *second, *third)

    history = read_history(tmp_path)

    assert history.reformed == [1]
    assert list(history.steps) == list(range(1, 9))


def test_a_new_run_from_the_first_step_forgets_the_one_before(tmp_path: Path) -> None:
    _write(tmp_path, _line(1), _line(2, generation=2), _line(3, generation=2), _line(1))

    history = read_history(tmp_path)

    assert list(history.steps) == [1]
    assert history.reformed == []


@pytest.mark.parametrize("behind", ["", "\n" + json.dumps(_line(2)) + "\n"])
def test_a_torn_line_is_passed_over(tmp_path: Path, behind: str) -> None:
    _write(tmp_path, _line(1), torn='{"n": 2, "at_s"' + behind)

    assert list(read_history(tmp_path).steps) == ([1, 2] if behind else [1])


def test_speed_counts_the_newest_generation_alone() -> None:
    history = History()
    for step, generation, at_s in [(1, 1, 0.0), (2, 1, 1.0), (3, 2, 9.0), (4, 2, 9.5)]:
        history.add(StepRecord(step, at_s, generation, 1.0, ()))

    assert history.steps_per_s() == 2.0


def test_a_layers_imbalance_comes_from_its_line() -> None:
    record = StepRecord.from_fields(1.0, _line(1))

    assert record.max_violation_L == (0.5,)

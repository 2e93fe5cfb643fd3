"""The learning rate over a run, against numbers worked out by hand."""

import doctest
from itertools import pairwise

import pytest

from elasticmoe.runtime import optimizer
from elasticmoe.runtime.optimizer import learning_rate
from elasticmoe.spec.job import OptimizerSpec, ScheduleSpec

ADAM = OptimizerSpec(learning_rate=2.0)


def rates(**fields: object) -> list[float]:
    schedule = ScheduleSpec(**fields)  # type: ignore[arg-type]
    return [learning_rate(step, ADAM, schedule) for step in range(schedule.steps)]


def test_wsd_warms_up_stays_and_decays_to_its_end() -> None:
    found = rates(kind="wsd", steps=10, warmup_steps=2, decay_steps=4, final_fraction=0.2)

    assert found == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4])


def test_wsd_without_a_decay_stays_at_its_peak() -> None:
    assert rates(kind="wsd", steps=4) == [2.0] * 4


def test_cosine_falls_from_the_peak_through_the_middle_towards_its_end() -> None:
    found = rates(kind="cosine", steps=10, warmup_steps=2, final_fraction=0.1)

    assert found[:3] == pytest.approx([1.0, 2.0, 2.0])
    assert found[6] == pytest.approx((2.0 + 0.2) / 2)  # half way between warm-up and end
    assert found[4] == pytest.approx(0.2 + 1.8 * (1 + 2**-0.5) / 2)  # a quarter of the way
    assert all(before > after for before, after in pairwise(found[2:]))
    after_all = learning_rate(10, ADAM, ScheduleSpec(steps=10, warmup_steps=2))
    assert after_all == pytest.approx(0.2)


def test_constant_only_warms_up() -> None:
    assert rates(kind="constant", steps=4, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0]
    assert rates(kind="constant", steps=3) == [2.0] * 3


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(optimizer)

    assert result.attempted > 0
    assert result.failed == 0

"""Costs from a file, and a step cut into phases."""

from typing import Any

import pytest

from elasticmoe.errors import SpecError
from elasticmoe.simulator.costs import Costs, phases_of, read_costs


def test_costs_that_are_named_replace_the_defaults() -> None:
    costs = read_costs({"step_s": 0.5, "park_s": [0.001, 0.002]})

    assert (costs.step_s, costs.park_s, costs.fork_s) == (0.5, (0.001, 0.002), Costs().fork_s)


def test_an_unknown_cost_or_one_that_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(SpecError) as caught:
        read_costs({"stepp_s": 1.0, "step_s": "fast"})

    assert "costs.stepp_s: unknown" in str(caught.value)
    assert "costs.step_s: 'fast'" in str(caught.value)


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("fixed_share", 3, "3 is not a number from 0 to 1"),
        ("notice_probability", 7, "7 is not a number from 0 to 1"),
        ("apply_share", -0.1, "-0.1 is not a number from 0 to 1"),
        ("fork_s", 10**400, "is not a number of at least 0"),
        ("step_s", 10**400, "is not a number above 0"),
        ("park_s", [0, 10**400], "is not two numbers, the smaller one first"),
        ("vote_share", float("nan"), "nan is not a number from 0 to 1"),
    ],
)
def test_a_number_that_a_cost_cannot_be_is_refused(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_costs({name: value})

    assert f"costs.{name}: " in str(caught.value)
    assert wanted in str(caught.value)
    assert len(str(caught.value)) < 200


def test_shares_that_leave_nothing_of_a_step_to_compute_in_are_refused() -> None:
    with pytest.raises(SpecError, match="apply_share, vote_share, prepare_share are more than 1"):
        read_costs({"apply_share": 0.6, "prepare_share": 0.6})


def test_the_phases_of_a_step_follow_each_other_and_fill_it() -> None:
    phases = phases_of(Costs(), 0.17)

    ends = [phases.agree, phases.prepare, phases.vote, phases.primaries, phases.publish]
    assert ends == sorted(ends)
    assert phases.publish < phases.apply == 0.17

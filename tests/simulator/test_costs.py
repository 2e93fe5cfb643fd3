"""Costs from a file, and a step cut into phases."""

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


def test_the_phases_of_a_step_follow_each_other_and_fill_it() -> None:
    phases = phases_of(Costs(), 0.17)

    ends = [phases.agree, phases.prepare, phases.vote, phases.primaries, phases.publish]
    assert ends == sorted(ends)
    assert phases.publish < phases.apply == 0.17

"""Schedules with the statistics of real clusters, and those of traces."""

import numpy as np
import pytest

from elasticmoe.simulator.schedules import (
    Rates,
    draw_faults,
    faults_of_trace,
    hostile_schedule,
    spread_machines,
)
from elasticmoe.simulator.traces import read_trace

DAY_S = 24 * 3600.0


def test_equal_seeds_give_equal_schedules() -> None:
    assert hostile_schedule(3) == hostile_schedule(3)
    assert hostile_schedule(3) != hostile_schedule(4)


@pytest.mark.parametrize("shape", [0.78, 1.0])
def test_failures_come_as_often_as_asked_for(shape: float) -> None:
    machines = spread_machines(workers=800, nodes=200, domains=10)
    rates = Rates(mtbf_s=DAY_S / 4, shape=shape)

    faults = draw_faults(machines, 10 * DAY_S, rates, seed=1)

    failures = [fault for fault in faults if fault.kind != "node_up"]
    assert len(failures) == pytest.approx(200 * 40, rel=0.05)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)


def test_failures_of_a_weibull_shape_below_one_come_in_bursts() -> None:
    machines = spread_machines(workers=1, nodes=1)
    gaps = {}
    for shape in (0.78, 1.0):
        faults = draw_faults(machines, 4000 * DAY_S, Rates(DAY_S, shape=shape), seed=2)
        times = [fault.at_s for fault in faults if fault.kind != "node_up"]
        between = np.diff(times)
        gaps[shape] = between.std() / between.mean()

    assert gaps[1.0] == pytest.approx(1.0, abs=0.08)
    assert gaps[0.78] == pytest.approx(1.3, abs=0.12)


def test_machines_are_spread_over_domains_and_have_room_for_all() -> None:
    machines = spread_machines(workers=10, nodes=4, domains=2)

    assert sum(machine.capacity for machine in machines) >= 10
    assert [machine.domain for machine in machines] == ["domain-0", "domain-1"] * 2


def test_a_trace_becomes_machines_and_faults() -> None:
    rows = ["1000,add,a", "1000,add,b", "4000,remove,a", "4000,remove,b", "9000,add,c"]

    machines, faults = faults_of_trace(read_trace(rows), capacity=2)

    assert [machine.name for machine in machines] == ["a", "b"]
    assert [(fault.kind, fault.at_s, fault.node) for fault in faults] == [
        ("lose_node", 3.0, "a"),
        ("lose_node", 3.0, "b"),
        ("node_up", 8.0, "c"),
    ]

"""Machines whose end is announced, alone and among everything else that can go wrong."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import FOUR, decisions, kinds, run

from elasticmoe.controller.decisions import Break, Regroup
from elasticmoe.controller.phases import Phase
from elasticmoe.simulator.faults import Fault
from elasticmoe.simulator.jobs import plain_inventory, small_job
from elasticmoe.simulator.run import Outcome, simulate
from elasticmoe.simulator.schedules import hostile_schedule

NUM_SCHEDULES, PER_TEST = 100, 25
BROKEN = (34, 92)
"""Seeds in which nodes lack memory and one that is known to is lost: the controller ends by a
KeyError. They have to fail below: one that does not leaves this list."""


def test_a_machine_that_goes_with_notice_costs_no_step() -> None:
    outcome = run(Fault("preempt", at_s=2.0, node="b", lasts_s=2.0), machines=FOUR)

    assert kinds(outcome) == ["preempt"]
    assert outcome.problems == ()
    assert len(decisions(outcome, Regroup)) == 1
    assert decisions(outcome, Break) == []
    assert outcome.account.attempts == outcome.account.steps


@pytest.mark.parametrize("redundancy", [1, 2])
def test_one_machine_after_the_other_goes_with_notice(redundancy: int) -> None:
    job = small_job(
        workers={"replicas": 4, "min": 1, "max": 8}, protection={"redundancy": redundancy}
    )
    arrivals = [
        Fault("node_up", at_s=1.0 + number, node=f"new-{number}", capacity=2) for number in (0, 3)
    ]
    notices = [
        Fault("preempt", at_s=2.0, node="a", lasts_s=2.0),
        Fault("preempt", at_s=5.0, node="b", lasts_s=2.0),
    ]

    outcome = run(*arrivals, *notices, job=job)

    assert kinds(outcome).count("preempt") == 2
    assert outcome.problems == ()
    assert outcome.account.rolled_back == 0
    assert decisions(outcome, Break) == []


def _run_with_notices(seed: int) -> Outcome:
    schedule = hostile_schedule(seed)
    rng = np.random.default_rng(seed)
    notices = tuple(
        Fault(
            "preempt",
            at_s=1.0 + 4.0 * float(rng.random()),
            pick=float(rng.random()),
            lasts_s=float(rng.choice([0.05, 0.5, 3.0])),
        )
        for _ in range(2)
    )
    scenario = replace(schedule.scenario, faults=(*schedule.scenario.faults, *notices))
    return simulate(schedule.job, plain_inventory(schedule.job), scenario)


@pytest.mark.xfail(strict=True, raises=KeyError, reason="the limit of a node that is gone")
@pytest.mark.parametrize("seed", BROKEN)
def test_notices_break_no_promise_where_memory_is_scarce(seed: int) -> None:
    assert _run_with_notices(seed).problems == ()


@pytest.mark.parametrize("first", range(0, NUM_SCHEDULES, PER_TEST))
def test_notices_among_random_faults_break_no_promise(first: int) -> None:
    fired = 0
    for seed in sorted({*range(first, first + PER_TEST)} - {*BROKEN}):
        outcome = _run_with_notices(seed)

        fired += kinds(outcome).count("preempt")
        assert outcome.problems == (), f"seed {seed}"
        assert outcome.state.phase is Phase.DONE, f"seed {seed}"
    assert fired

"""Nodes with little memory: what the checker holds against a brain that does not heed it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from worlds import FOUR, decisions, kinds

from elasticmoe.controller.changing import replace as with_changes
from elasticmoe.controller.decisions import Break, Form, Regroup, Wait
from elasticmoe.messages.events import NodeUp
from elasticmoe.simulator import keeper
from elasticmoe.simulator.checker import Checker
from elasticmoe.simulator.costs import Costs
from elasticmoe.simulator.faults import Fault
from elasticmoe.simulator.hands import Hands
from elasticmoe.simulator.jobs import plain_inventory, small_job
from elasticmoe.simulator.memory import spread_bytes
from elasticmoe.simulator.room import MOST_TURNS
from elasticmoe.simulator.run import Machine, Outcome, Scenario, simulate
from elasticmoe.simulator.schedules import SCARCE_SHARE, hostile_schedule
from elasticmoe.simulator.world import World
from elasticmoe.spec.job import JobSpec

JOB = small_job()
"""Two nodes of two workers need 3.3 MB each, one of them alone 4.0 MB: less without mirrors."""
ACTIVE = small_job(data={"seq_len": 16_384})
"""A node alone keeps twice the activations, and they are most of what it keeps."""

LONG_S = 300.0


def comfortable_bytes(job: JobSpec = JOB) -> int:
    return max(spread_bytes(job, plain_inventory(job), FOUR).values())


def sized(memory_bytes: int) -> tuple[Machine, ...]:
    return tuple(replace(machine, memory_bytes=memory_bytes) for machine in FOUR)


def run(
    machines: tuple[Machine, ...], *faults: Fault, job: JobSpec = JOB, limit_s: float = LONG_S
) -> Outcome:
    scenario = Scenario(
        machines, faults, seed=1, limit_s=limit_s, must_end=limit_s == LONG_S, strict=True
    )
    return simulate(job, plain_inventory(job), scenario)


def texts(outcome: Outcome) -> list[str]:
    return [problem.text for problem in outcome.problems]


LOST = Fault("lose_node", 4.0, node="b")


@pytest.mark.parametrize("capacity, share", [(2, 1.0), (4, 100.0)])
def test_a_node_that_cannot_hold_the_job_alone_waits_for_another_one(
    capacity: int, share: float
) -> None:
    there = comfortable_bytes(ACTIVE)
    memory_bytes = int(share * there)
    other = Fault("node_up", 6.0, node="c", capacity=capacity, memory_bytes=memory_bytes)

    outcome = run(sized(there), LOST, other, job=ACTIVE)

    assert kinds(outcome) == ["lose_node", "node_up"]
    assert decisions(outcome, Wait) != []
    assert outcome.problems == ()


@pytest.mark.parametrize("job, what", [(ACTIVE, "generation 2"), (JOB, "the plan with more homes")])
def test_a_brain_that_fills_a_node_beyond_its_memory_is_caught(
    job: JobSpec, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = keeper.advance

    def heedless(state: Any, event: Any, now_s: float) -> Any:
        heard = replace(event, memory_bytes=0) if isinstance(event, NodeUp) else event
        return honest(state, heard, now_s)

    monkeypatch.setattr(keeper, "advance", heedless)
    there = comfortable_bytes(job)

    outcome = run(sized(there), LOST, job=job)

    assert kinds(outcome) == ["lose_node"]
    assert decisions(outcome, Wait) == []
    found = next(text for text in texts(outcome) if "bytes on node" in text)
    assert found.startswith(f"{what} needs ")
    assert found.endswith(f" bytes on node a, which has {there}")


def test_a_job_that_does_not_go_on_where_there_is_room_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = keeper.advance
    faults = (
        LOST,
        Fault("lose_node", 4.0, node="a"),
        Fault("node_up", 5.0, node="c", capacity=4),
        Fault("node_up", 40.0, node="d", capacity=1),
    )

    def deaf(state: Any, event: Any, now_s: float) -> Any:
        if isinstance(event, NodeUp) and event.node == "c":
            return with_changes(state, decided=()), ()
        return honest(state, event, now_s)

    assert run(sized(comfortable_bytes()), *faults).problems == ()
    monkeypatch.setattr(keeper, "advance", deaf)

    outcome = run(sized(comfortable_bytes()), *faults, limit_s=45.0)

    assert kinds(outcome) == [fault.kind for fault in faults]
    came_s = 5.0 + Costs().agent_place_s
    assert outcome.problems[0].text.startswith(f"nobody trains since {came_s:.3f} s, and there is")
    assert outcome.problems[0].at_s == pytest.approx(40.0 + Costs().agent_place_s, abs=0.01)


def _watched() -> tuple[Checker, World]:
    checker = Checker(strict=True)
    inventory, rng = plain_inventory(JOB), np.random.default_rng(0)
    world = checker.world = World(JOB, inventory, Costs(), rng, checker, Hands())
    return checker, world


def test_a_gang_that_pauses_again_and_again_without_a_change_is_caught() -> None:
    checker, world = _watched()
    regroup = Regroup(0.0, "1 new worker stayed healthy", "failover", 9)

    for _ in range(MOST_TURNS):
        checker.room.decided(world, regroup)
    assert checker.problems == []
    checker.room.decided(world, regroup)

    (problem,) = checker.problems
    assert problem.text == f"the gang paused {MOST_TURNS + 1} times, and no node came or went"


@pytest.mark.parametrize("change", [NodeUp(0.0, "c", "c", "c", 1, 0), Break(0.0, 1, (), "a fault")])
def test_a_gang_may_pause_anew_when_something_has_changed(change: NodeUp | Break) -> None:
    checker, world = _watched()
    regroup = Regroup(0.0, "1 new worker stayed healthy", "failover", 9)

    for _ in range(3 * MOST_TURNS):
        checker.room.decided(world, regroup)
        if isinstance(change, NodeUp):
            checker.room.heard(world, change)
        else:
            checker.room.decided(world, change)

    assert checker.problems == []


def test_a_share_of_the_random_schedules_is_scarce_and_begins_with_a_gang() -> None:
    schedules = [hostile_schedule(seed) for seed in range(80)]
    scarce = [one for one in schedules if any(m.memory_bytes for m in one.scenario.machines)]

    assert len(scarce) == pytest.approx(SCARCE_SHARE * len(schedules), abs=8)
    assert hostile_schedule(3) == schedules[3]
    assert all(machine.memory_bytes for one in scarce for machine in one.scenario.machines)
    waiting = 0
    for one in scarce[:10]:
        outcome = simulate(one.job, plain_inventory(one.job), one.scenario)
        forms = decisions(outcome, Form)
        assert forms
        waiting += bool(decisions(outcome, Wait))
    assert waiting

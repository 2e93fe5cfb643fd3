"""Random hostile schedules break no promise."""

import pytest

from elasticmoe.controller.phases import Phase
from elasticmoe.simulator.jobs import plain_inventory
from elasticmoe.simulator.run import Outcome, simulate
from elasticmoe.simulator.schedules import hostile_schedule

NUM_SCHEDULES, PER_TEST = 500, 25
FOUND = (
    507, 585, 643, 678, 685, 729, 733, 766, 781, 816, 905, 934, 947, 975,
    583, 1289, 1438, 1575, 2776, 3269, 5067,
)  # fmt: skip
"""Seeds in which nodes lack memory: the controller paused its gang again and again, waited for ever
beside an empty node, or gave homes where there was no room."""


def _run(seed: int, workers: int | None = None, steps: int | None = None) -> Outcome:
    schedule = hostile_schedule(seed, workers=workers)
    job = schedule.job
    if steps is not None:
        length = job.schedule.model_copy(update={"steps": steps})
        job = job.model_copy(update={"schedule": length})
    return simulate(job, plain_inventory(job), schedule.scenario)


@pytest.mark.parametrize("first", range(0, NUM_SCHEDULES, PER_TEST))
def test_random_faults_break_no_promise(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        outcome = _run(seed)

        again = f"elasticmoe simulate --schedules 1 --seed {seed}"
        assert outcome.fired, f"no fault fired, the schedule proves nothing: {again}"
        assert outcome.problems == (), again
        assert outcome.state.phase is Phase.DONE, again


@pytest.mark.parametrize("seed", FOUND)
def test_scarce_memory_leads_neither_to_circles_nor_to_an_endless_wait(seed: int) -> None:
    assert _run(seed).problems == ()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "seed, steps, fired",
    [
        (1, 20, ["lose_node", "hang"]),
        pytest.param(4, None, ["agent", "lose_domain"], marks=pytest.mark.soak),
    ],
)
def test_random_faults_break_no_promise_at_16384_workers(
    seed: int, steps: int | None, fired: list[str]
) -> None:
    outcome = _run(seed, workers=16_384, steps=steps)

    assert [fault.kind for fault in outcome.fired] == fired
    assert outcome.problems == ()
    assert outcome.state.phase is Phase.DONE

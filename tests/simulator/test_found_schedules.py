"""Schedules that broke a promise once, and how they end now. What they found is named.

Whoever changes how schedules are drawn looks for others: the faults and rungs tell that these still
are what they were.
"""

import pytest
from worlds import decisions

from elasticmoe.controller.decisions import Gather, Recover
from elasticmoe.controller.phases import Phase
from elasticmoe.simulator.jobs import plain_inventory
from elasticmoe.simulator.run import Outcome, simulate
from elasticmoe.simulator.schedules import hostile_schedule

RUNGS = {
    # Snapshots of a history that was given up were left in vaults of the pretend world.
    1343: ["snapshot", "snapshot", "checkpoint", "snapshot"],
    # Workers were started again and again to find out that nodes are too small for them.
    2928: ["replace", "failover", "failover", "failover"],
    # A gang that had gone over to more homes and ended unheard was judged by its first plan.
    3342: ["retry", "failover", "failover", "replace", "failover"],
    # A worker that looped while the gang was to end was never found after a restart.
    4850: ["failover", "failover", "replace"],
    # Memory of who left before the gang trained counted for the checker, and not for the brain.
    5137: ["replace", "replace", "replace", "checkpoint"],
    12907: ["snapshot", "snapshot", "snapshot", "checkpoint", "replace"],
    # A job waited for ever beside a large node, because its memory could not leave the small ones.
    9474: ["failover", "failover", "failover", "checkpoint"],
    # It went back behind steps that only the end of the gang had told, on the same timeline.
    18306: ["replace", "snapshot", "replace", "replace"],
    # A gang paused for each node in turn that was too small to grow into.
    19224: ["replace", "replace", "failover", "checkpoint"],
}


def run(seed: int) -> Outcome:
    schedule = hostile_schedule(seed)
    return simulate(schedule.job, plain_inventory(schedule.job), schedule.scenario)


@pytest.mark.parametrize("seed", RUNGS)
def test_what_was_found_once_is_mended(seed: int) -> None:
    outcome = run(seed)

    rungs = [one.rung for one in decisions(outcome, Recover) if isinstance(one, Recover)]
    assert rungs == RUNGS[seed]
    assert outcome.problems == ()
    assert outcome.state.phase is Phase.DONE


def test_steps_that_only_the_end_of_the_gang_told_count_as_given_up() -> None:
    state = run(18306).state

    assert (state.timeline, state.tally.steps_rolled_back) == (1, 2)


def test_nobody_is_started_where_there_is_no_memory_for_one() -> None:
    last = decisions(run(19224), Gather)[-1]

    assert [node for _, node in last.hires] == ["relief"]  # type: ignore[attr-defined]

"""The controller dies behind every single record, and the next one goes on."""

import pytest
from worlds import kinds, run

from elasticmoe.controller.phases import Phase
from elasticmoe.simulator.faults import Fault
from elasticmoe.simulator.jobs import small_job
from elasticmoe.simulator.run import Outcome

JOB = small_job(schedule={"steps": 14}, checkpoint={"interval_steps": 5})
STORIES = {
    "a crash": (Fault("crash", 1.2, pick=0.4, phase="vote", share=0.6),),
    "a hang": (Fault("hang", 1.2, pick=0.9),),
    "a lost node": (Fault("lose_node", 1.2, node="b"),),
}


def _crash_at(number: int, acts: int, faults: tuple[Fault, ...]) -> Outcome:
    return run(Fault("controller", 0.0, records=number, acts=acts), *faults, job=JOB)


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("acts", [0, 1])
def test_a_controller_crash_behind_any_record_loses_nothing(story: str, acts: int) -> None:
    faults = STORIES[story]
    undisturbed = run(*faults, job=JOB)
    assert undisturbed.problems == ()
    crashes = 0

    for number in range(2, len(undisturbed.records)):
        outcome = _crash_at(number, acts, faults)

        crashes += outcome.crashes
        assert kinds(outcome)[0] == "controller"
        assert outcome.state.phase is Phase.DONE, (story, number, acts)
        assert outcome.problems == (), (story, number, acts)
        assert outcome.account.rolled_back <= undisturbed.account.rolled_back, (story, number)

    assert crashes > 0.9 * (len(undisturbed.records) - 2)

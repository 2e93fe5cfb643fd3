"""A gang that has learnt its weights to infinity parks instead of skipping steps for ever."""

from pathlib import Path

import pytest
from crews import Crew, make_job
from forked import form
from gangs import plan_for

from elasticmoe.messages.worker import MOST_SKIPPED, STEPS_SKIPPED, GangFormed, WorkerParked

pytestmark = [pytest.mark.dist, pytest.mark.timeout(60)]


def test_all_members_park_after_ten_skipped_steps_and_again_when_they_begin_anew(
    tmp_path: Path, crews: list[Crew]
) -> None:
    job = make_job(tmp_path, "fp32")
    job = job.model_copy(
        update={"optimizer": job.optimizer.model_copy(update={"learning_rate": 1e30})}
    )
    crew = Crew(job, plan_for(job, 2))
    crews.append(crew)
    last = 1 + MOST_SKIPPED  # the first step still changes weights

    for generation in (1, 2):
        crew.committed = 0
        crew.train(last)
        parked = [worker.next(WorkerParked) for worker in crew.workers]

        assert {one.generation for one in parked} == {generation}
        assert {(one.committed_step, one.code) for one in parked} == {(last, STEPS_SKIPPED)}
        assert {one.reason for one in parked} == {
            f"steps 2 to {last} changed nothing: their losses or gradients were not finite"
        }
        assert all(one.copies is not None and one.copies.step == last for one in parked)
        if generation == 1:
            form(crew.plan, crew.workers, 2)
            assert crew.workers[0].next(GangFormed).step == 1

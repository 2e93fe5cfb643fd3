"""Going on from memory after a death, by hand: what the controller does, without a controller."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from crews import Crew, State, make_job, undisturbed
from gangs import plan_for

pytestmark = [pytest.mark.dist, pytest.mark.timeout(110)]


def difference(found: State, wanted: State) -> float:
    """Largest difference of any unit over its largest value."""
    return max(
        float(np.abs(found[unit] - wanted[unit]).max() / max(np.abs(wanted[unit]).max(), 1e-300))
        for unit in wanted
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("workers,stages", [(2, 1), (4, 2)])
def test_a_killed_worker_is_replaced_from_its_vault_and_the_run_stays_bitwise_the_same(
    tmp_path: Path, crews: list[Crew], precision: str, workers: int, stages: int
) -> None:
    job = make_job(tmp_path, precision, stages)
    plan = plan_for(job, workers)
    crew = Crew(job, plan)
    crews.append(crew)
    chance = random.Random(f"{precision}-{workers}")

    for _ in range(5):
        crew.train(2)
        time.sleep(chance.uniform(0.0, 0.03))  # the moment is what is being drawn
        victim = chance.randrange(workers)
        crew.kill(victim)
        crew.replace(victim)
    state = crew.finish(crew.committed + 3)

    expected = undisturbed(job, plan, crew.committed, crews)
    assert all(np.array_equal(state[unit], expected[unit]) for unit in expected)


def test_two_workers_killed_at_once_are_both_replaced(tmp_path: Path, crews: list[Crew]) -> None:
    job = make_job(tmp_path, "fp32", stages=2)
    plan = plan_for(job, 4)
    crew = Crew(job, plan)
    crews.append(crew)

    for victims in ((0, 1), (1, 2), (0, 3)):
        crew.train(2)
        crew.kill(*victims)
        crew.replace(*victims)
    state = crew.finish(crew.committed + 3)

    expected = undisturbed(job, plan, crew.committed, crews)
    assert all(np.array_equal(state[unit], expected[unit]) for unit in expected)


@pytest.mark.parametrize("keep_vaults", [False, True])
def test_survivors_go_on_without_the_dead_and_reach_the_same_state(
    tmp_path: Path, crews: list[Crew], keep_vaults: bool
) -> None:
    job = make_job(tmp_path, "fp64", stages=2, redundancy=1 if keep_vaults else 2)
    plan = plan_for(job, 4)
    crew = Crew(job, plan)
    crews.append(crew)

    crew.train(3)
    crew.kill(3)
    crew.fail_over(3, keep_vaults=keep_vaults)
    crew.train(3)
    if keep_vaults:
        crew.kill(0)
        crew.fail_over(0, keep_vaults=True)
        crew.train(2)
    state = crew.finish(crew.committed + 2)

    expected = undisturbed(job, plan, crew.committed, crews)
    assert difference(state, expected) < 1e-8


def stage_of_worker(crew: Crew) -> dict[int, int]:
    return {
        member.worker: crew.plan.stage_of_member[at] for at, member in enumerate(crew.plan.members)
    }


def test_after_a_whole_stage_has_died_a_survivor_of_the_other_moves_to_it(
    tmp_path: Path, crews: list[Crew]
) -> None:
    job = make_job(tmp_path, "fp64", stages=2)
    plan = plan_for(job, 4, nodes=2)
    crew = Crew(job, plan)
    crews.append(crew)
    crew.train(2)
    before = stage_of_worker(crew)

    crew.kill(*plan.stages[0].members)
    crew.fail_over(*plan.stages[0].members)

    after = stage_of_worker(crew)
    assert sorted(after) == [2, 3]
    assert {before[worker] for worker in after} == {1}  # nobody of stage 0 is left
    assert sorted(after.values()) == [0, 1]  # so one of them has changed stage, and both train
    state = crew.finish(crew.committed + 3)
    expected = undisturbed(job, plan, crew.committed, crews)
    assert difference(state, expected) < 1e-8

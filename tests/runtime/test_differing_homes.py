"""Arithmetic that goes wrong on one machine: its unit and its record agree, other homes do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crews import Crew, make_job, undisturbed
from flips import miscalculate, resume, stop_computing
from forked import form
from gangs import plan_for
from test_snapshots import take

from elasticmoe.controller.copies import find_sources
from elasticmoe.controller.decisions import Casualty, Quarantine
from elasticmoe.controller.quarantine import decide_quarantine, suspected
from elasticmoe.controller.state import Job, JobState, Node
from elasticmoe.messages.worker import CheckpointPart, FromMemory, GangEnded, WorkerParked
from elasticmoe.spec.job import JobSpec
from elasticmoe.vault.vault import Vault

pytestmark = [pytest.mark.dist, pytest.mark.timeout(110)]
EVERY_8 = {"interval_steps": 8}


def job_in(directory: Path, precision: str, redundancy: int, **protection: object) -> JobSpec:
    """Its homes are compared after every step."""
    job = make_job(directory, precision, redundancy=redundancy)
    updated = job.protection.model_copy(update={"hash_interval_steps": 1, **protection})
    return job.model_copy(update={"protection": updated})


def strike(crew: Crew, member: int, unit: int) -> None:
    """The unit's last update went wrong on this member, unnoticed."""
    worker = crew.workers[member]
    vault = stop_computing(worker)
    miscalculate(crew, vault, unit)
    resume(worker)


@pytest.mark.parametrize("as_primary", [True, False])
def test_of_three_homes_the_one_that_differs_is_wrong_repaired_and_in_the_end_avoided(
    tmp_path: Path, crews: list[Crew], as_primary: bool
) -> None:
    job = job_in(tmp_path, "fp32", 3)
    plan = plan_for(job, 3, nodes=3)
    crew = Crew(job, plan)
    crews.append(crew)
    unit = next(u for u, homes in enumerate(plan.homes) if (homes[0] == 2) == as_primary)
    nodes = {m.node: Node(m.node, m.domain, "", 2, 1 << 40) for m in plan.members}
    state = JobState(job=Job(job, crew.inventory), nodes=nodes)
    answers = []

    for _ in range(3):
        crew.train(2)
        strike(crew, 2, unit)
        parked = crew.workers[2].next(WorkerParked)
        assert parked.code == "corrupted"
        assert f"unit {unit} (1 in all) differs between its homes" in parked.reason
        assert parked.copies is not None
        assert parked.copies.torn == (unit,)
        crew.go_on_after([None, None, parked.copies])
        assert all(crew.copies_of(member).torn == () for member in range(3))
        signs = (Casualty("parked", 2, "node2", parked.reason, code=parked.code),)
        answers.append(decide_quarantine(replace(state, casualties=signs)))
        state = suspected(state, signs)
    end = crew.finish(crew.committed + 3)

    expected = undisturbed(job, plan, crew.committed, crews)
    assert all(np.array_equal(end[one], expected[one]) for one in expected)
    assert answers[:2] == [None, None]
    assert isinstance(answers[2], Quarantine)
    assert (answers[2].node, answers[2].spared) == ("node2", False)


def test_of_two_homes_that_differ_neither_is_trusted_and_all_go_back_to_the_snapshot(
    tmp_path: Path, crews: list[Crew]
) -> None:
    job = job_in(tmp_path, "fp64", 2, snapshots="copy")
    plan = plan_for(job, 2, nodes=2)
    crew = Crew(job, plan)
    crews.append(crew)
    crew.train(2)
    step = take(crew, 1)
    crew.train(2)

    strike(crew, 1, 5)
    parked = [worker.next(WorkerParked) for worker in crew.workers]

    assert [one.code for one in parked] == ["corrupted"] * 2
    copies = [one.copies for one in parked if one.copies is not None]
    assert [one.torn for one in copies] == [(5,), (5,)]
    assert 5 not in find_sources(copies, copies[0].step)  # no rung that keeps all steps applies
    crew.go_back_together(copies, step)
    crew.formed()
    end = crew.finish(step + 4, command=1)
    expected = undisturbed(job, plan, crew.committed, crews)
    worst = max(
        np.abs(end[unit] - expected[unit]).max() / max(np.abs(expected[unit]).max(), 1e-300)
        for unit in expected
    )
    assert worst < 1e-8


def files_of(job: JobSpec, step: int) -> set[str]:
    """Files of a step's checkpoint, sealed or not."""
    return {path.name for path in Path(job.storage.dir).glob(f"checkpoints/step-{step:08d}/*")}


def test_where_homes_differ_nobody_begins_to_write_the_checkpoint_of_that_step(
    tmp_path: Path, crews: list[Crew]
) -> None:
    job = job_in(tmp_path, "fp32", 3, hash_interval_steps=100_000)  # only before it is saved
    job = job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update=EVERY_8)})
    plan = plan_for(job, 3, nodes=3)
    crew = Crew(job, plan)
    crews.append(crew)
    crew.train(2)

    strike(crew, 2, 5)
    reports = [worker.next(WorkerParked) for worker in crew.workers]

    assert [report.code for report in reports] == ["", "", "corrupted"]
    assert all("unit 5 (1 in all) differs between its homes" in one.reason for one in reports)
    copies = [report.copies for report in reports]
    assert [one.torn for one in copies] == [(), (), (5,)]
    step = reports[0].committed_step
    assert step % 8 == 0
    crew.go_on_after(copies)
    assert crew.committed == step
    crew.finish(step + 3)  # whatever was begun before is written by then
    assert files_of(job, step) == set()
    assert len(files_of(job, crew.committed)) == 3


def test_after_a_recovery_at_the_last_step_homes_are_compared_before_it_is_saved(
    tmp_path: Path, crews: list[Crew]
) -> None:
    job = job_in(tmp_path, "fp32", 3)
    bounded = job.model_copy(update={"schedule": job.schedule.model_copy(update={"steps": 4})})
    plan = plan_for(job, 3, nodes=3)
    crew = Crew(bounded, plan)
    crews.append(crew)
    assert [worker.next(GangEnded).step for worker in crew.workers] == [4] * 3
    crew.committed = 4
    miscalculate(crew, Vault(crew.workers[2].vault), 5)  # the update to the last step was wrong

    crew.generation = 2
    form(plan, crew.workers, 2, FromMemory(4, (), 0))
    said = [next(filter(is_end, worker.reports())) for worker in crew.workers]

    assert [getattr(one, "code", one) for one in said] == ["", "", "corrupted"]
    crew.go_on_after([one.copies for one in said])
    assert [worker.next(CheckpointPart).generation for worker in crew.workers] == [3] * 3
    assert not any(name.startswith("g2-") for name in files_of(job, 4))
    expected = undisturbed(job, plan, 4, crews)
    end = crew.state()
    assert all(np.array_equal(end[one], expected[one]) for one in expected)


def is_end(report: object) -> bool:
    """Whether a member says that something came of its generation."""
    return isinstance(report, (CheckpointPart, GangEnded, WorkerParked))

"""Bits that flip, steps that must not be applied, and homes that move while the gang trains."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from crews import Crew, make_job, undisturbed
from forked import Worker
from gangs import RandomSamples, plan_for, tiny_job

from elasticmoe.messages.worker import Instruct, StepDone, WorkerParked
from elasticmoe.model.inventory import build_inventory
from elasticmoe.plan.protection import restore_protection, single_homed
from elasticmoe.runtime.gang import Gang, Seat, form_gang
from elasticmoe.runtime.groups import Over, Rendezvous
from elasticmoe.runtime.step import train_step
from elasticmoe.runtime.workplace import Workplace
from elasticmoe.spec.job import JobSpec
from elasticmoe.vault.vault import Vault

_CPU = torch.device("cpu")
pytestmark = [pytest.mark.dist, pytest.mark.timeout(110)]


def stop_outside_of_an_update(worker: Worker) -> Vault:
    """Stop a worker where none of its units is being written."""
    vault = Vault(worker.vault)
    while True:
        os.kill(worker.pid, signal.SIGSTOP)
        while Path(f"/proc/{worker.pid}/stat").read_text().split()[2] != "T":
            time.sleep(0.001)
        if vault.voted <= vault.step and (vault.steps_U() != -2).all():
            return vault
        os.kill(worker.pid, signal.SIGCONT)
        time.sleep(0.003)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("as_primary", [True, False])
def test_a_flipped_bit_is_found_and_repaired_from_the_other_home(
    tmp_path: Path, crews: list[Crew], kind: int, as_primary: bool
) -> None:
    job = make_job(tmp_path, "fp32")
    plan = plan_for(job, 2)
    crew = Crew(job, plan)
    crews.append(crew)
    crew.train(3)
    unit = next(u for u, homes in enumerate(plan.homes) if (homes[0] == 1) == as_primary)
    start = sum(one.numel for one in crew.inventory.units[:unit])

    vault = stop_outside_of_an_update(crew.workers[1])
    bits = vault.array(np.int32, (vault.layout.numel,), vault.layout.tensors[kind])
    before = int(bits[start + 3])
    bits[start + 3] ^= 1 << 20
    assert int(bits[start + 3]) != before  # the fault fired
    os.kill(crew.workers[1].pid, signal.SIGCONT)
    parked = crew.workers[1].next(WorkerParked)

    assert f"unit {unit} " in parked.reason
    assert parked.code == "corrupted"
    assert parked.copies is not None
    assert parked.copies.torn == (unit,)
    crew.go_on_after([None, parked.copies])
    state = crew.finish(crew.committed + 3)
    expected = undisturbed(job, plan, crew.committed, crews)
    assert all(np.array_equal(state[one], expected[one]) for one in expected)


def stop_prepared(crew: Crew) -> Vault:
    """Stop member 1 where both are prepared for the next step, and it has applied nothing."""
    stopped, other = crew.workers[1], Vault(crew.workers[0].vault)
    while True:
        vault = stop_outside_of_an_update(stopped)
        for _ in range(20):  # the other may be on its way
            if vault.prepared == other.prepared == vault.step + 1:
                return vault
            time.sleep(0.001)
        os.kill(stopped.pid, signal.SIGCONT)
        time.sleep(0.002)


def test_a_bit_that_flips_before_a_step_is_rolled_forward_is_found_and_repaired(
    tmp_path: Path, crews: list[Crew]
) -> None:
    job = make_job(tmp_path, "fp32")
    plan = plan_for(job, 2)
    crew = Crew(job, plan)
    crews.append(crew)
    crew.train(3)
    vault = stop_prepared(crew)
    bits = vault.array(np.int32, (vault.layout.numel,), vault.layout.tensors[0])
    before = int(bits[3])
    bits[3] ^= 1 << 20
    assert int(bits[3]) != before  # the fault fired
    crew.kill(1)

    settled = crew.replace(1, forms=False)
    parked = crew.workers[1].next(WorkerParked)

    assert settled.commits_open_step  # so that something is rolled forward
    assert (parked.generation, parked.code) == (2, "corrupted")
    assert "unit 0 " in parked.reason
    assert parked.copies is not None
    assert parked.copies.torn == (0,)
    crew.go_on_after([None, parked.copies])
    state = crew.finish(crew.committed + 3)
    expected = undisturbed(job, plan, crew.committed, crews)
    assert all(np.array_equal(state[one], expected[one]) for one in expected)


def test_homes_are_doubled_again_while_the_gang_trains(tmp_path: Path, crews: list[Crew]) -> None:
    job = make_job(tmp_path, "fp64", stages=2)
    crew = Crew(job, plan_for(job, 4))
    crews.append(crew)
    crew.train(3)
    crew.kill(3)
    crew.fail_over(3)
    assert single_homed(crew.plan, 2)  # there is something to restore
    crew.train(2)
    after = restore_protection(crew.plan, job, crew.inventory)
    assert not single_homed(after, 2)

    for worker in crew.workers:
        worker.tell(Instruct(crew.generation, 1, "protect", after.to_json()))
    done = crew.workers[0].next(StepDone)
    while done.instructed < 1:
        done = crew.workers[0].next(StepDone)
    crew.committed, crew.plan = done.step, after
    crew.train(2)
    crew.kill(1)
    crew.fail_over(1)  # would fail if a unit had one home only
    state = crew.finish(crew.committed + 2, command=1)

    expected = undisturbed(job, plan_for(job, 4), crew.committed, crews)
    worst = max(
        np.abs(state[unit] - expected[unit]).max() / max(np.abs(expected[unit]).max(), 1e-300)
        for unit in expected
    )
    assert worst < 1e-8


class SpikySamples(RandomSamples):
    """Text that is pure noise in the samples of one step."""

    def __init__(self, job: JobSpec, step: int) -> None:
        super().__init__(job)
        size = job.batch.global_samples
        self._noise = range(step * size, (step + 1) * size)

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = super().read(start, stop)
        for row, number in zip(rows, range(start, stop), strict=True):
            if number in self._noise:
                row[:] = np.random.default_rng(number).permutation(len(row)) + 15
        return rows


def alone(job: JobSpec, step: int) -> Gang:
    """A gang of one whose text is noise at one step."""
    inventory = build_inventory(job.model, job.data.seq_len)
    seat = Seat(plan_for(job, 1), 0, Rendezvous("", 0, 1))
    place = Workplace(job, inventory, _CPU)
    return form_gang(place, seat, over=Over(), reader=SpikySamples(job, step))


def test_a_step_with_a_loss_spike_commits_as_a_no_op() -> None:
    gang = alone(tiny_job(protection={"max_loss_ratio": 1.5}), 25)
    for _ in range(25):
        assert train_step(gang, 0).result.changes_weights
    before = (gang.homes.hashes(), gang.progress.bias_LE.clone(), gang.progress.updates)

    spiky = train_step(gang, 0)

    assert spiky.result.is_spike  # the fault fired
    assert gang.progress.step == 26
    assert gang.homes.vault.step == 26
    assert gang.progress.updates == before[2] == 25
    assert (gang.homes.hashes() == before[0]).all()
    assert (gang.progress.bias_LE == before[1]).all()
    assert train_step(gang, 0).result.changes_weights


def test_weights_that_are_not_finite_cost_one_step_and_are_sent_again() -> None:
    gang = alone(tiny_job(), 1000)
    train_step(gang, 0)
    before = gang.homes.hashes()
    gang.weights.flat.fill_(float("nan"))

    poisoned = train_step(gang, 0)

    assert not np.isfinite(poisoned.result.loss)  # the fault fired
    assert (gang.homes.hashes() == before).all()
    assert train_step(gang, 0).result.changes_weights
    assert gang.progress.updates == 2

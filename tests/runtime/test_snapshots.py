"""Snapshots by real workers: taken while training, gone back to after a node is lost."""

import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from crews import Crew, make_job, undisturbed
from flips import flip
from gangs import plan_for

from elasticmoe.controller.snapshots import is_whole
from elasticmoe.messages.worker import BreakGang, Instruct, WorkerParked
from elasticmoe.plan.types import Unit
from elasticmoe.runtime.memory import State
from elasticmoe.vault.snapshot import Snapshot
from elasticmoe.vault.vault import Vault

pytestmark = [pytest.mark.dist, pytest.mark.timeout(110)]


def begin(directory: Path, crews: list[Crew], kind: str, workers: int = 4) -> Crew:
    """Every worker is on a node of its own, and every unit has one home."""
    job = make_job(directory, "fp64", stages=2, redundancy=1)
    protection = job.protection.model_copy(update={"snapshots": kind})
    job = job.model_copy(update={"protection": protection})
    crew = Crew(job, plan_for(job, workers, nodes=workers))
    crews.append(crew)
    crew.train(2)
    return crew


def take(crew: Crew, command: int) -> int:
    """Have a snapshot taken; returns its step."""
    members = range(len(crew.workers))

    def newest() -> set[int]:
        taken = [crew.copies_of(member).snapshots for member in members]
        return {found[-1].step if found else 0 for found in taken}

    before = max(newest())
    for worker in crew.workers:
        worker.tell(Instruct(crew.generation, command, "snapshot"))
    while len(steps := newest()) > 1 or max(steps) == before:
        crew.train(1)
    return steps.pop()


def die_filling(doomed: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> Path:
    """Have the process whose pid is in a file die between a unit's values and its stamps, the nth
    time. For workers that are forked from here on."""
    real, times = State.hash_of, itertools.count(1)

    def hash_of(state: State, unit: Unit) -> int:
        if doomed.exists() and int(doomed.read_text()) == os.getpid() and next(times) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(state, unit)

    monkeypatch.setattr(State, "hash_of", hash_of)
    return doomed


@pytest.mark.parametrize("kind", ["copy", "parity"])
def test_survivors_of_a_lost_node_go_back_to_the_snapshot_and_reach_the_same_state(
    tmp_path: Path, crews: list[Crew], kind: str
) -> None:
    crew = begin(tmp_path, crews, kind)
    plan = crew.plan
    first, second = take(crew, 1), take(crew, 2)
    assert second > first

    crew.train(2)
    crew.kill(3)
    memory = crew.go_back(3, crew.inventory_of_copies((3,)), second)
    crew.formed()
    state = crew.finish(second + 4, command=1)

    assert bool(memory.rebuilt) == (kind == "parity")
    expected = undisturbed(crew.job, plan, crew.committed, crews)
    worst = max(
        np.abs(state[unit] - expected[unit]).max() / max(np.abs(expected[unit]).max(), 1e-300)
        for unit in expected
    )
    assert worst < 1e-8


@pytest.mark.parametrize("kind", ["copy", "parity"])
def test_a_death_while_units_are_copied_leaves_the_snapshot_before(
    tmp_path: Path, crews: list[Crew], kind: str
) -> None:
    crew = begin(tmp_path, crews, kind)
    first, second = take(crew, 1), take(crew, 2)
    crew.kill(3)
    copies = crew.inventory_of_copies((3,))

    vault = Vault(crew.workers[0].vault)
    (begun,) = [one for one in (Snapshot(vault, n) for n in (0, 1)) if one.step == second]
    begun.clear()  # what a member leaves that has only begun with it
    copies[0] = crew.copies_of(0)
    assert [one.step for one in copies[0].snapshots] == [first]
    crew.go_back(3, copies, first)
    crew.formed()

    assert crew.finish(first + 3, command=1)


@pytest.mark.parametrize("kind", ["copy", "parity"])
def test_a_member_that_is_killed_while_it_puts_the_snapshot_back_costs_no_further_step(
    tmp_path: Path, crews: list[Crew], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    doomed = die_filling(tmp_path / "doomed", monkeypatch, nth=2)
    crew = begin(tmp_path, crews, kind)
    plan = crew.plan
    step = take(crew, 1)
    crew.train(2)
    crew.kill(3)
    copies = crew.inventory_of_copies((3,))
    doomed.write_text(str(crew.workers[1].pid))
    crew.go_back(3, copies, step)

    assert crew.workers[1].end() == -signal.SIGKILL
    copies = crew.inventory_of_copies((1,))
    assert [len(units) for _, units in copies[1].whole] == [1]  # it died in the middle
    assert copies[1].step == -1
    crew.go_back_again(1, copies, step)
    crew.formed()
    state = crew.finish(step + 4, command=1)

    expected = undisturbed(crew.job, plan, crew.committed, crews)
    worst = max(
        np.abs(state[unit] - expected[unit]).max() / max(np.abs(expected[unit]).max(), 1e-300)
        for unit in expected
    )
    assert worst < 1e-8


def flip_own_copy(crew: Crew, member: int, step: int) -> int:
    """Flip a bit in a member's snapshot, in its own copy of a unit; returns the unit."""
    vault = Vault(crew.workers[member].vault)
    (about,) = [one for one in (Snapshot(vault, n) for n in (0, 1)) if one.step == step]
    unit = next(u for u, homes in enumerate(crew.plan.homes) if homes == (member,))
    assert (unit,) in about.groups()
    flip(crew, vault, unit, about.tensors)
    return unit


def test_a_copy_whose_bits_have_flipped_is_not_gone_on_with(
    tmp_path: Path, crews: list[Crew]
) -> None:
    crew = begin(tmp_path, crews, "copy", workers=2)
    step = take(crew, 1)
    unit = flip_own_copy(crew, 0, step)

    crew.kill(1)
    crew.go_back(1, crew.inventory_of_copies((1,)), step)

    parked = crew.workers[0].next(WorkerParked)
    assert parked.code == "corrupted"
    assert f"unit {unit} (1 in all)" in parked.reason
    assert parked.copies is not None
    assert [one.step for one in parked.copies.snapshots] == [step]
    assert not is_whole([parked.copies], step, len(crew.inventory.units))


def test_a_copy_whose_bits_have_flipped_comes_from_who_keeps_the_other(
    tmp_path: Path, crews: list[Crew]
) -> None:
    crew = begin(tmp_path, crews, "copy", workers=2)
    plan, step = crew.plan, take(crew, 1)
    crew.train(1)
    unit = flip_own_copy(crew, 0, step)

    crew.go_back_together(crew.inventory_of_copies(()), step)
    parked = crew.workers[0].next(WorkerParked)
    assert f"unit {unit} (1 in all)" in parked.reason
    crew.workers[1].tell(BreakGang(crew.generation))
    other = crew.workers[1].next(WorkerParked)
    assert parked.copies is not None
    assert other.copies is not None
    crew.go_back_together([parked.copies, other.copies], step)
    crew.formed()
    state = crew.finish(step + 4, command=1)

    assert crew.plan.homes[unit] == (1,)  # who has the one good copy
    expected = undisturbed(crew.job, plan, crew.committed, crews)
    worst = max(
        np.abs(state[unit] - expected[unit]).max() / max(np.abs(expected[unit]).max(), 1e-300)
        for unit in expected
    )
    assert worst < 1e-8


def test_snapshots_take_the_memory_of_two_however_many_are_taken(
    tmp_path: Path, crews: list[Crew]
) -> None:
    crew = begin(tmp_path, crews, "copy", workers=2)
    for number in (1, 2):
        take(crew, number)
    taken = os.fstat(crew.workers[0].vault).st_blocks
    for number in (3, 4, 5):
        take(crew, number)

    assert os.fstat(crew.workers[0].vault).st_blocks == taken

"""A copy is never better trusted than what it was made from: flips where units move or are kept."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crews import Crew, make_job, undisturbed
from flips import flip, stop_computing
from forked import form
from gangs import RandomSamples, plan_for, tiny_job

from elasticmoe.checkpoint.store import Store, open_store
from elasticmoe.messages.worker import WorkerParked
from elasticmoe.model.inventory import build_inventory
from elasticmoe.runtime import moves
from elasticmoe.runtime.checkpoints import KINDS, CheckpointWriter, Written
from elasticmoe.runtime.gang import Gang, Seat, form_gang
from elasticmoe.runtime.groups import Over, Rendezvous
from elasticmoe.runtime.memory import State
from elasticmoe.runtime.optimizer import CorruptedError, Update, apply_update, undo_torn
from elasticmoe.runtime.step import train_step
from elasticmoe.runtime.workplace import Workplace
from elasticmoe.vault.contents import read_copies
from elasticmoe.vault.snapshot import read_snapshots
from elasticmoe.vault.vault import Vault

pytestmark = [pytest.mark.dist, pytest.mark.timeout(110)]


def assert_as_if_undisturbed(crew: Crew, crews: list[Crew], plan: Any) -> None:
    state = crew.finish(crew.committed + 3)
    expected = undisturbed(crew.job, plan, crew.committed, crews)
    assert all(np.array_equal(state[unit], expected[unit]) for unit in expected)


def test_a_unit_whose_bits_flipped_is_not_sent_and_comes_from_another_home(
    tmp_path: Path, crews: list[Crew]
) -> None:
    job = make_job(tmp_path, "fp32", redundancy=3)
    plan = plan_for(job, 3)
    crew = Crew(job, plan)
    crews.append(crew)
    crew.train(2)
    stop_computing(crew.workers[1])  # nobody is prepared, so nothing is rolled forward
    crew.kill(1)

    settled = crew.replace_from_peers(
        1, forms=False, meanwhile=lambda: flip(crew, Vault(crew.workers[0].vault), 5)
    )
    parked = crew.workers[0].next(WorkerParked)

    assert not settled.commits_open_step
    assert (parked.generation, parked.code) == (2, "corrupted")
    assert "unit 5 (1 in all)" in parked.reason
    assert parked.copies is not None
    assert parked.copies.torn == (5,)
    crew.go_on_after([parked.copies, None, None])
    assert_as_if_undisturbed(crew, crews, plan)


def test_a_unit_that_arrives_with_other_bits_than_were_sent_is_sent_again(
    tmp_path: Path, crews: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, "fp32")
    plan = plan_for(job, 2)
    packed, fired = moves._packed, tmp_path / "fired"

    def packed_badly(*arguments: Any) -> torch.Tensor:
        sent = packed(*arguments)
        if len(sent) and not fired.exists():
            fired.touch()
            sent[3] += 1
        return sent

    with monkeypatch.context() as patch:
        patch.setattr(moves, "_packed", packed_badly)
        crew = Crew(job, plan)
    crews.append(crew)
    crew.train(2)
    crew.kill(1)

    crew.replace_from_peers(1, forms=False)
    parked = crew.workers[1].next(WorkerParked)

    assert fired.exists()
    assert parked.code == "corrupted"
    assert "unit 0 (1 in all)" in parked.reason
    assert parked.copies is not None
    assert all(0 not in units for _, units in parked.copies.whole)
    crew.go_on_after([None, parked.copies])
    assert_as_if_undisturbed(crew, crews, plan)


def test_what_is_corrupted_in_the_vault_of_a_dead_worker_is_reported_by_who_reads_it(
    tmp_path: Path, crews: list[Crew]
) -> None:
    job = make_job(tmp_path, "fp32", redundancy=1)
    crew = Crew(job, plan_for(job, 2))
    crews.append(crew)
    crew.train(2)
    vault = stop_computing(crew.workers[1])
    unit = next(u for u, homes in enumerate(crew.plan.homes) if homes == (1,))
    flip(crew, vault, unit)
    dead = crew.workers[1]
    crew.kill(1)

    crew.fail_over(1, keep_vaults=True, forms=False)
    parked = crew.workers[0].next(WorkerParked)

    assert parked.code == "corrupted"
    assert f"unit {unit} (1 in all)" in parked.reason
    (adopted,) = parked.adopted
    assert (adopted.worker, adopted.torn) == (dead.number, (unit,))
    assert parked.copies is not None
    assert all(unit not in units for _, units in parked.copies.whole)


def test_the_vault_of_a_dead_worker_is_let_go_when_another_generation_needs_it_no_more(
    tmp_path: Path, crews: list[Crew]
) -> None:
    job = make_job(tmp_path, "fp32", redundancy=1)
    plan = plan_for(job, 2)
    crew = Crew(job, plan)
    crews.append(crew)
    crew.train(2)
    flip(crew, stop_computing(crew.workers[1]), plan.homes.index((1,)))
    crew.kill(1)
    crew.fail_over(1, keep_vaults=True, forms=False)
    reader = crew.workers[0]
    reader.next(WorkerParked)
    maps = Path(f"/proc/{reader.pid}/maps")
    assert "memfd:vault-1" in maps.read_text()  # it failed to join, and holds it still

    form(plan, [reader], 3)  # from the beginning; the other member never comes

    deadline_s = time.monotonic() + 10.0
    while "memfd:vault-1" in maps.read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def alone(**sections: Any) -> Gang:
    """A gang of one that has taken two steps, and is the only home of every unit."""
    job = tiny_job(protection={"redundancy": 1}, **sections)
    inventory = build_inventory(job.model, job.data.seq_len)
    seat = Seat(plan_for(job, 1), 0, Rendezvous("", 0, 1))
    place = Workplace(job, inventory, torch.device("cpu"))
    gang = form_gang(place, seat, over=Over(), reader=RandomSamples(job))
    for _ in range(2):
        train_step(gang, 0)
    return gang


def strike(state: State, unit: int) -> None:
    """Change the last bit of a number."""
    master, _, _ = state.tensors_of(state.inventory.units[unit])
    master.view(torch.int64)[3] ^= 1


def test_a_snapshot_of_a_corrupted_unit_is_not_taken_and_the_one_before_stays() -> None:
    gang = alone()
    gang.take_snapshot()
    train_step(gang, 0)
    strike(gang.homes.state, 4)

    with pytest.raises(CorruptedError, match="unit 4 "):
        gang.take_snapshot()

    assert read_copies(gang.homes.vault, 0, is_alive=True).torn == (4,)
    (kept,) = read_snapshots(gang.homes.vault)
    assert kept.step == 2


class Reports:
    """What a writer says of its parts."""

    def __init__(self, store: Store) -> None:
        self.written: list[Written] = []
        self.writer = CheckpointWriter(store, self.written.append)


def test_a_checkpoint_of_a_corrupted_unit_is_not_written_and_the_unit_counts_as_torn(
    tmp_path: Path,
) -> None:
    gang, reports = alone(), Reports(open_store(str(tmp_path)))
    strike(gang.homes.state, 4)

    reports.writer.take(gang)
    with pytest.raises(CorruptedError, match="unit 4 "):
        reports.writer.wait(Over())

    (written,) = reports.written
    assert "unit 4 (1 in all) did not match" in written.error
    assert written.files == []
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert read_copies(gang.homes.vault, 0, is_alive=True).torn == (4,)


def take_badly(
    reports: Reports, gang: Gang, monkeypatch: pytest.MonkeyPatch, *, steps: int
) -> None:
    """Take a checkpoint whose copy of unit 4 gets a flipped bit, and so many steps meanwhile."""
    taken = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr("elasticmoe.runtime.checkpoints.os.setpriority", lambda *_: taken.wait(20))
        reports.writer.take(gang)
        reports.writer._room["unit.4.master"].view(torch.int64)[3] ^= 1
        for _ in range(steps):
            train_step(gang, 0)
        taken.set()
        assert reports.writer._thread is not None
        reports.writer._thread.join(20)


def test_a_unit_that_was_updated_since_is_not_blamed_for_a_copy_that_was_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gang, reports = alone(), Reports(open_store(str(tmp_path)))

    take_badly(reports, gang, monkeypatch, steps=1)
    reports.writer.wait(Over())

    (written,) = reports.written
    assert "unit 4 (1 in all) did not match" in written.error
    assert read_copies(gang.homes.vault, 0, is_alive=True).torn == ()


def test_a_copy_that_was_bad_is_made_again_where_no_update_has_come_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gang, reports = alone(), Reports(open_store(str(tmp_path)))

    take_badly(reports, gang, monkeypatch, steps=0)
    with pytest.raises(CorruptedError, match="unit 4 "):
        reports.writer.wait(Over())
    assert read_copies(gang.homes.vault, 0, is_alive=True).torn == ()
    reports.writer.take(gang)
    reports.writer.wait(Over())

    failed, written = reports.written
    assert "unit 4 (1 in all) did not match" in failed.error
    assert written.error == ""
    (file,) = tmp_path.rglob("*.safetensors")
    assert written.files[0]["name"] == file.name


def test_no_copy_is_kept_of_units_that_others_write_by_now(tmp_path: Path) -> None:
    gang, reports = alone(), Reports(open_store(str(tmp_path)))
    reports.writer.take(gang)
    reports.writer.wait(Over())
    assert "unit.3.master" in reports.writer._room

    gang.homes.num_primary = 3  # as after growing
    reports.writer.take(gang)
    reports.writer.wait(Over())

    kept = {name for name in reports.writer._room if name.startswith("unit.")}
    assert kept == {f"unit.{unit}.{kind}" for unit in range(3) for kind in KINDS}


def cut_off(gang: Gang, unit: int, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Cut off a unit's update in the middle; returns its state before."""
    state, job = gang.homes.state, gang.job
    gang.homes.vault.prepare(3, is_finite=True, loss=1.0, counts_LE=gang.homes.vault.counts_LE)
    before = [tensor.clone() for tensor in state.tensors_of(state.inventory.units[unit])]

    def scribble(state: State, unit: Any, *_: Any) -> None:
        state.tensors_of(unit)[0].fill_(7.0)
        raise KeyboardInterrupt

    units, update = [state.inventory.units[unit]], Update(3, 3, 0.01)
    with monkeypatch.context() as patch:
        patch.setattr("elasticmoe.runtime.optimizer._adamw", scribble)
        with pytest.raises(KeyboardInterrupt):
            apply_update(state, units, job.optimizer, update, alone={unit})
    return before


def test_a_unit_whose_update_was_cut_off_is_put_back_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gang = alone()
    state = gang.homes.state
    before = cut_off(gang, 4, monkeypatch)
    assert gang.homes.vault.steps_U()[4] == -2  # the fault fired

    assert undo_torn(state) == ()

    assert gang.homes.vault.steps_U()[4] == 2
    after = state.tensors_of(state.inventory.units[4])
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert state.is_intact(state.inventory.units[4])


def test_an_undo_copy_whose_bits_flipped_is_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gang = alone()
    cut_off(gang, 4, monkeypatch)
    gang.homes.state.undo[1].view(torch.int64)[0] ^= 1
    assert read_copies(gang.homes.vault, 0, is_alive=False).torn == ()  # as good as whole

    assert undo_torn(gang.homes.state) == (4,)

    assert read_copies(gang.homes.vault, 0, is_alive=False).torn == (4,)

"""Snapshots: units in host memory, to go back to when all homes of a unit are lost.

Taken by all members between the same two steps: each copies the units that it is primary home of
within its vault, and sends them to who keeps a copy or a parity of them (`plan/snapshots.py`). A
vault has room for two, so that the one before is there until the new one is whole.
"""

from collections.abc import Sequence
from math import isnan, nan

import numpy as np
import torch
from torch import Tensor

from elasticmoe.plan.snapshots import SnapshotGroup
from elasticmoe.plan.types import Unit
from elasticmoe.runtime.groups import Group
from elasticmoe.runtime.memory import Homes, State, Tensors, hash_tensors
from elasticmoe.runtime.moves import NotWholeError, find_copies, move_units
from elasticmoe.runtime.optimizer import refuse_corrupted
from elasticmoe.runtime.progress import Progress
from elasticmoe.vault.snapshot import NUM_SNAPSHOTS, Snapshot


class Room:
    """One of the two snapshots of a vault, with its tensors."""

    def __init__(self, state: State, number: int) -> None:
        self.about = Snapshot(state.vault, number)
        self._state = state
        master, exp_avg, exp_avg_sq = (state.view(offset) for offset in self.about.tensors)
        self._flat = master, exp_avg, exp_avg_sq

    def tensors_of(self, unit: Unit) -> Tensors:
        """A unit's place."""
        start = self._state.place_of(unit)
        a, b, c = (flat[start : start + unit.numel] for flat in self._flat)
        return a, b, c

    def empty(self, but: set[int]) -> None:
        """Nothing is here any more; give back the memory of all units that will not come again."""
        units, vault = self._state.inventory.units, self._state.vault
        itemsize = self._flat[0].element_size()
        gone = {group[0] for group in self.about.groups()} - but
        self.about.clear()
        for unit in (units[index] for index in gone):
            first = self._state.place_of(unit)
            for offset in self.about.tensors:
                vault.release(offset + first * itemsize, offset + (first + unit.numel) * itemsize)


def take_snapshot(
    homes: Homes,
    plan_homes: Sequence[Sequence[int]],
    groups: Sequence[SnapshotGroup],
    member: int,
    world: Group,
    progress: Progress,
) -> None:
    """Copy the committed state; called by all members between the same two steps.

    Args:
        homes: this member's.
        plan_homes: homes of every unit, the primary one first.
        groups: who keeps what besides the primary homes.
        member: this one.

    Raises:
        GangBrokenError: the generation ended first; the snapshot before is still there.
        CorruptedError: so it is, because a unit is not as its last update left it.
    """
    state, units = homes.state, homes.state.inventory.units
    kept = {group.units[0]: group for group in groups if group.keeper == member}
    moves = [
        (index, plan_homes[index][0], group.keeper)
        for group in groups
        for index in group.units
        if group.keeper not in plan_homes[index]
    ]
    sent = {index for index, _, _ in moves}
    mirrored = [
        units[index]
        for group in kept.values()
        for index in group.units
        if index not in sent  # this member has it: nothing needs to be sent
    ]
    unsent = [unit for unit in homes.primary if unit.index not in sent]
    find_copies((state,), [*unsent, *mirrored], progress.step)  # the others, when they are sent
    room = min((Room(state, n) for n in range(NUM_SNAPSHOTS)), key=lambda room: room.about.step)
    room.empty(but={unit.index for unit in homes.primary} | set(kept))
    for unit in homes.primary:
        _copy(state.tensors_of(unit), room.tensors_of(unit))
        room.about.note((unit.index,), state.recorded_hash(unit))
    inbox = _Inbox(room, units, kept)
    for unit in mirrored:
        inbox.put(unit, state.tensors_of(unit), state.recorded_hash(unit))
    move_units(moves, member, (state,), world, progress.step, receive=inbox.add)
    inbox.note()
    loss = 0.0 if isnan(progress.running_loss) else progress.running_loss
    bias_LE = progress.bias_LE.cpu().double().numpy()
    room.about.finish(progress.step, progress.updates, bias_LE, progress.running_LE, loss)


class _Inbox:
    """Puts what arrives in its group's place: the first as it is, the others by XOR."""

    def __init__(self, room: Room, units: Sequence[Unit], kept: dict[int, SnapshotGroup]) -> None:
        self._room, self._units, self._kept = room, units, kept
        self._head = {unit: head for head, group in kept.items() for unit in group.units}
        self._first: dict[int, int] = {}
        """Recorded hash of the first unit that came, by group."""

    def add(self, unit: Unit, tensors: Tensors, hashed: int) -> bool:
        """Take in a unit, if it has the hash that its home recorded; returns whether it has."""
        fits = hash_tensors(tensors) == hashed
        if fits:
            self.put(unit, tensors, hashed)
        return fits

    def put(self, unit: Unit, tensors: Tensors, hashed: int) -> None:
        """Take in a unit that was found to have the hash that its home recorded."""
        head = self._units[self._head[unit.index]]
        place = self._room.tensors_of(head)
        if head.index not in self._first:
            self._first[head.index] = hashed
            _copy(tensors, place)
            for target in place:
                target[unit.numel :].zero_()
        else:
            _xor(tensors, place)

    def note(self) -> None:
        """All units are here: a copy keeps the hash that its home recorded."""
        for head, group in self._kept.items():
            is_copy = len(group.units) == 1
            parity = self._room.tensors_of(self._units[head])
            hashed = self._first[head] if is_copy else hash_tensors(parity)
            self._room.about.note(group.units, hashed)


def restore_snapshot(state: State, step: int, like: Tensor) -> tuple[int, ...]:
    """Put the snapshot of a step in the place of all that is newer; harmless if done twice.

    Args:
        like: a bias tensor; gives shape, dtype and device.

    Returns:
        Units whose copies do not have their hash; they are no part of the snapshot any more.
    """
    vault, units = state.vault, state.inventory.units
    vault.settle()
    vault.set_undo(-1)
    vault.forget(np.arange(len(units)))
    vault.clear_progress()
    corrupted: list[int] = []
    for room in (Room(state, number) for number in range(NUM_SNAPSHOTS)):
        if room.about.step != step:
            room.about.clear()  # of a history that is given up, or older
            continue
        whole = [units[group[0]] for group in room.about.groups() if len(group) == 1]
        state.make_room(whole)
        for unit in whole:
            hashed = int(room.about.hashes_U[unit.index])
            if not state.fill(unit, step, *room.tensors_of(unit), hashed=hashed):
                room.about.drop([unit.index])
                corrupted.append(unit.index)
        updates, bias_LE, running_LE, loss = room.about.read_progress()
        bias = torch.from_numpy(bias_LE).to(like)
        Progress(step, updates, bias, running_LE, loss if updates else nan).save(vault)
    return tuple(corrupted)


def rebuild_units(
    rebuilt: Sequence[tuple[int, int, tuple[int, ...]]],
    member: int,
    sources: Sequence[State],
    step: int,
) -> None:
    """Make units that nobody has a copy of from a parity and the other units of its group.

    Args:
        rebuilt: (unit, member that has the parity and all others by now, the others).
        sources: this member's memory; the first is its own.

    Raises:
        CorruptedError: a copy is not as it was left, or the parity is not.
        NotWholeError: the parity or a copy is not there.
    """
    for index, where, others in rebuilt:
        if where == member:
            _rebuild(index, others, sources, step)


def _rebuild(index: int, others: Sequence[int], sources: Sequence[State], step: int) -> None:
    units = sources[0].inventory.units
    for room in (Room(state, number) for state in sources for number in range(NUM_SNAPSHOTS)):
        found = [group for group in room.about.groups() if set(group) == {index, *others}]
        if room.about.step != step or not found:
            continue
        head = units[found[0][0]]
        parity = room.tensors_of(head)
        if hash_tensors(parity) != int(room.about.hashes_U[head.index]):
            room.about.drop(found[0])
            refuse_corrupted([index])
        a, b, c = (tensor.clone() for tensor in parity)
        copied = [units[one] for one in others]
        for state, other in zip(find_copies(sources, copied, step), copied, strict=True):
            _xor(state.tensors_of(other), (a, b, c))
        unit = units[index]
        sources[0].make_room([unit])
        sources[0].fill(unit, step, a[: unit.numel], b[: unit.numel], c[: unit.numel])
        return
    raise NotWholeError(f"the parity to rebuild unit {index} at step {step} from is not here")


def forget_snapshots(state: State) -> None:
    """Another history begins."""
    for number in range(NUM_SNAPSHOTS):
        Snapshot(state.vault, number).clear()


def _copy(source: Tensors, target: Tensors) -> None:
    for one, other in zip(source, target, strict=True):
        other[: one.numel()].copy_(one)


def _xor(source: Tensors, target: Tensors) -> None:
    for one, other in zip(source, target, strict=True):
        bits = other[: one.numel()].view(torch.int32)
        bits.bitwise_xor_(one.to(other.device).view(torch.int32))

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
from elasticmoe.runtime.memory import Homes, State, hash_tensors
from elasticmoe.runtime.moves import NotWholeError, is_whole, move_units
from elasticmoe.runtime.progress import Progress
from elasticmoe.vault.snapshot import NUM_SNAPSHOTS, Snapshot

Tensors = tuple[Tensor, Tensor, Tensor]
"""Master weights and moments of a unit, flat."""


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
    """
    state, units = homes.state, homes.state.inventory.units
    kept = {group.units[0]: group for group in groups if group.keeper == member}
    room = min((Room(state, n) for n in range(NUM_SNAPSHOTS)), key=lambda room: room.about.step)
    room.empty(but={unit.index for unit in homes.primary} | set(kept))
    for unit in homes.primary:
        _copy(state.tensors_of(unit), room.tensors_of(unit))
        room.about.note((unit.index,), int(homes.vault.hashes_U[unit.index]))
    inbox = _Inbox(room, units, kept)
    for group in kept.values():
        for index in group.units:
            if member in plan_homes[index]:  # it mirrors the unit: nothing needs to be sent
                inbox.add(units[index], state.tensors_of(units[index]))
    moves = [
        (index, plan_homes[index][0], group.keeper)
        for group in groups
        for index in group.units
        if group.keeper not in plan_homes[index]
    ]
    move_units(moves, member, (state,), world, progress.step, receive=inbox.add)
    for group in kept.values():
        hashed = hash_tensors(room.tensors_of(units[group.units[0]]))
        room.about.note(group.units, hashed)
    loss = 0.0 if isnan(progress.running_loss) else progress.running_loss
    bias_LE = progress.bias_LE.cpu().double().numpy()
    room.about.finish(progress.step, progress.updates, bias_LE, progress.running_LE, loss)


class _Inbox:
    """Puts what arrives in its group's place: the first as it is, the others by XOR."""

    def __init__(self, room: Room, units: Sequence[Unit], kept: dict[int, SnapshotGroup]) -> None:
        self._room, self._units = room, units
        self._head = {unit: head for head, group in kept.items() for unit in group.units}
        self._begun: set[int] = set()

    def add(self, unit: Unit, tensors: Tensors) -> None:
        """Take in a unit."""
        head = self._units[self._head[unit.index]]
        place = self._room.tensors_of(head)
        if head.index not in self._begun:
            self._begun.add(head.index)
            _copy(tensors, place)
            for target in place:
                target[unit.numel :].zero_()
        else:
            _xor(tensors, place)


def restore_snapshot(state: State, step: int, like: Tensor) -> None:
    """Put the snapshot of a step in the place of all that is newer; harmless if done twice.

    Copies that do not match their hash are left out, as if they had been lost.

    Args:
        like: a bias tensor; gives shape, dtype and device.
    """
    vault, units = state.vault, state.inventory.units
    vault.settle()
    vault.set_undo(-1)
    vault.forget(np.arange(len(units)))
    vault.clear_progress()
    for room in (Room(state, number) for number in range(NUM_SNAPSHOTS)):
        if room.about.step != step:
            room.about.clear()  # of a history that is given up, or older
            continue
        whole = [units[group[0]] for group in room.about.groups() if len(group) == 1]
        state.make_room(whole)
        for unit in whole:
            tensors = room.tensors_of(unit)
            if hash_tensors(tensors) == int(room.about.hashes_U[unit.index]):
                state.fill(unit, step, *tensors)
        updates, bias_LE, running_LE, loss = room.about.read_progress()
        bias = torch.from_numpy(bias_LE).to(like)
        Progress(step, updates, bias, running_LE, loss if updates else nan).save(vault)


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
            continue
        a, b, c = (tensor.clone() for tensor in parity)
        for other in (units[one] for one in others):
            whole = next((state for state in sources if is_whole(state, other, step)), None)
            if whole is None:
                raise NotWholeError(f"unit {other.index}, to rebuild unit {index}, is not here")
            _xor(whole.tensors_of(other), (a, b, c))
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

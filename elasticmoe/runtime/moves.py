"""Units on their way from one member's memory to another's."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

import torch
from torch import Tensor

from elasticmoe.errors import ElasticMoEError
from elasticmoe.plan.types import Unit
from elasticmoe.runtime.groups import Group
from elasticmoe.runtime.memory import State

BATCH_BYTES: Final = 1 << 28
"""Of state that a member sends or receives in one exchange: bounds the room for it."""


class NotWholeError(ElasticMoEError):
    """A unit is not in memory as the controller thought; a bug, or memory was lost meanwhile."""

    code = "not_whole"


def is_whole(state: State, unit: Unit, step: int) -> bool:
    """Whether a unit is here as it is after `step` committed steps."""
    return bool((state.vault.stamps_U2[unit.index] == step + 1).all())


def move_units(
    moves: Sequence[tuple[int, int, int]],
    member: int,
    sources: Sequence[State],
    world: Group,
    step: int,
    receive: Callable[[Unit, tuple[Tensor, Tensor, Tensor]], None] | None = None,
) -> None:
    """Send units to members that lack them; everybody takes part in every exchange.

    Args:
        moves: (unit, member that has a copy, member that gets one).
        member: this one.
        sources: memory that it may send from; the first is its own.
        step: the units are whole at it.
        receive: takes in a unit's weights and moments; none: they become its own copy.

    Raises:
        GangBrokenError: the generation ended first.
        NotWholeError: a unit that was to be sent is not there.
    """
    units = sources[0].inventory.units
    itemsize = sources[0].master.element_size()
    for batch in _batches(moves, [3 * unit.numel * itemsize for unit in units]):
        outgoing = [(unit, to) for unit, origin, to in batch if origin == member]
        incoming = [(unit, origin) for unit, origin, to in batch if to == member]
        outgoing.sort(key=lambda move: (move[1], move[0]))
        incoming.sort(key=lambda move: (move[1], move[0]))
        parts = [part for unit, _ in outgoing for part in _whole(sources, units[unit], step)]
        empty = sources[0].master[:0]
        sent = torch.cat(parts) if parts else empty
        received = empty.new_empty(sum(3 * units[unit].numel for unit, _ in incoming))
        world.all_to_all(
            received, sent, _sizes(incoming, units, world.size), _sizes(outgoing, units, world.size)
        )
        at = 0
        for index, _ in incoming:
            unit = units[index]
            master, exp_avg, exp_avg_sq = received[at : at + 3 * unit.numel].split(unit.numel)
            if receive is None:
                sources[0].fill(unit, step, master, exp_avg, exp_avg_sq)
            else:
                receive(unit, (master, exp_avg, exp_avg_sq))
            at += 3 * unit.numel


def _whole(sources: Sequence[State], unit: Unit, step: int) -> tuple[Tensor, Tensor, Tensor]:
    for state in sources:
        if is_whole(state, unit, step):
            return state.tensors_of(unit)
    raise NotWholeError(f"unit {unit.index} was to be sent at step {step}, and is not whole here")


def _sizes(moves: list[tuple[int, int]], units: Sequence[Unit], size: int) -> list[int]:
    sizes = [0] * size
    for member, group in groupby(moves, key=lambda move: move[1]):
        sizes[member] = sum(3 * units[unit].numel for unit, _ in group)
    return sizes


def _batches(
    moves: Sequence[tuple[int, int, int]], bytes_U: list[int]
) -> list[list[tuple[int, int, int]]]:
    """Cut the moves so that nobody sends or receives much more than `BATCH_BYTES` at a time."""
    batches: list[list[tuple[int, int, int]]] = []
    used: dict[tuple[str, int], int] = {}
    for unit, origin, to in moves:
        ends = (("from", origin), ("to", to))
        if not batches or any(used.get(end, 0) >= BATCH_BYTES for end in ends):
            batches.append([])
            used = {}
        batches[-1].append((unit, origin, to))
        for end in ends:
            used[end] = used.get(end, 0) + bytes_U[unit]
    return batches

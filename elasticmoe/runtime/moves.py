"""Units on their way from one member's memory to another's."""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from elasticmoe.errors import ElasticMoEError
from elasticmoe.plan.types import Unit
from elasticmoe.runtime.groups import Group
from elasticmoe.runtime.memory import State, Tensors
from elasticmoe.runtime.optimizer import refuse_corrupted

BATCH_BYTES: Final = 1 << 28
"""Of state that a member sends or receives in one exchange: bounds the room for it."""
_HASH_BYTES: Final = 8


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
    receive: Callable[[Unit, Tensors, int], bool] | None = None,
) -> None:
    """Send units to members that lack them; everybody takes part in every exchange.

    A unit travels with the hash that its home recorded after its last update. Who sends it checks
    it against that first, and who gets it checks what has arrived: so a copy is never better
    trusted than what it was made from.

    Args:
        moves: (unit, member that has a copy, member that gets one).
        member: this one.
        sources: memory that it may send from; the first is its own.
        step: the units are whole at it.
        receive: takes in a unit's weights and moments, and says whether they have the hash that it
            is given; none: they become its own copy.

    Raises:
        GangBrokenError: the generation ended first.
        CorruptedError: a unit that was to be sent is not as its last update left it, and is torn
            now; or one arrived that is not as it was sent.
        NotWholeError: a unit that was to be sent is not there.
    """
    units = sources[0].inventory.units
    itemsize = sources[0].master.element_size()
    sizes_U = [3 * unit.numel + _HASH_BYTES // itemsize for unit in units]
    for batch in _batches(moves, [size * itemsize for size in sizes_U]):
        outgoing = [(unit, to) for unit, origin, to in batch if origin == member]
        incoming = [(unit, origin) for unit, origin, to in batch if to == member]
        outgoing.sort(key=lambda move: (move[1], move[0]))
        incoming.sort(key=lambda move: (move[1], move[0]))
        sent = _packed(sources, [units[unit] for unit, _ in outgoing], step)
        received = sent.new_empty(sum(sizes_U[unit] for unit, _ in incoming))
        world.all_to_all(
            received,
            sent,
            _sizes(incoming, sizes_U, world.size),
            _sizes(outgoing, sizes_U, world.size),
        )
        arrived = received.split([sizes_U[unit] for unit, _ in incoming])
        bad = []
        for (index, _), whole in zip(incoming, arrived, strict=True):
            unit = units[index]
            master, exp_avg, exp_avg_sq, tail = whole.split([*(unit.numel,) * 3, _words(whole)])
            hashed = int(tail.cpu().view(torch.int64))
            if receive is None:
                fits = sources[0].fill(unit, step, master, exp_avg, exp_avg_sq, hashed=hashed)
            else:
                fits = receive(unit, (master, exp_avg, exp_avg_sq), hashed)
            if not fits:
                bad.append(index)
        refuse_corrupted(bad)


def find_copies(sources: Sequence[State], units: Sequence[Unit], step: int) -> list[State]:
    """Find memory that each unit can be copied from.

    Raises:
        CorruptedError: some are not as their last update left them, and are torn now.
        NotWholeError: one is in none of the sources.
    """
    found, corrupted = [], []
    for unit in units:
        state = next((state for state in sources if is_whole(state, unit, step)), None)
        if state is None:
            raise NotWholeError(f"unit {unit.index} is not whole here at step {step}")
        found.append(state)
        if not state.is_intact(unit):
            corrupted.append(unit.index)
    refuse_corrupted(corrupted)
    return found


def _packed(sources: Sequence[State], units: Sequence[Unit], step: int) -> Tensor:
    """Weights and moments of units, each with its recorded hash behind it."""
    empty = sources[0].master[:0]
    found = find_copies(sources, units, step)
    if not found:
        return empty
    recorded = [state.recorded_hash(unit) for state, unit in zip(found, units, strict=True)]
    hashes = torch.tensor(recorded, dtype=torch.int64).view(empty.dtype).to(empty.device)
    parts: list[Tensor] = []
    for state, unit, hashed in zip(found, units, hashes.split(_words(empty)), strict=True):
        parts += [*state.tensors_of(unit), hashed]
    return torch.cat(parts)


def _words(like: Tensor) -> int:
    return _HASH_BYTES // like.element_size()


def _sizes(moves: list[tuple[int, int]], sizes_U: Sequence[int], size: int) -> list[int]:
    sizes = [0] * size
    for unit, member in moves:
        sizes[member] += sizes_U[unit]
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

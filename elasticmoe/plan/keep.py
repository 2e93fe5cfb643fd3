"""A layout for a gang that has state in memory already: put workers where their copies are.

How many workers each stage gets is decided without looking at copies, because it lasts; which
workers they are is free to choose, and a good choice spares most of the moves.

Shapes: U = units, C = copies of all units, P = pairs of a stage and a member with copies for it.
"""

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import Final

import numpy as np

from elasticmoe.plan.holders import IntArray, flat_copies, unit_sizes
from elasticmoe.plan.homes import Present
from elasticmoe.plan.types import Inventory, Member, Unit

Entry = tuple[float, int, int, int]
"""The less, the sooner a member is seated: what it brings, what nobody else has of that, the seats
the stage has to spare, all negative; and which pair it is."""

TOGETHER: Final = 1.25
"""A worker beside others of its node is preferred to a stranger that brings up to this many times
as much: a stage's exchanges are quicker within a node."""


def keep_members(
    members: Sequence[Member],
    sizes: Sequence[int],
    stage_of_block: Mapping[int, int],
    inventory: Inventory,
    present: Present,
) -> tuple[tuple[int, ...], ...]:
    """Name the workers of each stage so that much of its state is with them already.

    Greedy: again and again the worker is seated that brings a stage most of what nobody there has
    a copy of. Those that bring nothing fill the rest.

    Args:
        sizes: workers per stage; they add up to all members.
        stage_of_block: the stage that wants a block's copies; of several, one.

    Returns:
        Per stage positions in `members`, ascending.
    """
    assert sum(sizes) == len(members)
    gains = _Gains(stage_of_block, inventory, present, len(members))
    seats = _Seats(members, sizes)

    def entry(pair: int) -> Entry:
        stage, position = gains.stage[pair], gains.position[pair]
        favour = TOGETHER if seats.has_mate(stage, position) else 1.0
        return -favour * gains.left[pair], -gains.alone[pair], -seats.room(stage), pair

    # Most entries are looked at once: sorting them costs less than a heap of all.
    ahead = _worst_first(gains, sizes)
    queue: list[Entry] = []
    while ahead or queue:
        # An entry may be too good by now, never too bad: mates are queued again.
        is_queued = not ahead or bool(queue and queue[0] < ahead[-1])
        expected = heappop(queue) if is_queued else ahead.pop()
        pair = expected[-1]
        stage, position = gains.stage[pair], gains.position[pair]
        if not seats.is_free(stage, position):
            continue
        found = entry(pair)
        if found[:2] > expected[:2]:
            if found[0]:
                heappush(queue, found)
            continue
        is_first = not seats.has_mate(stage, position)
        seats.take(stage, position)
        mates = seats.free_mates(position) if is_first else []
        gains.take(pair)
        for mate in mates:
            other = gains.find(stage, mate)
            if other is not None:
                heappush(queue, entry(other))
    seats.fill()
    return tuple(tuple(sorted(seated)) for seated in seats.seated)


def keep_slots(
    units: Sequence[Unit], stage_members: Sequence[int], present: Present
) -> tuple[tuple[int, ...], ...]:
    """Give each expert of a layer one holder, where possible one that has its state.

    Args:
        units: one per expert, in the order of the experts.
        stage_members: positions in the gang's members.

    Returns:
        Per stage member its experts, ascending; their numbers differ by at most one.
    """
    least, extra = divmod(len(units), len(stage_members))
    number = {position: worker for worker, position in enumerate(stage_members)}
    held: list[list[int]] = [[] for _ in stage_members]
    left: list[int] = []
    with_copy = {
        unit.expert: [number[p] for p in present.get(unit.index, ()) if p in number]
        for unit in units
    }
    for expert in sorted(with_copy, key=lambda expert: (len(with_copy[expert]), expert)):
        room = [w for w in with_copy[expert] if len(held[w]) < least + (extra > 0)]
        if not room:
            left.append(expert)
            continue
        worker = min(room, key=lambda worker: (len(held[worker]), worker))
        held[worker].append(expert)
        extra -= len(held[worker]) > least
    for experts in held:
        while left and len(experts) < least:
            experts.append(left.pop())
    for worker in sorted(range(len(held)), key=lambda worker: (len(held[worker]), worker)):
        if left and len(held[worker]) == least:
            held[worker].append(left.pop())
    return tuple(tuple(sorted(experts)) for experts in held)


class _Gains:
    """What each worker would bring each stage of what nobody seated there has a copy of.

    A *pair* is the number of a stage and a member that has copies for it, in this order.
    """

    def __init__(
        self,
        stage_of_block: Mapping[int, int],
        inventory: Inventory,
        present: Present,
        num_members: int,
    ) -> None:
        unit_C, position_C = flat_copies(present)
        stage_U = np.array([stage_of_block[unit.block] for unit in inventory.units])
        numel_U, count_U = unit_sizes(inventory), np.bincount(unit_C, minlength=len(stage_U))
        key_C = stage_U[unit_C] * num_members + position_C
        key_P, pair_C = _number(key_C)
        numel_C = numel_U[unit_C]
        alone_C = np.where(count_U[unit_C] == 1, numel_C, 0)
        self.stage: list[int] = (key_P // num_members).tolist()
        """Of every pair."""
        self.position: list[int] = (key_P % num_members).tolist()
        self.left = _sums(pair_C, numel_C, len(key_P))
        """Elements that the member would bring."""
        self.alone = _sums(pair_C, alone_C, len(key_P))
        """Those of them that nobody else has."""
        self._pairs = dict(zip(key_P.tolist(), range(len(key_P)), strict=True))
        self._num_members = num_members
        self._numel: list[int] = numel_U.tolist()
        self._units_by_pair = _Runs(pair_C, unit_C, len(key_P))
        self._pairs_by_unit = _Runs(unit_C, pair_C, len(stage_U))
        self._is_lacking = [True] * len(stage_U)

    def find(self, stage: int, position: int) -> int | None:
        """The pair of a stage and a member; none if it has nothing for the stage."""
        return self._pairs.get(stage * self._num_members + position)

    def take(self, pair: int) -> None:
        """A worker is seated: what it has, the stage lacks no more."""
        for unit in self._units_by_pair.of(pair):
            if self._is_lacking[unit]:
                self._is_lacking[unit] = False
                for other in self._pairs_by_unit.of(unit):
                    self.left[other] -= self._numel[unit]


def _worst_first(gains: _Gains, sizes: Sequence[int]) -> list[Entry]:
    """Entries of all pairs while nobody is seated."""
    left_P, alone_P = -np.array(gains.left, np.float64), -np.array(gains.alone, np.int64)
    room_P, pair_P = -np.array(sizes)[np.array(gains.stage, np.int64)], np.arange(len(left_P))
    order_P = np.lexsort((pair_P, room_P, alone_P, left_P))[::-1]
    columns = (column_P[order_P].tolist() for column_P in (left_P, alone_P, room_P, pair_P))
    return list(zip(*columns, strict=True))


class _Runs:
    """Values by their key, in two flat lists."""

    def __init__(self, key_C: IntArray, value_C: IntArray, num_keys: int) -> None:
        self._values: list[int] = value_C[np.argsort(key_C, kind="stable")].tolist()
        ends = np.cumsum(np.bincount(key_C, minlength=num_keys))
        self._ends: list[int] = [0, *ends.tolist()]

    def of(self, key: int) -> list[int]:
        """Values of one key, in the given order."""
        return self._values[self._ends[key] : self._ends[key + 1]]


def _number(key_C: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct keys, ascending, and the place of each key among them."""
    key_P: IntArray = np.flatnonzero(np.bincount(key_C))
    place_K = np.zeros(int(key_P.max(initial=-1)) + 1, dtype=np.int64)
    place_K[key_P] = np.arange(len(key_P))
    return key_P, place_K[key_C]


def _sums(pair_C: IntArray, numel_C: IntArray, num_pairs: int) -> list[int]:
    sums: list[int] = np.bincount(pair_C, numel_C, num_pairs).astype(np.int64).tolist()
    return sums


class _Seats:
    """Who sits in which stage while a layout is being made."""

    def __init__(self, members: Sequence[Member], sizes: Sequence[int]) -> None:
        self.seated: list[list[int]] = [[] for _ in sizes]
        self._room = list(sizes)
        self._is_free = [True] * len(members)
        self._open = dict.fromkeys(stage for stage, size in enumerate(sizes) if size)
        mates: dict[str, list[int]] = {}
        for position, member in enumerate(members):
            mates.setdefault(member.node, []).append(position)
        self._mates = [mates[member.node] for member in members]
        stages: dict[str, set[int]] = {node: set() for node in mates}
        self._stages_of_node = [stages[member.node] for member in members]

    def is_free(self, stage: int, position: int) -> bool:
        """Whether the stage has room and the member no seat yet."""
        return self._is_free[position] and self._room[stage] > 0

    def room(self, stage: int) -> int:
        """Seats left in the stage."""
        return self._room[stage]

    def has_mate(self, stage: int, position: int) -> bool:
        """Whether somebody of the member's node sits in the stage."""
        return stage in self._stages_of_node[position]

    def free_mates(self, position: int) -> list[int]:
        """Members of the same node that have no seat yet."""
        return [mate for mate in self._mates[position] if self._is_free[mate]]

    def take(self, stage: int, position: int) -> None:
        """Seat a member."""
        self.seated[stage].append(position)
        self._room[stage] -= 1
        if not self._room[stage]:
            del self._open[stage]
        self._is_free[position] = False
        self._stages_of_node[position].add(stage)

    def fill(self) -> None:
        """Seat everybody who is left, beside members of the same node where there is room."""
        for position, is_free in enumerate(self._is_free):
            if is_free:
                beside = self._stages_of_node[position]
                stage = min(beside & self._open.keys(), default=None)
                self.take(next(iter(self._open)) if stage is None else stage, position)

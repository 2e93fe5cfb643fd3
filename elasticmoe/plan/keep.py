"""A layout for a gang that has state in memory already: put workers where their copies are.

How many workers each stage gets is decided without looking at copies, because it lasts; which
workers they are is free to choose, and a good choice spares most of the moves.
"""

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from elasticmoe.plan.homes import Present
from elasticmoe.plan.types import Inventory, Member, Unit

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
    gains = _Gains(stage_of_block, inventory, present)
    seats = _Seats(members, sizes)

    def entry(stage: int, position: int) -> tuple[float, int, int, int, int]:
        # Among equals those first that nobody can stand in for, where there are seats to spare.
        gain, alone = gains.left[stage, position]
        favour = TOGETHER if seats.has_mate(stage, position) else 1.0
        return -favour * gain, -alone, -seats.room(stage), stage, position

    queue = [entry(*pair) for pair in gains.left]
    heapify(queue)
    while queue:
        # An entry may be too good by now, never too bad: mates are queued again.
        expected = heappop(queue)
        stage, position = expected[-2:]
        if not seats.is_free(stage, position):
            continue
        found = entry(stage, position)
        if found[:2] > expected[:2]:
            if found[0]:
                heappush(queue, found)
            continue
        is_first = not seats.has_mate(stage, position)
        seats.take(stage, position)
        mates = seats.free_mates(position) if is_first else []
        gains.take(stage, position)
        for mate in mates:
            if (stage, mate) in gains.left:
                heappush(queue, entry(stage, mate))
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
    """What each worker would bring each stage of what nobody seated there has a copy of."""

    def __init__(
        self, stage_of_block: Mapping[int, int], inventory: Inventory, present: Present
    ) -> None:
        self.left: dict[tuple[int, int], list[int]] = {}
        """(stage, position) -> elements, and those of them that nobody else has."""
        self._present, self._units = present, inventory.units
        self._brings: dict[tuple[int, int], list[int]] = {}
        self._missing = set(present)
        for unit, positions in present.items():
            stage, numel = stage_of_block[inventory.units[unit].block], inventory.units[unit].numel
            alone = numel if len(positions) == 1 else 0
            for position in positions:
                pair = stage, position
                if pair not in self.left:
                    self.left[pair], self._brings[pair] = [0, 0], []
                left = self.left[pair]
                left[0] += numel
                left[1] += alone
                self._brings[pair].append(unit)

    def take(self, stage: int, position: int) -> None:
        """A worker is seated: what it has, the stage lacks no more."""
        for unit in self._brings[stage, position]:
            if unit in self._missing:
                self._missing.discard(unit)
                positions, numel = self._present[unit], self._units[unit].numel
                for other in positions:
                    left = self.left[stage, other]
                    left[0] -= numel
                    left[1] -= numel if len(positions) == 1 else 0


class _Seats:
    """Who sits in which stage while a layout is being made."""

    def __init__(self, members: Sequence[Member], sizes: Sequence[int]) -> None:
        self.seated: list[list[int]] = [[] for _ in sizes]
        self._members, self._sizes = members, sizes
        self._free = set(range(len(members)))
        self._open = dict.fromkeys(stage for stage, size in enumerate(sizes) if size)
        self._stages_of_node: dict[str, set[int]] = {}
        self._mates: dict[str, list[int]] = {}
        for position, member in enumerate(members):
            self._mates.setdefault(member.node, []).append(position)

    def is_free(self, stage: int, position: int) -> bool:
        """Whether the stage has room and the member no seat yet."""
        return stage in self._open and position in self._free

    def room(self, stage: int) -> int:
        """Seats left in the stage."""
        return self._sizes[stage] - len(self.seated[stage])

    def has_mate(self, stage: int, position: int) -> bool:
        """Whether somebody of the member's node sits in the stage."""
        return stage in self._stages_of_node.get(self._members[position].node, ())

    def free_mates(self, position: int) -> list[int]:
        """Members of the same node that have no seat yet."""
        return [p for p in self._mates[self._members[position].node] if p in self._free]

    def take(self, stage: int, position: int) -> None:
        """Seat a member."""
        self.seated[stage].append(position)
        if not self.room(stage):
            del self._open[stage]
        self._free.discard(position)
        self._stages_of_node.setdefault(self._members[position].node, set()).add(stage)

    def fill(self) -> None:
        """Seat everybody who is left, beside members of the same node where there is room."""
        for position in sorted(self._free):
            beside = self._stages_of_node.get(self._members[position].node, set())
            stage = min(beside & self._open.keys(), default=None)
            self.take(next(iter(self._open)) if stage is None else stage, position)

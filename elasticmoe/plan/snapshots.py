"""Who keeps which part of a snapshot besides the workers themselves.

Every primary home keeps its own units; another failure domain keeps them too, as they are or as the
XOR of the units of several workers. A copy is a group of one unit.
"""

from dataclasses import dataclass
from itertools import count
from typing import Final

from elasticmoe.plan.types import Inventory, Plan

PARITY_GROUP: Final = 4
"""Failure domains that share parities, if there are as many: a third more memory than the snapshot
itself, and any one of the four may be lost."""


@dataclass(frozen=True, slots=True)
class SnapshotGroup:
    """Units whose XOR one member keeps."""

    keeper: int
    """Position of the member; it shares no failure domain with the primary homes."""
    units: tuple[int, ...]
    """The largest first; no two primary homes share a failure domain."""


def plan_snapshots(plan: Plan, inventory: Inventory, *, parity: bool) -> tuple[SnapshotGroup, ...]:
    """Choose the keepers, evenly.

    Args:
        parity: join units in groups of up to `PARITY_GROUP` - 1; else each is a group.

    Returns:
        Nothing if all members share one node.
    """
    places = _members_by_place(plan)
    if len(places) < 2:
        return ()
    if not parity:
        return _copies(plan, places)
    place_of = {member: place for place, members in enumerate(places) for member in members}
    units: list[list[int]] = [[] for _ in places]
    sizes = [unit.numel for unit in inventory.units]
    for unit in sorted(range(len(sizes)), key=lambda unit: (sizes[unit], -unit)):
        units[place_of[plan.homes[unit][0]]].append(unit)
    found: list[SnapshotGroup] = []
    for chosen in _sets(len(places)):
        found += _stripes([places[one] for one in chosen], [units[one] for one in chosen], sizes)
    return tuple(found)


def _members_by_place(plan: Plan) -> list[list[int]]:
    """Members by failure domain or, if there is one only, by node."""
    domains = {member.domain for member in plan.members}
    by_place: dict[str, list[int]] = {}
    for position, member in enumerate(plan.members):
        by_place.setdefault(member.domain if len(domains) > 1 else member.node, []).append(position)
    return [by_place[place] for place in sorted(by_place)]


def _copies(plan: Plan, places: list[list[int]]) -> tuple[SnapshotGroup, ...]:
    """The next place that has no home of the unit, else the next that has not its primary one."""
    place_of = {member: place for place, members in enumerate(places) for member in members}
    turn = [0] * len(places)
    found = []
    for unit, homes in enumerate(plan.homes):
        own, taken = place_of[homes[0]], {place_of[home] for home in homes}
        order = [(own + step) % len(places) for step in range(1, len(places))]
        place = next((one for one in order if one not in taken), order[0])
        there = [home for home in homes if place_of[home] == place] or places[place]
        found.append(SnapshotGroup(there[turn[place] % len(there)], (unit,)))
        turn[place] += 1
    return tuple(found)


def _sets(num_places: int) -> list[range]:
    """Cut the places into sets of `PARITY_GROUP`; nobody is left alone."""
    starts = list(range(0, num_places, PARITY_GROUP))
    if len(starts) > 1 and num_places - starts[-1] == 1:
        starts.pop()
    return [range(start, end) for start, end in zip(starts, [*starts[1:], num_places], strict=True)]


def _stripes(
    places: list[list[int]], units: list[list[int]], sizes: list[int]
) -> list[SnapshotGroup]:
    """Take the largest unit left of every place but one, whose turn it is to keep their XOR."""
    found: list[SnapshotGroup] = []
    for turn in count():
        if not any(units):
            return found
        keeping = turn % len(places)
        taken = [left.pop() for place, left in enumerate(units) if left and place != keeping]
        if taken:
            members = places[keeping]
            keeper = members[turn // len(places) % len(members)]
            found.append(SnapshotGroup(keeper, tuple(sorted(taken, key=lambda u: (-sizes[u], u)))))
    return found

"""Which units have too few homes, and how they get new ones in the background."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from elasticmoe.plan.holders import unit_sizes
from elasticmoe.plan.homes import add_mirrors
from elasticmoe.plan.moves import plan_moves
from elasticmoe.plan.types import Inventory, Member, Plan
from elasticmoe.spec.job import JobSpec


def single_homed(plan: Plan, redundancy: int) -> tuple[int, ...]:
    """Units with fewer homes than asked for, as far as there are members for them; ascending."""
    wanted = min(redundancy, len(plan.members))
    return tuple(unit for unit, homes in enumerate(plan.homes) if len(homes) < wanted)


def confined(plan: Plan, members: AbstractSet[int]) -> tuple[int, ...]:
    """Units that have no home but on some members; ascending."""
    return tuple(unit for unit, homes in enumerate(plan.homes) if members >= set(homes))


def restore_protection(
    plan: Plan, job: JobSpec, inventory: Inventory, leaving: AbstractSet[int] = frozenset()
) -> Plan:
    """Add the mirrors that are missing, by copysets; every home stays where it is.

    Args:
        leaving: members that go away soon: units that only they are homes of get a home on
            another member, though they have enough.
    """
    redundancy = job.protection.redundancy
    homes = add_mirrors(plan.members, plan.homes, unit_sizes(inventory), redundancy)
    return evacuate(replace(plan, homes=homes), inventory, leaving)


def evacuate(plan: Plan, inventory: Inventory, leaving: AbstractSet[int]) -> Plan:
    """Add a home elsewhere for units that only members who go away soon are homes of."""
    if not leaving:
        return plan
    homes = _with_others(plan.members, plan.homes, unit_sizes(inventory), leaving)
    return replace(plan, homes=homes)


def _with_others(
    members: Sequence[Member],
    homes: Sequence[Sequence[int]],
    sizes: NDArray[np.int64],
    leaving: AbstractSet[int],
) -> tuple[tuple[int, ...], ...]:
    """A further home where all are on members that leave: on whoever else keeps least."""
    kept = {place: 0 for place in range(len(members)) if place not in leaving}
    for unit, places in enumerate(homes):
        for place in places:
            if place in kept:
                kept[place] += int(sizes[unit])
    found = []
    for unit, places in enumerate(homes):
        if kept and leaving >= set(places):
            other = min(kept, key=lambda place: (kept[place], place))
            kept[other] += int(sizes[unit])
            found.append((*places, other))
        else:
            found.append(tuple(places))
    return tuple(found)


def split_restoration(
    before: Plan, after: Plan, inventory: Inventory, budget_bytes: int, bytes_per_element: int = 12
) -> tuple[tuple[int, ...], ...]:
    """Cut the way from one plan's homes to the other's into batches of units.

    Units with the fewest homes come first, then by the node of the first home, then by index. What
    one member has to send never delays what another sends.

    Args:
        before: a plan of the same members; its homes supply the units.
        budget_bytes: that any one member sends per batch. A unit larger than that gets through
            too, with nothing else from its sender.
        bytes_per_element: of the master weight and its two moments.
    """
    assert before.members == after.members, "restoration keeps the gang"
    sources = dict(enumerate(before.homes))
    senders: dict[int, list[int]] = {}
    for unit, sender, _ in plan_moves(after, inventory, sources):
        senders.setdefault(unit, []).append(sender)

    def danger(unit: int) -> tuple[int, str, int]:
        homes = before.homes[unit]
        return len(homes), before.members[homes[0]].node, unit

    changed = [unit for unit, homes in enumerate(after.homes) if homes != before.homes[unit]]
    budget = _Budget(len(after.members), budget_bytes)
    batches: list[list[int]] = []
    for unit in sorted(changed, key=danger):
        size = bytes_per_element * inventory.units[unit].numel
        batch = budget.take(senders.get(unit, ()), size)
        while len(batches) <= batch:
            batches.append([])
        batches[batch].append(unit)
    return tuple(tuple(units) for units in batches)


class _Budget:
    """Which batch each member fills, and what is left in it."""

    def __init__(self, num_members: int, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._batch = [0] * num_members
        self._used = [0] * num_members

    def take(self, senders: Sequence[int], size: int) -> int:
        """Find the first batch in which all senders of a unit have room; every send counts."""
        need = {sender: senders.count(sender) * size for sender in senders}
        batch = 0
        for sender, wanted in need.items():
            fits = not self._used[sender] or self._used[sender] + wanted <= self._budget
            batch = max(batch, self._batch[sender] + (not fits))
        for sender, wanted in need.items():
            if batch > self._batch[sender]:
                self._batch[sender], self._used[sender] = batch, 0
            self._used[sender] += wanted
        return batch

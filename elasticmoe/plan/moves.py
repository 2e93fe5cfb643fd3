"""Who sends which units to whom when a plan takes over from what is in the workers' memory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from elasticmoe.errors import PlanError
from elasticmoe.plan.types import Inventory, Member, Plan

Moves = tuple[tuple[int, int, int], ...]
"""(unit, from member, to member) each, ascending; members are positions in `Plan.members`."""


def with_members(plan: Plan, members: tuple[Member, ...]) -> Plan:
    """Put other workers in the same positions; layout and homes stay as they are.

    Args:
        members: one per position. A replacement sits where the dead worker sat.

    Raises:
        PlanError: there are more or fewer of them than positions.
    """
    if len(members) != len(plan.members):
        raise PlanError(
            f"The plan has {len(plan.members)} positions, but {len(members)} members were named. "
            "Make a new plan for another number of members."
        )
    return replace(plan, members=members)


def plan_moves(plan: Plan, inventory: Inventory, sources: Mapping[int, Sequence[int]]) -> Moves:
    """Choose a sender for every copy that a home lacks.

    Greedy: units with the least choice come first, then large ones. A sender on another node or in
    another domain is taken only if it has that much less to send.

    Args:
        sources: unit -> members whose memory can supply it; a home among them lacks nothing.

    Raises:
        PlanError: nobody can supply a unit.
    """
    choices = [
        (len(sources.get(unit, ())), -inventory.units[unit].numel, unit, home)
        for unit, homes in enumerate(plan.homes)
        for home in homes
        if home not in sources.get(unit, ())
    ]
    sent = [0] * len(plan.members)
    moves = []
    for num_sources, minus_numel, unit, home in sorted(choices):
        if not num_sources:
            raise PlanError(_nobody_has(inventory, unit))
        sender = _choose_sender(plan.members, sources[unit], home, sent, -minus_numel)
        sent[sender] -= minus_numel
        moves.append((unit, sender, home))
    return tuple(sorted(moves))


def moved_bytes(moves: Moves, inventory: Inventory, bytes_per_element: int = 12) -> int:
    """Bytes that all moves carry together.

    Args:
        bytes_per_element: of the master weight and its two moments.
    """
    return bytes_per_element * sum(inventory.units[unit].numel for unit, _, _ in moves)


def _choose_sender(
    members: Sequence[Member], sources: Sequence[int], home: int, sent: Sequence[int], numel: int
) -> int:
    """The least loaded source; a distant one counts as if it sent the unit once or twice more."""
    to = members[home]

    def burden(source: int) -> tuple[int, int]:
        at = members[source]
        distance = 0 if at.node == to.node else 1 if at.domain == to.domain else 2
        return sent[source] + distance * numel, source

    return min(sources, key=burden)


def _nobody_has(inventory: Inventory, unit: int) -> str:
    block = inventory.blocks[inventory.units[unit].block]
    expert = inventory.units[unit].expert
    part = f"expert {expert}" if expert >= 0 else f"offset {inventory.units[unit].offset}"
    return (
        f"No member has a copy of unit {unit} ({block.name}, {part}). "
        "Go back to a snapshot or checkpoint."
    )

"""What a snapshot costs a gang, and which member holds what of it in the end."""

from collections.abc import Iterable, Sequence

from elasticmoe.plan.snapshots import SnapshotGroup, plan_snapshots
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.simulator.gang import Gang, Taking
from elasticmoe.simulator.vaults import Snapshot, Units
from elasticmoe.simulator.world import World


def plan_taking(world: World, gang: Gang) -> Taking:
    """Every member copies its primary homes, and sends them to who keeps a copy or a parity."""
    is_parity = world.job.protection.snapshots == "parity"
    groups = plan_snapshots(gang.plan, world.inventory, parity=is_parity)
    elements = _most_elements(gang.plan, world.inventory, groups)
    took_s = elements * world.costs.element_bytes / world.costs.move_bytes_per_s
    held = _held(gang, groups)
    return Taking(world.now_s, took_s, tuple(Snapshot(gang.version, one) for one in held))


def is_whole(snapshots: Iterable[Snapshot], num_units: int) -> bool:
    """Whether there is a copy of every unit, or a parity and copies of all others in it."""
    groups = [group for one in snapshots for group in one.groups]
    there = {group[0] for group in groups if len(group) == 1}
    for group in groups:
        lacking = set(group) - there
        if len(lacking) == 1:
            there |= lacking
    return len(there) == num_units


def _held(gang: Gang, groups: Sequence[SnapshotGroup]) -> list[tuple[Units, ...]]:
    """Copies and parities by member."""
    held: list[list[Units]] = [[(unit,) for unit in own] for own in gang.primaries]
    for group in groups:
        held[group.keeper].append(group.units)
    return [tuple(found) for found in held]


def _most_elements(plan: Plan, inventory: Inventory, groups: Sequence[SnapshotGroup]) -> int:
    """Elements that the busiest member copies and sends, or copies and receives."""
    sent, received = ([0] * len(plan.members) for _ in range(2))
    for unit, homes in enumerate(plan.homes):
        sent[homes[0]] += inventory.units[unit].numel
        received[homes[0]] += inventory.units[unit].numel
    for group in groups:
        for unit in group.units:
            if group.keeper not in plan.homes[unit]:
                sent[plan.homes[unit][0]] += inventory.units[unit].numel
                received[group.keeper] += inventory.units[unit].numel
    return max(*sent, *received)

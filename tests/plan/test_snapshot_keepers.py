"""Who keeps what of a snapshot."""

from collections.abc import Callable

import pytest

from elasticmoe.plan.make import make_plan
from elasticmoe.plan.snapshots import plan_snapshots
from elasticmoe.plan.types import Inventory, Member, Plan
from elasticmoe.spec.job import JobSpec

Make = Callable[..., JobSpec]
MakeInventory = Callable[..., Inventory]
MakeMembers = Callable[..., tuple[Member, ...]]


def place(plan: Plan, member: int) -> str:
    domains = {one.domain for one in plan.members}
    return plan.members[member].domain if len(domains) > 1 else plan.members[member].node


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("gang", [(2, 1, 2), (4, 1, 4), (5, 2, 5), (9, 1, 3), (3, 2, 1)])
@pytest.mark.parametrize("redundancy", [1, 2])
def test_the_loss_of_any_one_place_leaves_every_unit_or_what_it_is_rebuilt_from(
    make_job: Make,
    make_inventory: MakeInventory,
    make_members: MakeMembers,
    gang: tuple[int, int, int],
    redundancy: int,
    parity: bool,
) -> None:
    job = make_job(f"protection.redundancy={redundancy}")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(*gang))

    groups = plan_snapshots(plan, inventory, parity=parity)

    members = sorted(unit for group in groups for unit in group.units)
    assert members == list(range(len(inventory.units)))
    for group in groups:
        primaries = [place(plan, plan.homes[unit][0]) for unit in group.units]
        assert len({*primaries, place(plan, group.keeper)}) == len(primaries) + 1
        sizes = [inventory.units[unit].numel for unit in group.units]
        assert sizes == sorted(sizes, reverse=True)
        assert parity or len(group.units) == 1


def test_copies_go_where_no_home_is_if_there_is_such_a_place(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("protection.redundancy=2")
    inventory = make_inventory(job)
    three = make_plan(job, inventory, make_members(3, 1, 3))
    two = make_plan(job, inventory, make_members(2, 2, 2))

    for group in plan_snapshots(three, inventory, parity=False):
        homes = {place(three, home) for home in three.homes[group.units[0]]}
        assert place(three, group.keeper) not in homes
    for group in plan_snapshots(two, inventory, parity=False):
        assert group.keeper in two.homes[group.units[0]]  # nothing has to be sent


def test_parities_need_a_third_of_the_memory_of_copies_and_are_spread_evenly(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("protection.redundancy=1")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(4, 1, 4))

    kept = {}
    for parity in (False, True):
        numel = [0] * 4
        for group in plan_snapshots(plan, inventory, parity=parity):
            numel[group.keeper] += inventory.units[group.units[0]].numel
        kept[parity] = numel

    assert sum(kept[True]) < 0.45 * sum(kept[False])
    for numel in kept.values():
        assert max(numel) < 1.5 * min(numel)


def test_one_node_keeps_nothing_for_itself(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("protection.redundancy=1")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(1, 4, 1))

    assert plan_snapshots(plan, inventory, parity=False) == ()

import dataclasses
from collections import Counter
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import Loss, lose, losses

from elasticmoe.plan.make import make_plan
from elasticmoe.plan.moves import plan_moves
from elasticmoe.plan.protection import (
    confined,
    restore_protection,
    single_homed,
    split_restoration,
)
from elasticmoe.plan.types import Inventory, Member, Plan
from elasticmoe.spec.job import JobSpec

Make = Callable[..., JobSpec]
MakeInventory = Callable[..., Inventory]
MakeMembers = Callable[..., tuple[Member, ...]]


def restored(loss: Loss) -> tuple[Plan, Plan]:
    plan = make_plan(loss.job, loss.inventory, loss.survivors, present=loss.present)
    return plan, restore_protection(plan, loss.job, loss.inventory)


@settings(max_examples=40, deadline=None)
@given(losses())
def test_restoration_keeps_every_home_and_reaches_the_redundancy_across_domains(
    loss: Loss,
) -> None:
    before, after = restored(loss)

    redundancy = loss.job.protection.redundancy
    assert single_homed(after, redundancy) == ()
    assert dataclasses.replace(after, homes=before.homes) == before
    domains = {member.domain for member in after.members}
    nodes = {member.node for member in after.members}
    short = set(single_homed(before, redundancy))
    for unit, (old, new) in enumerate(zip(before.homes, after.homes, strict=True)):
        assert new[: len(old)] == old
        assert len(set(new)) == len(new) == min(redundancy, len(after.members))
        if unit in short:
            assert len({after.members[home].domain for home in new}) >= min(2, len(domains))
            assert len({after.members[home].node for home in new}) >= min(2, len(nodes))
        else:
            assert new == old


@settings(max_examples=30, deadline=None)
@given(losses(), st.integers(1, 10**7))
def test_batches_restore_every_changed_unit_once_within_the_budget_of_each_sender(
    loss: Loss, budget: int
) -> None:
    before, after = restored(loss)

    batches = split_restoration(before, after, loss.inventory, budget)

    changed = [u for u, homes in enumerate(after.homes) if homes != before.homes[u]]
    assert sorted(unit for batch in batches for unit in batch) == changed
    assert all(batches)
    batch_of = {unit: number for number, batch in enumerate(batches) for unit in batch}
    sent: Counter[tuple[int, int]] = Counter()
    units_of: Counter[tuple[int, int]] = Counter()
    sources = dict(enumerate(before.homes))
    moves = plan_moves(after, loss.inventory, sources)
    for unit, sender, _ in moves:
        sent[batch_of[unit], sender] += 12 * loss.inventory.units[unit].numel
    for unit, sender in {(unit, sender) for unit, sender, _ in moves}:
        units_of[batch_of[unit], sender] += 1
    assert all(sent[key] <= budget or units_of[key] == 1 for key in sent)
    assert batches == split_restoration(before, after, loss.inventory, budget)


def test_a_plan_made_afresh_needs_no_restoration(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(3, 2, 3))

    assert single_homed(plan, 2) == ()
    assert restore_protection(plan, job, inventory) == plan
    assert split_restoration(plan, plan, inventory, 1) == ()


def test_one_member_alone_lacks_no_mirror(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(1, 1, 1))

    assert single_homed(plan, 2) == ()
    assert restore_protection(plan, job, inventory) == plan


def test_units_of_the_most_endangered_come_first_and_senders_work_side_by_side(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("protection.redundancy=3", "parallel.stages=1")
    inventory = make_inventory(job)
    full = make_plan(job, inventory, make_members(3, 1, 3))
    # Unit 0 keeps two homes, 1 and 4 are only with member 2, 2 and 3 only with member 1.
    kept = {0: (0, 1), 1: (2,), 2: (1,), 3: (1,), 4: (2,)}
    before = dataclasses.replace(
        full, homes=tuple(kept.get(unit, homes) for unit, homes in enumerate(full.homes))
    )
    after = restore_protection(before, job, inventory)
    size = 12 * inventory.units[0].numel
    assert all(inventory.units[unit].numel * 12 == size for unit in range(5))

    assert split_restoration(before, after, inventory, 10**9) == ((2, 3, 1, 4, 0),)
    # Members 1 and 2 send each of their units twice; unit 0 goes from member 0 at once.
    assert split_restoration(before, after, inventory, 2 * size) == ((2, 1, 0), (3, 4))
    assert split_restoration(before, after, inventory, 1) == ((2, 1, 0), (3, 4))


def test_what_a_failover_left_with_one_home_gets_its_mirrors_back(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("parallel.expert_replicas=all")
    inventory = make_inventory(job)
    before = make_plan(job, inventory, make_members(4, 2, 4))
    loss = lose(job, inventory, before, {2, 3})

    plan, after = restored(loss)

    alone = single_homed(plan, 2)
    had_lost_one = [u for u, homes in enumerate(before.homes) if {2, 3} & set(homes)]
    assert alone
    assert set(alone) <= set(had_lost_one)
    moves = plan_moves(after, inventory, dict(enumerate(plan.homes)))
    assert sorted(unit for unit, _, _ in moves) == list(alone)


@settings(max_examples=30, deadline=None)
@given(losses(), st.integers(0, 10**6))
def test_units_that_only_leaving_members_keep_get_a_home_on_another(loss: Loss, pick: int) -> None:
    plan = make_plan(loss.job, loss.inventory, loss.survivors, present=loss.present)
    leaving = frozenset({pick % len(plan.members)})

    after = restore_protection(plan, loss.job, loss.inventory, leaving=leaving)

    others = len(plan.members) > 1
    assert confined(after, leaving) == () if others else confined(after, leaving)
    plain = restore_protection(plan, loss.job, loss.inventory)
    for old, new in zip(plain.homes, after.homes, strict=True):
        assert new[: len(old)] == old
        assert len(new) - len(old) == int(others and leaving.issuperset(old))

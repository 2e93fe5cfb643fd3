import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import SMALL_MODEL, Loss, lose, losses

from elasticmoe.errors import PlanError
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.moves import moved_bytes, plan_moves, with_members
from elasticmoe.plan.types import Inventory, Member, Plan
from elasticmoe.spec.job import JobSpec

Make = Callable[..., JobSpec]
MakeInventory = Callable[..., Inventory]
MakeMembers = Callable[..., tuple[Member, ...]]


def failover(loss: Loss) -> Plan:
    return make_plan(loss.job, loss.inventory, loss.survivors, present=loss.present)


@settings(max_examples=40, deadline=None)
@given(losses())
def test_every_home_has_its_units_or_receives_them_exactly_once_from_one_that_has(
    loss: Loss,
) -> None:
    plan = failover(loss)

    moves = plan_moves(plan, loss.inventory, loss.present)

    lacking = Counter(
        (unit, home)
        for unit, homes in enumerate(plan.homes)
        for home in homes
        if home not in loss.present[unit]
    )
    assert Counter((unit, home) for unit, _, home in moves) == lacking
    assert all(sender in loss.present[unit] for unit, sender, _ in moves)
    assert moves == tuple(sorted(moves))
    assert moves == plan_moves(failover(loss), loss.inventory, loss.present)


@settings(max_examples=40, deadline=None)
@given(losses())
def test_homes_stay_where_copies_are_and_no_mirror_is_made(loss: Loss) -> None:
    plan = failover(loss)

    for unit in loss.inventory.units:
        primary, *mirrors = plan.homes[unit.index]
        copies, holders = set(loss.present[unit.index]), set(plan.holders(unit))
        assert primary in holders
        assert primary in copies or not holders & copies
        assert set(mirrors) <= copies - {primary}
        redundancy = loss.job.protection.redundancy
        assert len(mirrors) == min(redundancy - 1, len(copies - {primary}))
        if mirrors:
            apart = {plan.members[m].domain for m in copies} - {plan.members[primary].domain}
            assert not apart or plan.members[mirrors[0]].domain in apart


@settings(max_examples=25, deadline=None)
@given(losses(max_lost=0))
def test_with_nobody_lost_nothing_moves_and_the_layout_stays(loss: Loss) -> None:
    plan = failover(loss)

    assert plan_moves(plan, loss.inventory, loss.present) == ()
    assert (plan.stages, plan.slots) == (loss.before.stages, loss.before.slots)
    assert [set(homes) for homes in plan.homes] == [set(homes) for homes in loss.before.homes]


@settings(max_examples=30, deadline=None)
@given(losses())
def test_a_failover_never_moves_more_than_a_layout_that_ignores_where_copies_are(
    loss: Loss,
) -> None:
    fresh = make_plan(loss.job, loss.inventory, loss.survivors)

    moved = moved_bytes(plan_moves(failover(loss), loss.inventory, loss.present), loss.inventory, 1)

    without_copy = [
        unit.numel
        for unit in loss.inventory.units
        if not set(fresh.holders(unit)) & set(loss.present[unit.index])
    ]
    assert moved <= sum(without_copy)


def test_four_workers_in_two_stages_lose_one(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("parallel.expert_replicas=all", "model.mtp_depth=0", *SMALL_MODEL)
    inventory = make_inventory(job, piece=2**22)
    before = make_plan(job, inventory, make_members(4, 1, 2))
    loss = lose(job, inventory, before, {1})

    plan = failover(loss)
    moves = plan_moves(plan, inventory, loss.present)

    def layout(plan: Plan) -> list[tuple[int, int, list[int]]]:
        return [
            (s.first_layer, s.end_layer, [plan.members[m].worker for m in s.members])
            for s in plan.stages
        ]

    def homes(plan: Plan, block: str) -> list[tuple[int, ...]]:
        units = inventory.units_of_block[inventory.block_by_name[block].index]
        return [tuple(plan.members[m].worker for m in plan.homes[u.index]) for u in units]

    assert layout(before) == [(0, 2, [0, 2]), (2, 4, [1, 3])]
    assert layout(plan) == [(0, 3, [0, 2]), (3, 4, [3])]
    # Layer 2 changes its stage; its mirrors there become primaries, and nothing travels.
    assert homes(before, "layer.2.experts") == [(1, 2), (3, 0), (1, 2), (3, 0)]
    assert homes(plan, "layer.2.experts") == [(2,), (0, 3), (2,), (0, 3)]
    # Worker 3 is alone in its stage: what worker 1 had of it comes from the mirror.
    assert homes(before, "layer.3.experts") == [(1, 2), (3, 0), (1, 2), (3, 0)]
    assert homes(plan, "layer.3.experts") == [(3, 2), (3, 0), (3, 2), (3, 0)]
    named = [
        (
            inventory.blocks[inventory.units[unit].block].name,
            inventory.units[unit].expert,
            plan.members[sender].worker,
            plan.members[receiver].worker,
        )
        for unit, sender, receiver in moves
    ]
    assert named == [
        ("layer.3.experts", 0, 2, 3),
        ("layer.3.experts", 2, 2, 3),
        ("head", -1, 2, 3),
    ]
    assert moved_bytes(moves, inventory) == 12 * (2 * 49152 + 32768)


@pytest.mark.parametrize("holding", ["all", "one"])
@pytest.mark.parametrize("lost", range(8))
def test_the_loss_of_one_of_eight_moves_little_more_than_what_it_had(
    make_job: Make,
    make_inventory: MakeInventory,
    make_members: MakeMembers,
    holding: str,
    lost: int,
) -> None:
    job = make_job(f"parallel.expert_replicas={holding}", "parallel.stages=2", preset="small")
    inventory = make_inventory(job, piece=2**14)
    loss = lose(job, inventory, make_plan(job, inventory, make_members(8, 1, 8)), {lost})

    plan = failover(loss)

    moved = moved_bytes(plan_moves(plan, inventory, loss.present), inventory, 1)
    total = sum(unit.numel for unit in inventory.units)
    assert moved / total <= 1.5 / 8


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[int, dict[int, list[int]]]:
    """Equal units that member 0 lacks; each is with some of the others."""
    workers = draw(st.integers(2, 6))
    others = st.lists(st.integers(1, workers - 1), min_size=1, unique=True)
    return workers, dict(enumerate(draw(st.lists(others, min_size=1, max_size=20))))


def plan_of_one_home(
    job: JobSpec, inventory: Inventory, members: tuple[Member, ...], units: int
) -> tuple[Plan, Inventory]:
    equal = tuple(
        dataclasses.replace(inventory.units[0], index=unit, numel=16) for unit in range(units)
    )
    plan = make_plan(job, inventory, members)
    return (
        dataclasses.replace(plan, homes=((0,),) * units),
        dataclasses.replace(inventory, units=equal),
    )


@settings(max_examples=30, deadline=None)
@given(units=st.integers(1, 30), workers=st.integers(2, 6))
def test_equal_senders_share_the_load_evenly(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers,
    units: int, workers: int,
) -> None:  # fmt: skip
    job = make_job()
    plan, inventory = plan_of_one_home(
        job, make_inventory(job), make_members(workers, 1, workers), units
    )
    sources = {unit: range(1, workers) for unit in range(units)}

    sent = Counter(sender for _, sender, _ in plan_moves(plan, inventory, sources))

    loads = [sent[position] for position in range(1, workers)]
    assert max(loads) - min(loads) <= 1


def test_a_near_sender_is_preferred_until_it_has_much_more_to_send(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    # 0 and 1 share a node, 4 only the domain, 2 neither.
    plan, inventory = plan_of_one_home(job, make_inventory(job), make_members(3, 2, 2), 6)

    def senders(sources: list[int]) -> list[int]:
        moves = plan_moves(plan, inventory, dict.fromkeys(range(6), sources))
        return [sender for _, sender, _ in moves]

    assert senders([2, 4, 1])[:1] == [1]
    assert senders([2, 4])[:1] == [4]
    assert Counter(senders([2, 1])) == {1: 4, 2: 2}
    assert Counter(senders([4, 1])) == {1: 4, 4: 2}


def test_units_with_the_least_choice_are_handed_out_first(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    plan, inventory = plan_of_one_home(job, make_inventory(job), make_members(3, 1, 3), 4)

    moves = plan_moves(plan, inventory, {0: [1, 2], 1: [1, 2], 2: [1], 3: [1]})

    assert [sender for _, sender, _ in moves] == [2, 2, 1, 1]


def test_a_unit_that_nobody_has_is_named(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(2, 1, 2))
    everything = {unit.index: [0, 1] for unit in inventory.units}
    expert = next(unit for unit in inventory.units if unit.expert == 3)

    without_expert = {unit: at for unit, at in everything.items() if unit != expert.index}
    with pytest.raises(PlanError, match=rf"unit {expert.index} \(layer.1.experts, expert 3\)"):
        plan_moves(plan, inventory, without_expert)
    with pytest.raises(PlanError, match=r"unit 1 \(embedding, offset 4096\).*checkpoint"):
        plan_moves(plan, inventory, everything | {1: []})


def test_a_replacement_sits_where_the_dead_worker_sat(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    plan = make_plan(job, make_inventory(job), make_members(2, 2, 2))
    members = (*plan.members[:3], Member(9, "node-7", "domain-0"))

    replaced = with_members(plan, members)

    assert replaced.members == members
    assert (replaced.stages, replaced.slots, replaced.homes) == (
        plan.stages,
        plan.slots,
        plan.homes,
    )
    assert replaced.digest != plan.digest
    with pytest.raises(PlanError, match="4 positions, but 3 members"):
        with_members(plan, members[1:])


def test_bytes_count_master_weight_and_moments(
    make_job: Make, make_inventory: MakeInventory
) -> None:
    inventory = make_inventory(make_job())

    assert moved_bytes(((0, 0, 1), (2, 1, 0)), inventory) == 12 * 2 * 4096
    assert moved_bytes(((0, 0, 1),), inventory, bytes_per_element=24) == 24 * 4096
    assert moved_bytes((), inventory) == 0


def test_loads_are_numbers_of_plain_python(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("parallel.expert_replicas=one")
    inventory = make_inventory(job)
    loss = lose(job, inventory, make_plan(job, inventory, make_members(4, 1, 2)), {0})

    plan = failover(loss)
    moves = plan_moves(plan, inventory, loss.present)

    assert Plan.from_json(plan.to_json()) == plan
    assert not any(isinstance(number, np.generic) for move in moves for number in move)
    assert not any(isinstance(home, np.generic) for homes in plan.homes for home in homes)

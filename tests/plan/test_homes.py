from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import gangs

from elasticmoe.plan.holders import BoolArray, holder_matrix, home_matrix, unit_holders, unit_sizes
from elasticmoe.plan.homes import plan_copysets, plan_homes
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.types import Inventory, Member
from elasticmoe.spec.job import JobSpec

Members = tuple[Member, ...]


def holder_tuples(holders_UM: BoolArray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(np.flatnonzero(holders_M).tolist()) for holders_M in holders_UM)


@settings(max_examples=150, deadline=None)
@given(
    members=gangs(), redundancy=st.integers(1, 3), seed=st.integers(0, 99), units=st.integers(1, 60)
)
def test_every_unit_has_its_homes_in_two_domains_where_there_are_two(
    members: Members, redundancy: int, seed: int, units: int
) -> None:
    random = np.random.default_rng(seed)
    holders_UM = random.random((units, len(members))) < 0.4
    holders_UM[np.arange(units), random.integers(0, len(members), units)] = True
    numel_U = random.integers(1, 100, units) * 16

    homes = plan_homes(members, holder_tuples(holders_UM), numel_U, redundancy)

    wanted = min(redundancy, len(members))
    domains = {member.domain for member in members}
    nodes = {member.node for member in members}
    for unit, of_unit in enumerate(homes):
        assert len(of_unit) == len(set(of_unit)) == wanted
        assert holders_UM[unit, of_unit[0]]
        if wanted > 1 and len(domains) > 1:
            assert len({members[home].domain for home in of_unit}) > 1
        elif wanted > 1 and len(nodes) > 1:
            assert len({members[home].node for home in of_unit}) > 1


@settings(max_examples=100, deadline=None)
@given(members=gangs(), redundancy=st.integers(2, 3))
def test_all_units_of_a_node_are_mirrored_inside_its_group(
    members: Members, redundancy: int
) -> None:
    units = 5 * len(members)
    holders_UM = np.ones((units, len(members)), dtype=np.bool_)
    numel_U = np.full(units, 16)
    primaries = np.bincount(np.arange(units) % len(members), weights=numel_U).astype(np.int64)

    group_of = plan_copysets(members, primaries, redundancy)
    homes = plan_homes(members, holder_tuples(holders_UM), numel_U, redundancy)

    for of_unit in homes:
        assert len({group_of[members[home].node] for home in of_unit}) == 1


def test_equal_nodes_in_two_domains_are_paired(
    make_members: Callable[..., Members],
) -> None:
    members = make_members(8, 2, 2)

    group_of = plan_copysets(members, np.zeros(16, dtype=np.int64), 2)

    domain_of = {member.node: member.domain for member in members}
    for group in range(4):
        nodes = [node for node, number in group_of.items() if number == group]
        assert len(nodes) == 2
        assert {domain_of[node] for node in nodes} == {"domain-0", "domain-1"}


def test_primaries_are_balanced_within_a_stage_and_homes_over_the_gang(
    make_job: Callable[..., JobSpec],
    make_inventory: Callable[..., Inventory],
    make_members: Callable[..., Members],
) -> None:
    job = make_job("parallel.expert_replicas=all")
    inventory = make_inventory(job)

    plan = make_plan(job, inventory, make_members(4, 2, 2))

    numel_U = unit_sizes(inventory)
    primary_U = np.array([homes[0] for homes in plan.homes])
    primary_M = np.bincount(primary_U, weights=numel_U, minlength=8)
    homed_M = numel_U @ home_matrix(plan.homes, 8)
    for stage in plan.stages:
        in_stage = primary_M[list(stage.members)]
        assert in_stage.max() - in_stage.min() <= numel_U.max()
    assert homed_M.max() <= 1.1 * homed_M.mean()
    assert homed_M.min() >= 0.9 * homed_M.mean()


def test_primaries_of_a_plan_are_holders_inside_the_units_stage(
    make_job: Callable[..., JobSpec],
    make_inventory: Callable[..., Inventory],
    make_members: Callable[..., Members],
) -> None:
    job = make_job("parallel.stages=3", "parallel.expert_replicas=one")
    inventory = make_inventory(job)

    plan = make_plan(job, inventory, make_members(7, 1, 3))

    holders_UM = holder_matrix(inventory, plan.stages, plan.slots)
    assert unit_holders(inventory, plan.stages, plan.slots) == holder_tuples(holders_UM)
    for unit in inventory.units:
        assert plan.holders(unit) == tuple(np.flatnonzero(holders_UM[unit.index]))
        assert plan.homes[unit.index][0] in plan.holders(unit)

import time
from collections.abc import Callable

import numpy as np
import pytest

from elasticmoe.plan.exchange import ExchangeTables, UnitRoutes, plan_exchange
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.types import Inventory, Member, Plan
from elasticmoe.spec.job import JobSpec

KINDS = ("gradients", "forwards", "weights")


@pytest.fixture(params=["all", "one"])
def planned(
    request: pytest.FixtureRequest,
    make_job: Callable[..., JobSpec],
    make_inventory: Callable[..., Inventory],
    make_members: Callable[..., tuple[Member, ...]],
) -> tuple[Plan, Inventory, list[ExchangeTables]]:
    job = make_job("parallel.stages=2", f"parallel.expert_replicas={request.param}")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(5, 1, 2))
    return plan, inventory, [plan_exchange(plan, inventory, m) for m in range(5)]


def test_what_one_member_sends_is_what_the_other_receives(
    planned: tuple[Plan, Inventory, list[ExchangeTables]],
) -> None:
    _, _, tables = planned

    for kind in KINDS:
        sides: list[UnitRoutes] = [getattr(table, kind) for table in tables]
        for sender, side in enumerate(sides):
            for receiver, units in enumerate(side.send):
                assert units.tolist() == sides[receiver].receive[sender].tolist()
                assert units.tolist() == sorted(units.tolist())


def test_every_holder_sends_its_gradient_to_the_primary_home(
    planned: tuple[Plan, Inventory, list[ExchangeTables]],
) -> None:
    plan, inventory, tables = planned

    for unit in inventory.units:
        primary = plan.homes[unit.index][0]
        sent = [m for m, t in enumerate(tables) if unit.index in t.gradients.send[primary]]
        assert tuple(sent) == plan.holders(unit)


def test_a_holder_has_weights_from_itself_if_it_is_a_home_and_else_from_the_primary(
    planned: tuple[Plan, Inventory, list[ExchangeTables]],
) -> None:
    plan, inventory, tables = planned
    own = 0

    for unit in inventory.units:
        for member, table in enumerate(tables):
            sources = [s for s, units in enumerate(table.weights.receive) if unit.index in units]
            homes = plan.homes[unit.index]
            source = member if member in homes else homes[0]
            assert sources == ([source] if member in plan.holders(unit) else [])
            own += sources == [member] and member != homes[0]
    assert own > 0


def test_only_the_other_homes_get_the_reduced_gradient(
    planned: tuple[Plan, Inventory, list[ExchangeTables]],
) -> None:
    plan, inventory, tables = planned

    for unit in inventory.units:
        primary, *others = plan.homes[unit.index]
        for member, table in enumerate(tables):
            sources = [s for s, units in enumerate(table.forwards.receive) if unit.index in units]
            assert sources == ([primary] if member in others else [])


def test_tables_of_a_large_gang_take_less_than_a_second(
    make_job: Callable[..., JobSpec],
    make_inventory: Callable[..., Inventory],
    make_members: Callable[..., tuple[Member, ...]],
) -> None:
    job = make_job("parallel.stages=8", "parallel.expert_replicas=one", preset="deepseek-v3")
    inventory = make_inventory(job, piece=2**23)
    plan = make_plan(job, inventory, make_members(8, 8, 4))
    assert len(inventory.units) > 16_000

    started = time.process_time()
    table = plan_exchange(plan, inventory, 11)
    seconds = time.process_time() - started

    assert np.concatenate(table.weights.send).size > 0
    assert np.concatenate(table.forwards.send).size > 0
    assert seconds < 1

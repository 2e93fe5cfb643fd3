import itertools
from collections.abc import Callable
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticmoe.plan.make import make_plan
from elasticmoe.plan.survival import plan_survival, survival_probability
from elasticmoe.plan.types import Inventory, Member
from elasticmoe.spec.job import JobSpec


def counted(fatal: set[frozenset[int]], nodes: int, lost: int) -> float:
    choices = [set(choice) for choice in itertools.combinations(range(nodes), lost)]
    fine = [choice for choice in choices if not any(one <= choice for one in fatal)]
    return len(fine) / len(choices)


@settings(max_examples=300, deadline=None)
@given(
    nodes=st.integers(4, 8),
    fatal=st.sets(st.frozensets(st.integers(0, 7), min_size=1, max_size=3), max_size=9),
    lost=st.integers(1, 3),
)
def test_the_probability_equals_counting_all_choices_of_nodes(
    nodes: int, fatal: set[frozenset[int]], lost: int
) -> None:
    inside = {one for one in fatal if max(one) < nodes}

    assert survival_probability(inside, nodes, lost) == counted(inside, nodes, lost)


def test_nothing_survives_the_loss_of_every_node() -> None:
    assert survival_probability(set(), 2, 2) == 0.0


def plan_on(
    make_job: Callable[..., JobSpec],
    make_inventory: Callable[..., Inventory],
    members: tuple[Member, ...],
    *overrides: str,
) -> tuple[float, float, float]:
    job = make_job(*overrides)
    return plan_survival(make_plan(job, make_inventory(job), members)).lose_nodes


def test_pairs_survive_two_random_losses_except_their_own(
    make_job: Callable[..., JobSpec],
    make_inventory: Callable[..., Inventory],
    make_members: Callable[..., tuple[Member, ...]],
) -> None:
    one, two, three = plan_on(make_job, make_inventory, make_members(8, 2, 2))

    assert one == 1.0
    assert two == pytest.approx(1 - 1 / 7)
    assert three == pytest.approx(1 - 4 * 6 / comb(8, 3))


def test_one_home_per_unit_survives_no_loss(
    make_job: Callable[..., JobSpec],
    make_inventory: Callable[..., Inventory],
    make_members: Callable[..., tuple[Member, ...]],
) -> None:
    lost = plan_on(make_job, make_inventory, make_members(4, 1, 2), "protection.redundancy=1")

    assert lost == (0.0, 0.0, 0.0)


def test_three_homes_survive_any_two_losses(
    make_job: Callable[..., JobSpec],
    make_inventory: Callable[..., Inventory],
    make_members: Callable[..., tuple[Member, ...]],
) -> None:
    one, two, three = plan_on(
        make_job, make_inventory, make_members(6, 1, 3), "protection.redundancy=3"
    )

    assert (one, two) == (1.0, 1.0)
    assert three == pytest.approx(1 - 2 / comb(6, 3))


def test_a_gang_in_one_domain_is_shown_to_be_at_risk(
    make_job: Callable[..., JobSpec],
    make_inventory: Callable[..., Inventory],
    make_members: Callable[..., tuple[Member, ...]],
) -> None:
    job = make_job()
    inventory = make_inventory(job)

    one_node = plan_survival(make_plan(job, inventory, make_members(1, 4, 1)))
    two_domains = plan_survival(make_plan(job, inventory, make_members(2, 2, 2)))

    assert one_node.lose_domain == {"domain-0": False}
    assert one_node.single_node_units == len(inventory.units)
    assert two_domains.lose_domain == {"domain-0": True, "domain-1": True}
    assert two_domains.single_node_units == 0

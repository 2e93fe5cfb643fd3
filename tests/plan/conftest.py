"""Small inventories and jobs, made without a model."""

from collections.abc import Callable

import pytest
from plan_cases import build_inventory, build_job, build_members

from elasticmoe.plan.types import Inventory, Member
from elasticmoe.spec.job import JobSpec


@pytest.fixture(scope="session")
def make_job() -> Callable[..., JobSpec]:
    return build_job


@pytest.fixture(scope="session")
def make_members() -> Callable[..., tuple[Member, ...]]:
    return build_members


@pytest.fixture(scope="session")
def make_inventory() -> Callable[..., Inventory]:
    return build_inventory

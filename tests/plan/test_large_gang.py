import json
import time
from collections.abc import Callable
from typing import TypeVar

import pytest
from plan_cases import Loss, build_inventory, build_job, build_members, lose

from elasticmoe.plan.make import make_plan
from elasticmoe.plan.moves import plan_moves
from elasticmoe.plan.protection import restore_protection, single_homed, split_restoration
from elasticmoe.plan.survival import plan_survival
from elasticmoe.plan.types import Plan

NUM_WORKERS = 16_384
BOUND_S = 2.5
"""Of processor time for one decision, on a machine that is busy with other tests."""

Result = TypeVar("Result")


def fastest(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result, and the least processor time of two tries: others use the machine too."""
    seconds = []
    for _ in range(2):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return result, min(seconds)


@pytest.fixture(scope="module")
def loss() -> Loss:
    """One of 2,048 nodes of a gang that trains the geometry of DeepSeek-V3 is lost."""
    job = build_job(
        "parallel.stages=32",
        "parallel.expert_replicas=one",
        "batch.global_samples=16384",
        "batch.num_waves=64",
        "data.seq_len=4096",
        f"workers.max={NUM_WORKERS}",
        preset="deepseek-v3",
    )
    inventory = build_inventory(job, piece=2**18)
    before = make_plan(job, inventory, build_members(NUM_WORKERS // 8, 8, 16))
    return lose(job, inventory, before, set(range(80, 88)))


def test_a_failover_of_the_largest_gang_is_decided_quickly_and_moves_little(loss: Loss) -> None:
    def decide() -> tuple[Plan, tuple[tuple[int, int, int], ...]]:
        plan = make_plan(loss.job, loss.inventory, loss.survivors, present=loss.present)
        plan_survival(plan)
        return plan, plan_moves(plan, loss.inventory, loss.present)

    (plan, moves), seconds = fastest(decide)

    assert len(plan.members) == NUM_WORKERS - 8
    assert 0 < len(moves) < len(loss.inventory.units) / 100
    assert seconds < BOUND_S


def test_a_plan_for_the_largest_gang_is_made_and_hashed_quickly(loss: Loss) -> None:
    members = loss.before.members
    _, seconds = fastest(lambda: make_plan(loss.job, loss.inventory, members).digest)

    assert seconds < BOUND_S
    assert Plan.from_json(json.loads(json.dumps(loss.before.to_json()))) == loss.before


def test_the_largest_gang_gets_its_protection_back_in_batches(loss: Loss) -> None:
    before = make_plan(loss.job, loss.inventory, loss.survivors, present=loss.present)

    def decide() -> tuple[tuple[int, ...], ...]:
        after = restore_protection(before, loss.job, loss.inventory)
        return split_restoration(before, after, loss.inventory, budget_bytes=10**9)

    batches, seconds = fastest(decide)

    units = sorted(unit for batch in batches for unit in batch)
    assert tuple(units) == single_homed(before, 2)
    assert seconds < BOUND_S

"""What holds in fp32 and bf16, where sums depend on the layout."""

from typing import Any

import numpy as np
import pytest
from gangs import Case, Pool, merged, plan_for, serial_run, tiny_job

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]

STEPS = 5
# widths that the grouped matrix product takes in bf16: rows of whole 16 bytes
SIZES: dict[str, Any] = {"hidden_size": 32, "moe": {"expert_hidden_size": 32}}


@pytest.mark.parametrize("workers, stages", [(1, 1), (2, 1), (4, 2), (3, 3), (8, 2)])
@pytest.mark.parametrize("replicas", ["one", "all"])
def test_fp32_losses_equal_the_serial_ones_to_rounding(
    pool: Pool, workers: int, stages: int, replicas: str
) -> None:
    parallel = {"stages": stages, "expert_replicas": replicas}
    job = tiny_job(model={**SIZES, "precision": "fp32"}, parallel=parallel)

    outcome = merged(pool.run(Case(job, plan_for(job, workers), STEPS)))

    wanted = serial_run(job, STEPS)
    assert np.abs(np.array(outcome.losses) / np.array(wanted.losses) - 1).max() < 1e-5


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("replicas", ["one", "all"])
def test_the_same_layout_and_seed_repeat_bit_for_bit(
    pool: Pool, precision: str, replicas: str
) -> None:
    parallel = {"stages": 2, "expert_replicas": replicas}
    job = tiny_job(model={**SIZES, "precision": precision}, parallel=parallel)
    case = Case(job, plan_for(job, 4, 2), STEPS)

    first, second = merged(pool.run(case)), merged(pool.run(case))

    assert first.losses == second.losses
    for unit, master in first.masters.items():
        assert np.array_equal(master, second.masters[unit])
        assert np.array_equal(first.exp_avg_sqs[unit], second.exp_avg_sqs[unit])
    assert np.array_equal(first.bias, second.bias)


def test_bf16_follows_the_fp32_losses(pool: Pool) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        job = tiny_job(model={**SIZES, "precision": precision}, parallel={"stages": 2})
        losses[precision] = np.array(merged(pool.run(Case(job, plan_for(job, 4, 2), STEPS))).losses)

    assert np.abs(losses["bf16"] / losses["fp32"] - 1).max() < 0.02

"""A checkpoint is a set of units: any layout writes it, any layout reads it, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gangs import Case, Outcome, Pool, merged, plan_for, tiny_job

from elasticmoe.checkpoint.manifest import Manifest, digest_inventory, file_row
from elasticmoe.checkpoint.read import open_verified
from elasticmoe.checkpoint.store import open_store
from elasticmoe.checkpoint.write import seal, write_part
from elasticmoe.model.inventory import build_inventory
from elasticmoe.runtime.checkpoints import checkpoint_tensors
from elasticmoe.runtime.gang import Gang
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import to_data

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]

STEPS = 3
LAYOUTS = [(1, 1), (2, 1), (3, 2), (4, 2), (4, 4), (8, 4)]


def job_of(precision: str, stages: int, directory: Path) -> JobSpec:
    sizes = {"hidden_size": 32, "moe": {"expert_hidden_size": 32}}
    return tiny_job(
        model={**sizes, "precision": precision},
        parallel={"stages": stages, "expert_replicas": "one"},
        storage={"dir": str(directory)},
    )


def write_own_part(gang: Gang) -> Any:
    """Runs on every member."""
    store = open_store(gang.job.storage.dir)
    return write_part(store, STEPS, f"m{gang.seat.member}", checkpoint_tensors(gang))


def write_checkpoint(pool: Pool, job: JobSpec, workers: int) -> Outcome:
    parts = pool.run(Case(job, plan_for(job, workers, 2), STEPS, after=write_own_part))
    inventory = build_inventory(job.model, job.data.seq_len)
    manifest = Manifest(
        job=job.name,
        step=STEPS,
        timeline=0,
        generation=1,
        model=to_data(job)["model"],
        inventory=digest_inventory(inventory),
        data="",
        global_samples=job.batch.global_samples,
        seed=job.data.seed,
        files=tuple(file_row(row) for _, rows in parts for row in rows),
        state={"step": STEPS, "updates": STEPS},
    )
    store = open_store(job.storage.dir)
    seal(store, manifest)
    open_verified(store, STEPS).check_complete(inventory)
    return merged(parts)


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize("workers, stages", LAYOUTS)
def test_a_checkpoint_of_one_layout_is_read_bit_for_bit_by_every_other(
    pool: Pool, tmp_path: Path, workers: int, stages: int, precision: str
) -> None:
    written = write_checkpoint(pool, job_of(precision, stages, tmp_path), workers)
    uri = open_verified(open_store(str(tmp_path)), STEPS).uri

    for other_workers, other_stages in LAYOUTS:
        job = job_of(precision, other_stages, tmp_path)
        plan = plan_for(job, other_workers, 2)
        found = merged(pool.run(Case(job, plan, 0, checkpoint=uri)))

        assert found.masters.keys() == written.masters.keys()
        for unit in written.masters:
            assert np.array_equal(found.masters[unit], written.masters[unit])
            assert np.array_equal(found.exp_avgs[unit], written.exp_avgs[unit])
            assert np.array_equal(found.exp_avg_sqs[unit], written.exp_avg_sqs[unit])
        assert np.array_equal(found.bias, written.bias)


def test_a_run_that_goes_on_from_a_checkpoint_equals_the_one_that_never_stopped(
    pool: Pool, tmp_path: Path
) -> None:
    job = job_of("bf16", 2, tmp_path)
    plan = plan_for(job, 4, 2)
    write_checkpoint(pool, job, 4)
    uri = open_verified(open_store(str(tmp_path)), STEPS).uri

    resumed = merged(pool.run(Case(job, plan, 2, checkpoint=uri)))

    whole = merged(pool.run(Case(job, plan, STEPS + 2)))
    assert resumed.losses == whole.losses[STEPS:]
    for unit, master in whole.masters.items():
        assert np.array_equal(resumed.masters[unit], master)
    assert np.array_equal(resumed.bias, whole.bias)

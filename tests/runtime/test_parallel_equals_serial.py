"""Whatever the layout, a gang computes what one process computes."""

from typing import Any

import numpy as np
import pytest
from gangs import Case, Outcome, Pool, merged, plan_for, serial_run, tiny_job

from elasticmoe.spec.job import JobSpec

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]

STEPS = 5
ONE = {"parallel": {"expert_replicas": "one"}}
ALL = {"parallel": {"expert_replicas": "all"}}


def layout(workers: int, stages: int, nodes: int = 1, **sections: Any) -> Any:
    """A row of the table below; `sections` override the tiny job's."""
    parallel = {"stages": stages, **sections.pop("parallel", {})}
    batch = sections.get("batch", {})
    name = f"{workers}w-{stages}s-{nodes}n-" + "-".join(
        f"{key}={value}"
        for section in ({**parallel, "stages": None}, *sections.values(), batch and {})
        for key, value in section.items()
        if value is not None
    )
    return pytest.param(workers, nodes, tiny_job(parallel=parallel, **sections), id=name)


def model(**fields: Any) -> dict[str, Any]:
    """Overrides of the model section."""
    return {"model": fields}


MANY_EXPERTS = model(moe={"num_experts": 64, "num_groups": 8, "top_groups": 3, "top_k": 4})
IDLE = {  # a token has one expert of eight: often some worker's expert gets none
    "batch": {"global_samples": 2, "num_waves": 2},
    **model(moe={"top_k": 1, "num_groups": 1, "top_groups": 1}),
}
LAYOUTS = [
    layout(1, 1),
    layout(2, 1, **ONE),
    layout(2, 1, **ALL),
    layout(3, 1, **ONE),
    layout(4, 1, 2, **ONE),
    layout(8, 1, 2, **ONE),
    layout(2, 2, 2),
    layout(4, 2, 2, **ONE),
    layout(4, 2, 2, **ALL),
    layout(3, 2, 3, **ONE),  # unequal stages; the first has a dense layer
    layout(5, 2, 1, **ONE),
    layout(3, 3),
    layout(4, 4, 2),  # the first stage has no MoE layer
    layout(8, 4, 4, **ONE),
    layout(8, 8, 2, **model(num_layers=8, first_dense_layers=2)),
    layout(8, 1, batch={"global_samples": 4, "num_waves": 2}, **ONE),  # workers without a sample
    layout(8, 1, **ONE, **IDLE),
    layout(4, 1, protection={"redundancy": 1}, **ONE),
    layout(4, 2, 2, protection={"redundancy": 1}),
    layout(4, 1, 2, protection={"redundancy": 3}, **ONE),
    layout(4, 2, 2, **model(mtp_depth=0)),
    layout(4, 2, 2, **model(mtp_depth=3)),
    layout(3, 1, **ONE, **MANY_EXPERTS),
    layout(4, 2, 2, **ONE, **MANY_EXPERTS),
    layout(4, 2, 2, **model(tied_embeddings=True, mtp_depth=0)),
    layout(4, 2, parallel={"schedule": "gpipe"}, batch={"global_samples": 8, "num_waves": 4}),
    layout(4, 2, **ONE, **model(recompute_layers=[0, 4])),
    layout(2, 1, **ONE, **model(moe={"score": "softmax", "num_groups": 1, "top_groups": 1})),
    *(
        layout(4, 2, 2, balance={"loss": loss, "loss_weight": 0.1, "z_loss_weight": 0.01}, **held)
        for loss in ("micro_batch", "sequence", "global_batch")
        for held in (ONE, ALL)
    ),
    layout(3, 1, balance={"loss": "micro_batch", "loss_weight": 0.1, "window_samples": 2}, **ONE),
    *(
        layout(4, 2, 2, balance={"capacity_factor": 0.75, "window_samples": window}, **held)
        for window in (2, 4)
        for held in (ONE, ALL)
    ),
    *(
        layout(2, 1, balance={"bias": bias, "mean_centered": True}, **ONE)
        for bias in ("none", "annealed", "magnitude")
    ),
    layout(2, 1, **ONE, **model(attention={"kind": "gqa", "num_heads": 4, "num_kv_heads": 2})),
]
_references: dict[str, Outcome] = {}


def reference(job: JobSpec) -> Outcome:
    """The serial run, made once for all layouts of a job."""
    key = job.model_copy(
        update={"parallel": None, "protection": None}  # the reference knows neither
    ).model_dump_json(exclude={"parallel", "protection"})
    if key not in _references:
        _references[key] = serial_run(job, STEPS)
    return _references[key]


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over largest value."""
    assert found.shape == wanted.shape
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-30)
    return float(np.abs(found - wanted).max(initial=0)) / scale


@pytest.mark.parametrize("workers, nodes, job", LAYOUTS)
def test_a_gang_of_any_layout_computes_what_one_process_computes(
    pool: Pool, workers: int, nodes: int, job: JobSpec
) -> None:
    plan = plan_for(job, workers, nodes)

    outcome = merged(pool.run(Case(job, plan, STEPS)))

    wanted = reference(job)
    assert difference(np.array(outcome.losses), np.array(wanted.losses)) < 1e-9
    assert difference(np.array(outcome.mtp_losses), np.array(wanted.mtp_losses)) < 1e-9
    assert difference(np.array(outcome.aux_losses), np.array(wanted.aux_losses)) < 1e-9
    assert difference(np.array(outcome.norms), np.array(wanted.norms)) < 1e-9
    assert outcome.masters.keys() == wanted.masters.keys()
    for unit in wanted.masters:
        assert difference(outcome.masters[unit], wanted.masters[unit]) < 1e-9, unit
        assert difference(outcome.gradients[unit], wanted.gradients[unit]) < 1e-9, unit
    assert difference(outcome.bias, wanted.bias) < 1e-9
    for found, counts in zip(outcome.counts, wanted.counts, strict=True):
        assert np.array_equal(found, counts)
    size = job.batch.global_samples
    assert outcome.samples == [(step * size, (step + 1) * size) for step in range(STEPS)]


def test_the_table_has_a_worker_whose_experts_get_no_token() -> None:
    (job,) = (row.values[2] for row in LAYOUTS if row.values[2].model.moe.top_k == 1)

    counts = reference(job).counts  # of 8 experts, which 8 workers hold, one each

    assert any((counts_LE == 0).any() for counts_LE in counts)

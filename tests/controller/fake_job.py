"""A small job and what its model consists of."""

from typing import Final

from elasticmoe.plan.types import ALIGN, Block, Inventory, Parameter, Unit
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data

SAMPLES: Final = 4
"""Per step."""


def small_job(**changes: dict[str, object]) -> JobSpec:
    """A job of 30 steps on 2 to 4 workers with a checkpoint every 10 steps."""
    tables: dict[str, object] = {
        "version": 1,
        "name": "test",
        "model": {"preset": "quickstart"},
        "data": {"sources": [{"path": "text"}], "seq_len": 16},
        "batch": {"global_samples": SAMPLES, "num_waves": 1},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"steps": 30},
        "workers": {"replicas": 4, "min": 2, "max": 8},
        "checkpoint": {"interval_steps": 10, "keep": 2},
        "storage": {"dir": "runs/test"},
    }
    for name, table in changes.items():
        tables[name] = {**tables.get(name, {}), **table}  # type: ignore[dict-item]
    return parse_data(tables)


ROLLBACK = {"skip_rungs": ["retry", "replace", "failover"]}
"""`protection` of a job that always goes back to a checkpoint."""


def small_inventory(job: JobSpec) -> Inventory:
    """One dense block per part of the network: the brain looks no closer."""
    names = ["embedding", *(f"layer.{n}" for n in range(job.model.num_layers)), "head"]
    names += [f"mtp.{n}" for n in range(job.model.mtp_depth)]
    blocks = tuple(
        Block(
            index=index,
            name=name,
            layer=int(name.split(".")[1]) if name.startswith("layer.") else -1,
            parameters=(Parameter("weight", (ALIGN,), decay=True, offset=0),),
            decay_numel=ALIGN,
            numel=ALIGN,
            num_experts=0,
            flops_per_token=2.0 * ALIGN,
            activation_bytes_per_token=1.0,
        )
        for index, name in enumerate(names)
    )
    units = tuple(Unit(block.index, block.index, -1, 0, ALIGN, ALIGN) for block in blocks)
    return Inventory(blocks, units)

"""Small jobs and a plain inventory, for runs that need no real network."""

from typing import Any

from elasticmoe.plan.types import ALIGN, Block, Inventory, Parameter, Unit
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data


def small_job(**changes: dict[str, Any]) -> JobSpec:
    """A job of 40 steps with a checkpoint every 10.

    Args:
        changes: fields to replace, by table.
    """
    tables: dict[str, Any] = {
        "version": 1,
        "name": "simulated",
        "model": {"preset": "quickstart"},
        "data": {"sources": [{"path": "nowhere"}], "seq_len": 16},
        "batch": {"global_samples": 64, "num_waves": 1},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"steps": 40},
        "workers": {"replicas": 4, "min": 1, "max": 64},
        "protection": {"max_restarts": 1000, "restart_backoff_s": 0.01},
        "checkpoint": {"interval_steps": 10, "keep": 2},
        "storage": {"dir": "nowhere"},
    }
    for name, table in changes.items():
        tables[name] = {**tables.get(name, {}), **table}
    return parse_data(tables)


def plain_inventory(job: JobSpec, *, numel: int = 64 * ALIGN) -> Inventory:
    """Blocks and units of a model's shape, all units alike: no network is built.

    Args:
        job: its model says how many layers and experts there are.
        numel: elements of each unit.
    """
    model, blocks, units = job.model, list[Block](), list[Unit]()

    def add(name: str, layer: int, num_experts: int) -> None:
        block = Block(
            index=len(blocks),
            name=name,
            layer=layer,
            parameters=(Parameter("weight", (numel,), decay=True, offset=0),),
            decay_numel=numel,
            numel=numel,
            num_experts=num_experts,
            flops_per_token=2.0 * numel,
            activation_bytes_per_token=1.0,
        )
        blocks.append(block)
        for expert in range(num_experts) if num_experts else (-1,):
            units.append(Unit(len(units), block.index, expert, 0, numel, numel))

    names = ["embedding", *(f"layer.{number}" for number in range(model.num_layers)), "head"]
    for name in [*names, *(f"mtp.{depth}" for depth in range(model.mtp_depth))]:
        layer = int(name.partition(".")[2]) if name.startswith("layer.") else -1
        add(name, layer, 0)
        if name.startswith("mtp.") or layer >= model.first_dense_layers:
            add(f"{name}.experts", layer, model.moe.num_experts)
    return Inventory(tuple(blocks), tuple(units))

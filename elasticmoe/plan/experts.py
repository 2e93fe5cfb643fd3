"""Which experts each worker of a stage holds."""

from typing import Literal

from elasticmoe.plan.types import Block, Inventory
from elasticmoe.spec.job import JobSpec

Holding = Literal["all", "one"]
"""Every worker of a stage holds every expert of its layers, or each expert has one holder."""


def compute_bytes(job: JobSpec) -> int:
    """Bytes per element of compute weights and activations."""
    return {"bf16": 2, "fp32": 4, "fp64": 8}[job.model.precision]


def master_bytes(job: JobSpec) -> int:
    """Bytes per element of master weights, moments and gradients."""
    return 8 if job.model.precision == "fp64" else 4


def step_tokens(job: JobSpec) -> int:
    """Tokens that pass through the network in one step."""
    return job.batch.global_samples * job.data.seq_len


def token_bytes(job: JobSpec, workers: int) -> float:
    """Bytes per step that one MoE layer's tokens travel if every expert has one holder.

    Four trips: dispatch and combine, forward and backward. Under even load a token's expert is
    with another of the stage's `workers` in (workers - 1) / workers of all cases.
    """
    rows = step_tokens(job) * job.model.moe.top_k * (workers - 1) / workers
    return 4 * rows * job.model.hidden_size * compute_bytes(job)


def replica_bytes(job: JobSpec, block: Block, workers: int) -> float:
    """Bytes per step that one MoE layer's gradients and weights travel if all hold all."""
    numel = block.numel * block.num_experts
    return (workers - 1) * numel * (master_bytes(job) + compute_bytes(job))


def decide_holding(job: JobSpec, inventory: Inventory, workers: int) -> Holding:
    """Choose between one holder per expert and full replication, for a stage of `workers`.

    `auto` takes whichever moves fewer bytes per step; full replication on a tie, because it
    also spares the latency of the token exchange.
    """
    asked = job.parallel.expert_replicas
    if asked != "auto":
        return asked
    blocks = inventory.moe_blocks
    tokens = token_bytes(job, workers) * len(blocks)
    weights = sum(replica_bytes(job, block, workers) for block in blocks)
    return "all" if weights <= tokens else "one"


def plan_slots(holding: Holding, num_experts: int, workers: int) -> tuple[tuple[int, ...], ...]:
    """Experts of one layer on each worker of its stage, ascending.

    >>> plan_slots("one", 5, 2)
    ((0, 1), (2, 3, 4))
    """
    if holding == "all":
        return (tuple(range(num_experts)),) * workers
    return tuple(
        tuple(range(w * num_experts // workers, (w + 1) * num_experts // workers))
        for w in range(workers)
    )

"""What a step costs: flops, expected bubble, bytes that travel.

Shapes: U = units, M = members, E = experts, W = workers of a stage.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from elasticmoe.plan.dispatch import count_travelling
from elasticmoe.plan.experts import compute_bytes, master_bytes, step_tokens
from elasticmoe.plan.holders import IntArray, count_held, unit_sizes
from elasticmoe.plan.pipelines import from_ops, simulate
from elasticmoe.plan.schedule import Durations
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.spec.job import JobSpec


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """Bytes that each member sends to others in one step, int64 [M] each."""

    gradients_M: IntArray
    """To primary homes."""
    forwards_M: IntArray
    """Reduced gradients, from primary homes to the others."""
    weights_M: IntArray
    """From primary homes to holders that are no home of the unit."""
    tokens_M: IntArray
    """Dispatch and combine, forward and backward, under even expert load."""
    hidden_M: IntArray
    """Hidden states to the next stage and their gradients to the one before."""

    @property
    def total_M(self) -> IntArray:
        """Everything a member sends, int64 [M]."""
        return self.gradients_M + self.forwards_M + self.weights_M + self.tokens_M + self.hidden_M


def forward_flops_per_token(job: JobSpec, inventory: Inventory, blocks: tuple[int, ...]) -> float:
    """Matrix-product flops of one token's forward pass through the given blocks."""
    top_k = job.model.moe.top_k
    return sum(
        inventory.blocks[index].flops_per_token
        * (top_k if inventory.blocks[index].is_experts else 1)
        for index in blocks
    )


def step_flops(job: JobSpec, inventory: Inventory) -> float:
    """Matrix-product flops of one step, the model's own; recomputation is not counted.

    A backward pass costs twice a forward pass. Divided by time and the gang's peak, this is MFU.
    """
    every_block = tuple(range(len(inventory.blocks)))
    return 3 * forward_flops_per_token(job, inventory, every_block) * step_tokens(job)


def active_parameters(job: JobSpec, inventory: Inventory) -> int:
    """Parameters that one token meets, padding included."""
    top_k = job.model.moe.top_k
    return sum(block.numel * (top_k if block.is_experts else 1) for block in inventory.blocks)


def expected_bubble(job: JobSpec, inventory: Inventory, plan: Plan) -> float:
    """Share of all workers' time in which they wait for other stages, 0 to 1.

    Plays the plan's timetables through with each stage's flops on its slowest worker; every
    worker of a stage counts as busy with its stage.
    """
    durations = []
    for stage in plan.stages:
        largest = max(end - start for start, end in stage.samples)
        flops = forward_flops_per_token(job, inventory, stage.blocks)
        forward = max(flops, 1.0) * largest
        durations.append(Durations(forward, 2 * forward, forward, 3 * forward))
    run = simulate(from_ops([stage.timetable for stage in plan.stages]), durations)
    workers = [len(stage.members) for stage in plan.stages]
    busy = sum(time * count for time, count in zip(run.busy, workers, strict=True))
    return 1 - busy / (run.end * sum(workers))


def plan_traffic(job: JobSpec, inventory: Inventory, plan: Plan) -> Traffic:
    """Count the bytes of a step; under even expert load as far as tokens are concerned."""
    num_members, numel_U = len(plan.members), unit_sizes(inventory)
    num_homes_U = np.fromiter(map(len, plan.homes), np.int64, len(numel_U))
    home_C = np.fromiter(chain.from_iterable(plan.homes), np.int64, int(num_homes_U.sum()))
    primary_U = home_C[np.cumsum(num_homes_U) - num_homes_U]
    unit_C = np.repeat(np.arange(len(numel_U)), num_homes_U)
    held_M, num_holders_U, is_holder_C = count_held(inventory, plan, numel_U, unit_C, home_C)
    num_served_U = num_holders_U - np.bincount(unit_C[is_holder_C], minlength=len(numel_U))

    def by_primary(elements_U: IntArray) -> IntArray:
        sums_M = np.bincount(primary_U, weights=elements_U, minlength=num_members)
        return sums_M.astype(np.int64)

    master, compute = master_bytes(job), compute_bytes(job)
    return Traffic(
        gradients_M=master * (held_M - by_primary(numel_U)),
        forwards_M=master * by_primary(numel_U * (num_homes_U - 1)),
        weights_M=compute * by_primary(numel_U * num_served_U),
        tokens_M=_token_bytes(job, inventory, plan),
        hidden_M=_hidden_bytes(job, plan),
    )


def _token_bytes(job: JobSpec, inventory: Inventory, plan: Plan) -> IntArray:
    sent_M = np.zeros(len(plan.members), dtype=np.int64)
    row_bytes = job.model.hidden_size * compute_bytes(job)
    for stage in plan.stages:
        samples_W = np.array([end - start for start, end in stage.samples])
        routed_W = samples_W * job.data.seq_len * job.model.moe.top_k * plan.num_waves
        rows_of: dict[tuple[tuple[int, ...], ...], IntArray] = {}
        for index in stage.blocks:
            block = inventory.blocks[index]
            if not block.is_experts:
                continue
            slots = plan.slots[index]
            if slots not in rows_of:
                rows_of[slots] = _travelling_rows(slots, block.num_experts, routed_W)
            # Whoever sends a token receives its gradient later, and the other way round.
            sent_M[list(stage.members)] += 2 * rows_of[slots] * row_bytes
    return sent_M


def _travelling_rows(
    slots: tuple[tuple[int, ...], ...], num_experts: int, routed_W: IntArray
) -> IntArray:
    """Rows that each worker sends away or computes for others, [W]."""
    holders_EW = np.zeros((num_experts, len(slots)), dtype=np.bool_)
    for worker, experts in enumerate(slots):
        holders_EW[list(experts), worker] = True
    start_EW = np.arange(num_experts)[:, None] * routed_W // num_experts
    end_EW = np.arange(1, num_experts + 1)[:, None] * routed_W // num_experts
    away_EW, arriving_EW = count_travelling(end_EW - start_EW, holders_EW)
    rows_W: IntArray = away_EW.sum(axis=0) + arriving_EW.sum(axis=0)
    return rows_W


def _hidden_bytes(job: JobSpec, plan: Plan) -> IntArray:
    """Counts every boundary as a network, also where two stages' workers share a node."""
    sent_M = np.zeros(len(plan.members), dtype=np.int64)
    sample_bytes = job.data.seq_len * job.model.hidden_size * compute_bytes(job) * plan.num_waves
    for number, stage in enumerate(plan.stages):
        directions = (number > 0) + (number < len(plan.stages) - 1)
        for member, (start, end) in zip(stage.members, stage.samples, strict=True):
            sent_M[member] += directions * (end - start) * sample_bytes
    return sent_M

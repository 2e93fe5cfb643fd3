"""What a plan puts into each worker's memory.

Shapes: M = members.
"""

from dataclasses import dataclass, replace

import numpy as np

from elasticmoe.plan.experts import compute_bytes, master_bytes
from elasticmoe.plan.holders import IntArray, holder_matrix, home_matrix, unit_sizes
from elasticmoe.plan.schedule import waves_in_flight
from elasticmoe.plan.snapshots import PARITY_GROUP, plan_snapshots
from elasticmoe.plan.types import Inventory, Plan, Stage
from elasticmoe.spec.job import JobSpec


@dataclass(frozen=True, slots=True, eq=False)
class MemoryUse:
    """Bytes per member, int64 [M] each."""

    weights_M: IntArray
    """Compute weights."""
    gradients_M: IntArray
    """Accumulated gradients of the weights held."""
    homes_M: IntArray
    """Master weights and two moments of the units homed; where one of them has no other home, also
    the undo copy of the unit being updated."""
    prepared_M: IntArray
    """Reduced gradients of the units homed, kept until the step is applied."""
    buffers_M: IntArray
    """Send and receive buffers of the three exchanges."""
    activations_M: IntArray
    """Kept for the backward pass, under even expert load."""
    snapshots_M: IntArray
    """Two snapshots: of the units a member is primary home of, and what it keeps for others."""

    @property
    def total_M(self) -> IntArray:
        """Everything, int64 [M]."""
        return self.shared_M + self.compute_M

    @property
    def shared_M(self) -> IntArray:
        """What outlives the process in its node's shared memory where homes live on the host."""
        return self.homes_M + self.prepared_M + self.snapshots_M

    @property
    def compute_M(self) -> IntArray:
        """What lives and dies with the process, on its device."""
        return self.weights_M + self.gradients_M + self.buffers_M + self.activations_M


@dataclass(frozen=True, slots=True)
class ProtectionOption:
    """What one way to protect the training state costs each worker, on average."""

    name: str
    homes_bytes: int
    """Master weights and two moments of the units homed."""
    prepared_bytes: int
    """Reduced gradients of the units homed."""
    further_bytes: int
    """Undo copies, or snapshots and their parity."""
    step_bytes: int
    """Sent to other workers in every step, because of the protection alone."""
    snapshot_bytes: int
    """The same for every snapshot."""


def plan_memory(job: JobSpec, inventory: Inventory, plan: Plan) -> MemoryUse:
    """Add up what every member keeps."""
    holders_UM = holder_matrix(inventory, plan.stages, plan.slots)
    homes_UM = home_matrix(plan.homes, len(plan.members))
    numel_U = unit_sizes(inventory)
    primary_UM = np.zeros_like(homes_UM)
    primary_UM[np.arange(len(numel_U)), [homes[0] for homes in plan.homes]] = True
    master, compute = master_bytes(job), compute_bytes(job)
    held_M, homed_M = numel_U @ holders_UM, numel_U @ homes_UM
    away_M = numel_U @ (holders_UM & ~primary_UM)
    gathered_M = (numel_U * (holders_UM.sum(axis=1) - 1)) @ primary_UM
    mirrored_M = numel_U @ (homes_UM & ~primary_UM)
    forwarded_M = (numel_U * (homes_UM.sum(axis=1) - 1)) @ primary_UM
    exchanged_M = away_M + gathered_M
    alone_M = homes_UM[homes_UM.sum(axis=1) == 1].any(axis=0)
    return MemoryUse(
        weights_M=compute * held_M,
        gradients_M=master * held_M,
        homes_M=3 * master * homed_M + _undo_bytes(job, inventory) * alone_M,
        prepared_M=master * homed_M,
        buffers_M=(master + compute) * exchanged_M + master * (mirrored_M + forwarded_M),
        activations_M=_activation_bytes(job, inventory, plan),
        snapshots_M=_snapshot_bytes(job, inventory, plan, numel_U @ primary_UM),
    )


def _snapshot_bytes(
    job: JobSpec, inventory: Inventory, plan: Plan, primary_M: IntArray
) -> IntArray:
    """Two snapshots, of three tensors each."""
    numel_M = np.zeros_like(primary_M)
    if job.protection.takes_snapshots:
        parity = job.protection.snapshots == "parity"
        groups = plan_snapshots(plan, inventory, parity=parity)
        if groups:
            numel_M += primary_M
        for group in groups:
            numel_M[group.keeper] += inventory.units[group.units[0]].numel
    return 2 * 3 * master_bytes(job) * numel_M


def _undo_bytes(job: JobSpec, inventory: Inventory) -> int:
    """Room for any one unit as it was before its update."""
    return 3 * master_bytes(job) * max((unit.numel for unit in inventory.units), default=0)


def protection_options(
    job: JobSpec, inventory: Inventory, plan: Plan
) -> tuple[ProtectionOption, ...]:
    """Compare the ways to protect a plan's state; those that need more workers are left out."""
    workers, master = len(plan.members), master_bytes(job)
    numel = sum(unit.numel for unit in inventory.units)
    share = master * numel // workers
    undo = _undo_bytes(job, inventory)
    alone = ProtectionOption("redundancy 1, undo copy", 3 * share, share, undo, 0, 0)
    options = [alone]
    for homes in range(2, min(3, workers) + 1):
        forwarded = (homes - 1) * share
        name = f"redundancy {homes}"
        options.append(ProtectionOption(name, 3 * homes * share, homes * share, 0, forwarded, 0))
    num_apart, protection = _num_apart(plan), job.protection
    chosen = options[min(protection.redundancy, workers) - 1]
    bases = [alone, chosen] if protection.takes_snapshots and chosen is not alone else [alone]
    for base in bases:
        for apart in sorted({min(size, num_apart) for size in (2, PARITY_GROUP)} - {1}):
            options.append(
                replace(
                    base,
                    name=f"{base.name}, {_snapshots_named(apart)}",
                    further_bytes=base.further_bytes + 2 * (3 * share + 3 * share // (apart - 1)),
                    snapshot_bytes=3 * share,
                )
            )
    return tuple(options)


def chosen_option(job: JobSpec, plan: Plan) -> str:
    """The name of the option that a job has chosen."""
    protection, num_apart = job.protection, _num_apart(plan)
    redundancy = min(protection.redundancy, len(plan.members))
    name = f"redundancy {redundancy}{', undo copy' if redundancy == 1 else ''}"
    if protection.takes_snapshots and num_apart > 1:
        group = PARITY_GROUP if protection.snapshots == "parity" else 2
        name += f", {_snapshots_named(min(group, num_apart))}"
    return name


def _snapshots_named(apart: int) -> str:
    """Two failure domains hold copies; of more, one holds the parity of the others."""
    kind = "copies" if apart == 2 else f"parity of {apart - 1}"
    return f"two snapshots with {kind}"


def _num_apart(plan: Plan) -> int:
    """Workers that share neither a failure domain nor, if there is one only, a node."""
    domains = {member.domain for member in plan.members}
    return len(domains if len(domains) > 1 else {member.node for member in plan.members})


def host_bytes(
    plan: Plan, use: MemoryUse, *, homes_on_host: bool, device_is_host: bool
) -> dict[str, int]:
    """Host memory that each node must have free, by node.

    Args:
        homes_on_host: homes live in shared memory rather than on the device.
        device_is_host: workers compute on the CPU.
    """
    needed: dict[str, int] = {}
    for position, member in enumerate(plan.members):
        on_host = homes_on_host or device_is_host
        shared = int((use.shared_M if on_host else use.snapshots_M)[position])
        compute = int(use.compute_M[position]) if device_is_host else 0
        needed[member.node] = needed.get(member.node, 0) + shared + compute
    return needed


def _activation_bytes(job: JobSpec, inventory: Inventory, plan: Plan) -> IntArray:
    """Activations of all waves in flight; recomputed layers keep their input, and one its rest."""
    bytes_M = np.zeros(len(plan.members), dtype=np.int64)
    for stage in plan.stages:
        waves = waves_in_flight(stage.timetable)
        for worker, member in enumerate(stage.members):
            bytes_M[member] = _wave_bytes(job, inventory, plan, stage, worker, waves)
    return bytes_M


def _wave_bytes(
    job: JobSpec, inventory: Inventory, plan: Plan, stage: Stage, worker: int, waves: int
) -> int:
    start, end = stage.samples[worker]
    tokens = (end - start) * job.data.seq_len
    input_bytes = tokens * job.model.hidden_size * compute_bytes(job)
    first, behind = job.model.recompute_layers or (0, 0)
    kept, again = 0.0, dict[int, float]()
    for index in stage.blocks:
        block = inventory.blocks[index]
        rows: float = tokens
        if block.is_experts:
            rows = _routed_rows(job, plan, stage, worker, index)
        needed = block.activation_bytes_per_token * rows
        if first <= block.layer < behind:
            again[block.layer] = again.get(block.layer, 0.0) + needed
        else:
            kept += needed
    return int(waves * (kept + len(again) * input_bytes) + max(again.values(), default=0.0))


def _routed_rows(job: JobSpec, plan: Plan, stage: Stage, worker: int, block: int) -> float:
    """Rows per wave that a worker's slots of one layer compute under even load."""
    per_token = job.data.seq_len * job.model.moe.top_k
    slots = plan.slots[block]
    holders = sum(len(experts) for experts in slots)
    if holders == len(slots) * len(slots[worker]):  # all hold all: tokens stay
        start, end = stage.samples[worker]
        return (end - start) * per_token
    return plan.wave_samples * per_token * len(slots[worker]) / holders

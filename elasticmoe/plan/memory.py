"""What a plan puts into each worker's memory.

Shapes: M = members, U = units, E = experts of one layer, W = workers of one stage, C = homes of all
units, one after another, B = those of one block.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from elasticmoe.plan.experts import compute_bytes, master_bytes
from elasticmoe.plan.holders import IntArray, count_held, slot_counts, unit_sizes
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
    checkpoint_M: IntArray
    """A copy of the units a member is primary home of, from which it writes checkpoints: in host
    memory from the first one on, also between two."""

    @property
    def total_M(self) -> IntArray:
        """Everything, int64 [M]."""
        return self.shared_M + self.compute_M + self.checkpoint_M

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
    num_members, numel_U = len(plan.members), unit_sizes(inventory)
    num_homes_U = np.fromiter(map(len, plan.homes), np.int64, len(numel_U))
    home_C = np.fromiter(chain.from_iterable(plan.homes), np.int64, int(num_homes_U.sum()))
    primary_U = home_C[np.cumsum(num_homes_U) - num_homes_U]
    unit_C = np.repeat(np.arange(len(numel_U)), num_homes_U)
    held_M, num_holders_U, is_holder_C = count_held(inventory, plan, numel_U, unit_C, home_C)
    num_served_U = num_holders_U - np.bincount(unit_C[is_holder_C], minlength=len(numel_U))
    homed_M = _sums(home_C, np.repeat(numel_U, num_homes_U), num_members)
    primary_M = _sums(primary_U, numel_U, num_members)
    master, compute = master_bytes(job), compute_bytes(job)
    away_M = held_M - primary_M  # a unit's primary home holds it
    gathered_M = _sums(primary_U, numel_U * (num_holders_U - 1), num_members)
    own_M = _sums(home_C[is_holder_C], numel_U[unit_C[is_holder_C]], num_members)
    served_M = _sums(primary_U, numel_U * num_served_U, num_members)  # holders that are no home
    mirrored_M = homed_M - primary_M
    forwarded_M = _sums(primary_U, numel_U * (num_homes_U - 1), num_members)
    reduced_M = away_M + gathered_M + mirrored_M + forwarded_M
    published_M = held_M - own_M + served_M
    alone_M = _sums(primary_U, num_homes_U == 1, num_members) > 0
    undo = _undo_bytes(job, inventory) if alone_M.any() else 0
    return MemoryUse(
        weights_M=compute * held_M,
        gradients_M=master * held_M,
        homes_M=3 * master * homed_M + undo * alone_M,
        prepared_M=master * homed_M,
        buffers_M=master * reduced_M + compute * published_M,
        activations_M=_activation_bytes(job, inventory, plan),
        snapshots_M=_snapshot_bytes(job, inventory, plan, primary_M),
        checkpoint_M=3 * master * primary_M,
    )


def _sums(member_C: IntArray, numel_C: IntArray, num_members: int) -> IntArray:
    """Add up elements by member, int64 [M]."""
    return np.bincount(member_C, numel_C, num_members).astype(np.int64)


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
    on_host = homes_on_host or device_is_host
    bytes_M = use.checkpoint_M + (use.shared_M if on_host else use.snapshots_M)
    if device_is_host:
        bytes_M = bytes_M + use.compute_M
    needed: dict[str, int] = {}
    for member, needs in zip(plan.members, bytes_M.tolist(), strict=True):
        needed[member.node] = needed.get(member.node, 0) + needs
    return needed


@dataclass(frozen=True, slots=True)
class Overfull:
    """A node that a plan puts more on than it holds."""

    node: str
    needed_bytes: int
    there_bytes: int


def find_overfull(
    needed: Mapping[str, int], there: Mapping[str, int], further_bytes: int = 0
) -> tuple[Overfull, ...]:
    """Name the nodes that lack memory, most first; none: everything fits, as far as is known.

    Args:
        needed: bytes by node, of `host_bytes`.
        there: bytes by node; 0 where it is not known.
        further_bytes: that each node must have beside.
    """
    lacking = [
        Overfull(node, asked + further_bytes, there[node])
        for node, asked in needed.items()
        if 0 < there.get(node, 0) < asked + further_bytes
    ]
    return tuple(sorted(lacking, key=lambda one: (one.there_bytes - one.needed_bytes, one.node)))


def _activation_bytes(job: JobSpec, inventory: Inventory, plan: Plan) -> IntArray:
    """Activations of all waves in flight; recomputed layers keep their input, and one its rest."""
    bytes_M = np.zeros(len(plan.members), dtype=np.int64)
    for stage in plan.stages:
        bytes_M[list(stage.members)] = _stage_activation_bytes(job, inventory, plan, stage)
    return bytes_M


def _stage_activation_bytes(
    job: JobSpec, inventory: Inventory, plan: Plan, stage: Stage
) -> npt.NDArray[np.float64]:
    """Of each worker of a stage, [W]."""
    samples_W = np.array([end - start for start, end in stage.samples], dtype=np.float64)
    tokens_W = samples_W * job.data.seq_len
    first, behind = job.model.recompute_layers or (0, 0)
    kept_W = np.zeros_like(tokens_W)
    again = dict[int, npt.NDArray[np.float64]]()
    for index in stage.blocks:
        block = inventory.blocks[index]
        rows_W = tokens_W
        if block.is_experts:
            rows_W = _routed_rows(job, plan, plan.slots[index], samples_W)
        needed_W = block.activation_bytes_per_token * rows_W
        if first <= block.layer < behind:
            again[block.layer] = again.get(block.layer, 0.0) + needed_W
        else:
            kept_W += needed_W
    input_W = tokens_W * (len(again) * job.model.hidden_size * compute_bytes(job))
    most_W = np.max([*again.values(), np.zeros_like(tokens_W)], axis=0)
    found_W: npt.NDArray[np.float64] = (
        waves_in_flight(stage.timetable) * (kept_W + input_W) + most_W
    )
    return found_W


def _routed_rows(
    job: JobSpec,
    plan: Plan,
    slots: tuple[tuple[int, ...], ...],
    samples_W: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Rows per wave that each worker's slots of one layer compute under even load, [W]."""
    per_token = job.data.seq_len * job.model.moe.top_k
    slots_W = slot_counts(slots)
    holders = int(slots_W.sum())
    all_hold_all_W = holders == len(slots) * slots_W  # tokens stay
    routed_W = plan.wave_samples * per_token * slots_W / holders
    rows_W: npt.NDArray[np.float64] = np.where(all_hold_all_W, samples_W * per_token, routed_W)
    return rows_W

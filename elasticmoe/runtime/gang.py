"""One generation as one member lives it: groups, memory, stage, data, state between steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from elasticmoe.checkpoint.read import Checkpoint
from elasticmoe.model.initialize import initial_unit
from elasticmoe.model.stage import StageModel
from elasticmoe.model.wave import Wave
from elasticmoe.plan.cost import step_flops
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.runtime.dispatch import StageExchange
from elasticmoe.runtime.exchange import StateExchange
from elasticmoe.runtime.groups import Groups, Over, Rendezvous
from elasticmoe.runtime.memory import COMPUTE_DTYPE, MASTER_DTYPE, Homes, Weights
from elasticmoe.runtime.peak import count_processors, measure_peak
from elasticmoe.runtime.pipeline import Pipeline
from elasticmoe.runtime.record import StepRecord
from elasticmoe.spec.job import JobSpec


class Samples(Protocol):
    """Where token ids come from."""

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Samples numbered [start, stop) as [samples, tokens]; a pure function of the numbers."""
        ...


@dataclass(slots=True)
class Progress:
    """Training state beside the units; equal on every member, moves only at the apply."""

    step: int
    """Committed steps."""
    updates: int
    """Committed steps that changed weights: all but those the guard skipped."""
    bias_LE: torch.Tensor
    """Selection bias, fp32 (fp64 in fp64)."""
    running_LE: NDArray[np.float64]
    """Running load: exponential average of each step's counts."""

    @classmethod
    def fresh(cls, job: JobSpec, inventory: Inventory, device: torch.device) -> "Progress":
        """Before the first step."""
        shape = (len(inventory.moe_blocks), job.model.moe.num_experts)
        dtype = MASTER_DTYPE[job.model.precision]
        return cls(0, 0, torch.zeros(shape, dtype=dtype, device=device), np.zeros(shape))

    @classmethod
    def restored(cls, checkpoint: Checkpoint, device: torch.device) -> "Progress":
        """As a checkpoint left it."""
        state = checkpoint.manifest.state
        return cls(
            step=int(state["step"]),
            updates=int(state["updates"]),
            bias_LE=checkpoint.read("bias").to(device),
            running_LE=checkpoint.read("running").double().numpy(),
        )


@dataclass(frozen=True, slots=True)
class Seat:
    """Where this member sits in a generation."""

    plan: Plan
    member: int
    rendezvous: Rendezvous


@dataclass
class Gang:
    """Everything a member needs to take steps in one generation."""

    job: JobSpec
    inventory: Inventory
    seat: Seat
    groups: Groups
    weights: Weights
    homes: Homes
    state: StateExchange
    tokens: StageExchange
    pipeline: Pipeline
    record: StepRecord
    reader: Samples
    progress: Progress
    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    """Time that forming took, by phase."""
    peak_flops: float = 0.0
    """Of the whole gang, FLOP/s; 0 until measured."""

    @property
    def is_first_member(self) -> bool:
        """Whether this member reports for the gang."""
        return self.seat.member == 0

    @cached_property
    def step_flops(self) -> float:
        """Useful floating-point operations of a step."""
        return step_flops(self.job, self.inventory)

    def measure(self) -> None:
        """Measure what this gang could do at most."""
        dtype = COMPUTE_DTYPE[self.job.model.precision]
        nodes = [member.node for member in self.seat.plan.members]
        processors = count_processors(nodes, self.job.workers.threads, self.device)
        self.peak_flops = measure_peak(dtype, self.device) * processors

    def waves(self) -> list[Wave]:
        """This member's view of the next step's waves."""
        plan, job = self.seat.plan, self.job
        stage = plan.stages[plan.stage_of_member[self.seat.member]]
        start, stop = stage.samples[stage.members.index(self.seat.member)]
        shape = (plan.num_waves, *self.progress.bias_LE.shape)
        counts = torch.zeros(shape, dtype=torch.int64, device=self.device)
        return [
            Wave(
                index=index,
                first_sample=start,
                num_samples=stop - start,
                wave_samples=plan.wave_samples,
                step_tokens=job.batch.global_samples * job.data.seq_len,
                num_waves=plan.num_waves,
                exchange=self.tokens,
                bias_LE=self.progress.bias_LE,
                earlier_counts_LE=counts,
            )
            for index in range(plan.num_waves)
        ]

    def ids_of(self, waves: list[Wave]) -> Callable[[int], torch.Tensor]:
        """Reads a wave's token ids of this member, int64 [S, tokens]: a function of the step."""
        first = self.progress.step * self.job.batch.global_samples

        def read(index: int) -> torch.Tensor:
            wave = waves[index]
            start = first + index * wave.wave_samples + wave.first_sample
            ids = self.reader.read(start, start + wave.num_samples)
            return torch.from_numpy(ids).to(self.device)

        return read

    def publish(self) -> None:
        """Send the primary homes' weights to their holders."""
        self.state.publish()


def form_gang(
    job: JobSpec,
    inventory: Inventory,
    seat: Seat,
    *,
    over: Over,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    reader: Samples,
    on_groups: Callable[[Groups], None] = lambda groups: None,
) -> Gang:
    """Meet the other members, load this member's homes and receive its compute weights.

    Raises:
        GangBrokenError: the generation ended before everybody was ready.
    """
    clock = Stopwatch()
    plan, member, precision = seat.plan, seat.member, job.model.precision
    index = plan.stage_of_member[member]
    groups = Groups(plan, member, seat.rendezvous, device, over)
    on_groups(groups)  # from here on they can be broken from another thread
    over.check()
    clock.mark("groups")
    slots = slots_of(plan, inventory, member)
    weights = Weights(inventory, plan.stages[index].blocks, slots, precision, device)
    homes = Homes(inventory, plan, member, precision, device)
    stage = build_stage(job, inventory, plan, member, device)
    weights.bind(stage)
    clock.mark("memory")
    progress = load_state(job, inventory, homes, checkpoint, device)
    clock.mark("state")
    gang = Gang(
        job=job,
        inventory=inventory,
        seat=seat,
        groups=groups,
        weights=weights,
        homes=homes,
        state=StateExchange(inventory, plan, member, weights, homes, groups.world),
        tokens=StageExchange(inventory, plan, index, groups.stage, need_counts=_needs_counts(job)),
        pipeline=Pipeline(
            plan,
            member,
            groups,
            stage,
            sample_shape=(job.data.seq_len, job.model.hidden_size),
            dtype=COMPUTE_DTYPE[precision],
            device=device,
        ),
        record=StepRecord(job, inventory, plan.digest, device),
        reader=reader,
        progress=progress,
        device=device,
        seconds=clock.seconds,
    )
    gang.publish()
    clock.mark("weights")
    return gang


def slots_of(plan: Plan, inventory: Inventory, member: int) -> dict[int, tuple[int, ...]]:
    """Per experts block of the member's stage, the experts in its slots."""
    stage = plan.stages[plan.stage_of_member[member]]
    rank = stage.members.index(member)
    return {b: plan.slots[b][rank] for b in stage.blocks if inventory.blocks[b].is_experts}


def build_stage(
    job: JobSpec, inventory: Inventory, plan: Plan, member: int, device: torch.device
) -> StageModel:
    """The layers that a member computes; its memory is bound later."""
    index = plan.stage_of_member[member]
    return StageModel(
        job,
        inventory,
        plan.stages[index].blocks,
        slots_of(plan, inventory, member),
        is_first=index == 0,
        is_last=index == len(plan.stages) - 1,
        dtype=COMPUTE_DTYPE[job.model.precision],
        device=device,
    )


def load_state(
    job: JobSpec,
    inventory: Inventory,
    homes: Homes,
    checkpoint: Checkpoint | None,
    device: torch.device,
) -> Progress:
    """Fill the homes from a checkpoint, or from the seed."""
    for unit in homes.units:
        if checkpoint is None:
            initial = initial_unit(job.model, inventory, unit, job.data.seed, homes.master.dtype)
            homes.fill(unit, initial, None, None)
        else:
            homes.fill(unit, *checkpoint.read_unit(unit.index))
    if checkpoint is None:
        return Progress.fresh(job, inventory, device)
    progress = Progress.restored(checkpoint, device)
    homes.stamps.fill_(progress.step)
    return progress


def _needs_counts(job: JobSpec) -> bool:
    balance = job.balance
    return balance.loss in ("micro_batch", "global_batch") or balance.capacity_factor is not None


class Stopwatch:
    """Splits the time since its making into named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def mark(self, phase: str) -> None:
        """End a phase here."""
        now = perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now

"""One generation as one member lives it: groups, memory, stage, data, state between steps."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from elasticmoe.checkpoint.read import Checkpoint
from elasticmoe.model.initialize import initial_unit
from elasticmoe.model.wave import Wave
from elasticmoe.plan.cost import step_flops
from elasticmoe.plan.moves import plan_moves
from elasticmoe.plan.snapshots import SnapshotGroup, plan_snapshots
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.runtime.dispatch import StageExchange
from elasticmoe.runtime.exchange import StateExchange
from elasticmoe.runtime.groups import Group, Groups, Over, Rendezvous
from elasticmoe.runtime.memory import COMPUTE_DTYPE, MASTER_DTYPE, Homes, Weights
from elasticmoe.runtime.moves import move_units
from elasticmoe.runtime.peak import count_processors, measure_peak
from elasticmoe.runtime.pipeline import Pipeline
from elasticmoe.runtime.progress import Progress
from elasticmoe.runtime.recall import Recall, recall
from elasticmoe.runtime.record import StepRecord
from elasticmoe.runtime.snapshots import forget_snapshots, take_snapshot
from elasticmoe.runtime.workplace import Workplace
from elasticmoe.spec.job import JobSpec


class Samples(Protocol):
    """Where token ids come from."""

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Samples numbered [start, stop) as [samples, tokens]; a pure function of the numbers."""
        ...

    @property
    def newest(self) -> tuple[int, int]:
        """What `read` was last asked for and has given: number of the first sample, and of the one
        behind the last."""
        ...


@dataclass(frozen=True, slots=True)
class Seat:
    """Where this member sits in a generation."""

    plan: Plan
    member: int
    rendezvous: Rendezvous


@dataclass
class Gang:
    """Everything a member needs to take steps in one generation."""

    workplace: Workplace
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
    is_tidy: bool = False
    """Whether this member has let go of units that it is no longer home of."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time that forming took, by phase."""

    @property
    def job(self) -> JobSpec:
        """What is trained."""
        return self.workplace.job

    @property
    def inventory(self) -> Inventory:
        """What its training state consists of."""
        return self.workplace.inventory

    @property
    def device(self) -> torch.device:
        """Where this member computes."""
        return self.workplace.device

    @property
    def is_first_member(self) -> bool:
        """Whether this member reports for the gang."""
        return self.seat.member == 0

    @cached_property
    def step_flops(self) -> float:
        """Useful floating-point operations of a step."""
        return step_flops(self.job, self.inventory)

    @property
    def peak_flops(self) -> float:
        """What the whole gang could do at most, FLOP/s; 0 until `measure` was called."""
        nodes = [member.node for member in self.seat.plan.members]
        processors = count_processors(nodes, self.job.workers.threads, self.device)
        return (self.workplace.processor_flops or 0.0) * processors

    def measure(self) -> None:
        """Measure what one processor could do at most, once per process."""
        if self.workplace.processor_flops is None:
            dtype = COMPUTE_DTYPE[self.job.model.precision]
            self.workplace.processor_flops = measure_peak(dtype, self.device)

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
            wave.samples = self.reader.newest  # the reader's word, not what the plan says
            return torch.from_numpy(ids).to(self.device)

        return read

    def rehome(self, plan: Plan) -> None:
        """Follow a plan that differs in its homes only, from the next step on.

        Called by all members between the same two steps: state is constant there, so units are
        copied to their new homes, which receive the prepared gradients from then on; only then
        do the old ones let go.

        Raises:
            GangBrokenError: the generation ended first; every copy that was whole still is.
        """
        member, world, step = self.seat.member, self.groups.world, self.progress.step
        moves = plan_moves(plan, self.inventory, dict(enumerate(self.seat.plan.homes)))
        memory = self.homes.state
        homes = Homes(memory, plan, member)
        move_units(moves, member, (memory,), world, step)
        self.homes, self.is_tidy = homes, False
        self.state = StateExchange(self.inventory, plan, member, self.weights, homes, world)
        self.record = StepRecord(self.job, self.inventory, plan, self.device)
        self.seat = replace(self.seat, plan=plan)
        self.__dict__.pop("snapshot_groups", None)  # of the plan before

    def take_snapshot(self) -> None:
        """Copy the committed state to host memory; called by all members after the same step.

        Raises:
            GangBrokenError: the generation ended first; the snapshot before is still there.
        """
        take_snapshot(
            self.homes,
            self.seat.plan.homes,
            self.snapshot_groups,
            self.seat.member,
            self.groups.world,
            self.progress,
        )

    @cached_property
    def snapshot_groups(self) -> tuple[SnapshotGroup, ...]:
        """Who keeps what of a snapshot, besides the primary homes."""
        parity = self.job.protection.snapshots == "parity"
        return plan_snapshots(self.seat.plan, self.inventory, parity=parity)


def form_gang(
    workplace: Workplace,
    seat: Seat,
    *,
    over: Over,
    start: Checkpoint | Recall | None = None,
    reader: Samples,
    on_groups: Callable[[Groups], None] = lambda groups: None,
) -> Gang:
    """Meet the other members, have this member's homes in place and receive its weights.

    Args:
        start: where the training state comes from; none: from the seed.

    Raises:
        GangBrokenError: the generation ended before everybody was ready.
    """
    clock = Stopwatch()
    job, inventory, device = workplace.job, workplace.inventory, workplace.device
    plan, member, precision = seat.plan, seat.member, job.model.precision
    groups = Groups(
        plan,
        member,
        seat.rendezvous,
        device,
        over,
        workplace.pulse,
        meanwhile=lambda: workplace.build(plan, member),
    )
    on_groups(groups)  # from here on they can be broken from another thread
    over.check()
    clock.mark("groups")
    weights, stage = workplace.build(plan, member)
    homes = Homes(workplace.state, plan, member)
    clock.mark("memory")
    progress = load_state(job, homes, start, member, groups.world)
    homes.vault.join(seat.rendezvous.generation)
    clock.mark("state")
    index = plan.stage_of_member[member]
    gang = Gang(
        workplace=workplace,
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
        record=StepRecord(job, inventory, plan, device),
        reader=reader,
        progress=progress,
        seconds=clock.seconds,
    )
    clock.mark("tables")
    gang.state.publish()
    gang.state.take_own()
    clock.mark("weights")
    return gang


def load_state(
    job: JobSpec, homes: Homes, start: Checkpoint | Recall | None, member: int, world: Group
) -> Progress:
    """Have all homes whole at the step to start from."""
    state, inventory = homes.state, homes.state.inventory
    fresh = Progress.fresh(job, inventory, state.device)
    if isinstance(start, Recall):
        return recall(job, start, member, homes, world, fresh.bias_LE)
    progress = fresh if start is None else Progress.restored(start, state.device)
    homes.vault.forget(np.arange(len(inventory.units)))  # of another history, if anything
    homes.vault.set_undo(-1)
    homes.vault.clear_progress()
    forget_snapshots(state)
    dtype = MASTER_DTYPE[job.model.precision]
    for unit in homes.units:
        if start is None:
            initial = initial_unit(job.model, inventory, unit, job.data.seed, dtype)
            state.fill(unit, 0, initial)
        else:
            state.fill(unit, progress.step, *start.read_unit(unit.index))
    progress.save(homes.vault)
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

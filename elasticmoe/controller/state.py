"""What the brain knows: frozen data, changed only by making another one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from elasticmoe.controller.decisions import Casualty, Decision, Drain, Form
from elasticmoe.controller.phases import FINAL_PHASES, Phase
from elasticmoe.messages.commands import Command, SealCheckpoint
from elasticmoe.messages.worker import CheckpointPart
from elasticmoe.plan.types import Inventory
from elasticmoe.spec.job import JobSpec

SETTLE_S: Final = 0.05
"""Parked with nobody dead: the death usually follows within 30 ms (the kernel closes a process's
sockets before its end is seen)."""
PARK_PATIENCE_S: Final = 5.0
"""A worker that has not parked by then is stuck and killed from outside. Breaking sockets takes
2 to 22 ms; a long forward pass on a busy machine takes seconds."""
SEAL_PATIENCE_S: Final = 5.0
"""A rollback waits that long for a checkpoint whose parts are all durable."""
START_PATIENCE_S: Final = 120.0
"""From the order to start a worker to its readiness; a cold import on a busy disk takes long."""
FORM_PATIENCE_S: Final = 600.0
"""From the order to form a generation to all members' agreement; loading a checkpoint included."""
DRAIN_PATIENCE_S: Final = 600.0
"""From the order to end the gang to the seal of its last checkpoint."""
MAX_BACKOFF_S: Final = 60.0
NUM_FAILURES_KEPT: Final = 16

Outcome = tuple["JobState", tuple[Command, ...]]
"""What a handler returns: the state after it, and what to do."""


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked for."""

    spec: JobSpec
    inventory: Inventory


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with an agent of this job."""

    name: str
    domain: str
    host: str
    capacity: int
    """Workers the job was granted there."""
    memory_bytes: int


class WorkerStatus(Enum):
    """What a living worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    """Ready for a generation: fresh, parked, or at the end of its gang."""
    BUSY = "busy"
    """In the current generation."""
    LEAVING = "leaving"
    """Failed, or about to be killed; keeps its place until its death is reported."""


LIVING: Final = (WorkerStatus.STARTING, WorkerStatus.IDLE, WorkerStatus.BUSY)
"""Workers that the next generation can count on."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process that is not known to be dead."""

    number: int
    node: str
    status: WorkerStatus
    since_s: float
    """Start of this status."""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A sealed checkpoint."""

    step: int
    uri: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker's own error, to tell whether the next one is the same."""

    episode: int
    step: int
    code: str


@dataclass(frozen=True, slots=True)
class FirstError:
    """The error that a series of recoveries began with."""

    text: str
    log: str


@dataclass(frozen=True, slots=True)
class Outage:
    """From the first sign of a fault, or a change of size, until the gang trains again."""

    since_s: float
    causes: tuple[str, ...] = ()
    redo_steps: int = 0


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts for the summary."""

    steps_reported: int = 0
    faults: int = 0
    recoveries: int = 0
    redone_steps: int = 0
    outage_s: float = 0.0
    workers_lost: int = 0
    nodes_lost: int = 0
    checkpoints_sealed: int = 0
    checkpoints_lost: int = 0
    ignored: int = 0
    """Events that made no sense where they came; tests allow none."""
    stale: int = 0
    """Messages of an earlier generation, or said twice."""


@dataclass(frozen=True, slots=True)
class JobState:
    """All that the brain knows about a job."""

    job: Job | None = None
    phase: Phase = Phase.NEW
    since_s: float = 0.0
    """Start of the phase, or of the term if that is later: patience starts anew."""
    now_s: float = 0.0
    submitted_s: float = 0.0
    term: int = 0
    outcome: str = ""
    """Reason of the end."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    capacity_changed_s: float = 0.0
    workers: Mapping[int, Worker] = field(default_factory=dict)
    """All that are not known to be dead, by number."""
    next_worker: int = 0
    failed_hires: int = 0
    """Workers that died before they ever joined, while the gang trained."""
    grow_after_s: float = 0.0

    generation: int = 0
    timeline: int = 0
    form: Form | None = None
    """How the current generation was formed."""
    formed: frozenset[int] = frozenset()
    """Members that have joined it."""
    ended: Mapping[int, int] = field(default_factory=dict)
    """Members that came to its end, and at which step."""

    committed_step: int = 0
    high_step: int = 0
    """Highest step ever committed; only beyond it is progress."""
    loss: float | None = None
    """Of the newest committed step."""

    next_command: int = 1
    instructed: int = 0
    """Newest command that took effect."""
    drain: Drain | None = None
    checkpoint_asked: bool = False
    stops: int = 0
    """How often somebody asked to stop."""
    stop_by: str = ""

    parts: Mapping[int, Mapping[int, CheckpointPart]] = field(default_factory=dict)
    """Checkpoints of this generation that are being written: step, then worker."""
    sealing: tuple[SealCheckpoint, ...] = ()
    unsaved_steps: Mapping[int, str] = field(default_factory=dict)
    """Steps of this generation whose checkpoint failed, and why."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Sealed ones, oldest first."""
    deleted: tuple[Checkpoint, ...] = ()
    """The last ones deleted: repeated after a restart."""
    ever_saved: bool = False

    casualties: tuple[Casualty, ...] = ()
    """Not yet answered."""
    fenced_s: float | None = None
    """When stuck workers were killed in this phase."""
    outage: Outage | None = None
    episode: int = 0
    """Recoveries so far, waits included."""
    attempts: int = 0
    """Recoveries since the last progress."""
    retry_at_s: float = 0.0
    first_error: FirstError | None = None
    failures: tuple[Failure, ...] = ()
    tally: Tally = Tally()

    decided: tuple[Decision, ...] = field(default=(), compare=False)
    """What the last `advance` decided; the loop writes it to the journal."""
    wake_at_s: float | None = field(default=None, compare=False)
    """The timer that runs; timers die with the controller that set them."""

    @property
    def spec(self) -> JobSpec:
        """What the user asked for."""
        assert self.job is not None, "no job was submitted"
        return self.job.spec

    @property
    def members(self) -> tuple[int, ...]:
        """Workers of the current generation; none before the first."""
        return self.form.workers if self.form else ()

    @property
    def newest(self) -> Checkpoint | None:
        """The newest sealed checkpoint."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.phase in FINAL_PHASES


def having(state: JobState, *statuses: WorkerStatus) -> tuple[Worker, ...]:
    """Workers with one of these statuses, by number."""
    return tuple(worker for worker in state.workers.values() if worker.status in statuses)


def with_status(state: JobState, numbers: tuple[int, ...], status: WorkerStatus) -> JobState:
    """Change what workers are doing; unknown ones are left out."""
    changed = {
        number: replace(state.workers[number], status=status, since_s=state.now_s)
        for number in numbers
        if number in state.workers and state.workers[number].status is not status
    }
    return replace(state, workers={**state.workers, **changed}) if changed else state


def counted(state: JobState, **more: float) -> JobState:
    """Add to the tally."""
    sums = {name: getattr(state.tally, name) + value for name, value in more.items()}
    return replace(state, tally=replace(state.tally, **sums))


def ignored(state: JobState) -> Outcome:
    """An event that makes no sense here: the journal keeps it, the tally counts it."""
    return counted(state, ignored=1), ()


def stale(state: JobState) -> Outcome:
    """A message of an earlier generation, or one that was said before."""
    return counted(state, stale=1), ()

"""What the brain knows: frozen data, changed only by making another one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import Casualty, Decision, Drain, Form, Protect
from elasticmoe.controller.number_map import NumberMap
from elasticmoe.controller.pace import Pace
from elasticmoe.controller.phases import FINAL_PHASES, Phase
from elasticmoe.controller.roster import LIVING as LIVING
from elasticmoe.controller.roster import Roster as Roster
from elasticmoe.controller.roster import Worker as Worker
from elasticmoe.controller.roster import WorkerStatus as WorkerStatus
from elasticmoe.messages.commands import Command, ForgetVaults, SealCheckpoint
from elasticmoe.messages.worker import CheckpointPart, Copies
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.spec.job import JobSpec, Rung

SETTLE_S: Final = 0.05
"""Parked with nobody dead: the death usually follows within 30 ms (the kernel closes a process's
sockets before its end is seen)."""
PARK_PATIENCE_S: Final = 5.0
"""A worker that has not parked by then is stuck and killed from outside; as long as no step was
measured, and while a generation forms. Else `Pace.patience_s`."""
STALLED_PATIENCE_S: Final = 0.1
"""At least, after a stall: by then everyone healthy waits in a collective, and breaking that takes
2 to 22 ms; or is slow, and between two looks at whether its generation is over (twice a layer, and
around every collective) no worker needs half of the slowest measured step."""
REAP_PATIENCE_S: Final = 60.0
"""From a kill to the report of the death by an agent that lives. Without what the dead leave, steps
would be given up; the kernel takes long on a machine that is out of breath."""
SEAL_PATIENCE_S: Final = 5.0
"""A rollback waits that long for a checkpoint whose parts are all durable."""
START_PATIENCE_S: Final = 120.0
"""From the order to start a worker to its readiness; a cold import on a busy disk takes long."""
FORM_PATIENCE_S: Final = 600.0
"""From the order to form a generation to all members' agreement; loading a checkpoint included."""
RECALL_PATIENCE_S: Final = 60.0
"""The same from memory: nothing is read from disk."""
UNMEASURED_BOUND_S: Final = 600.0
"""From one step to the next as long as nothing comparable was measured; else `Pace.bound_s`."""
UNHEARD_PATIENCE_S: Final = 5.0
"""A gang that was told to end may have done so while there was no controller: by then agents have
said again what nobody heard."""
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
    """That the job may use there; 0: not known."""
    num_devices: int = 0
    """Accelerators there."""


@dataclass(frozen=True, slots=True)
class KnownVault:
    """The memory of a worker, as it was reported last; it outlives the worker's process."""

    node: str
    copies: Copies | None
    """None: it was never used."""
    heir: int = -1
    """The worker that was told to take it over, and has not reported yet that it has."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A sealed checkpoint."""

    step: int
    uri: str


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Of the current generation."""

    asked: int | None = None
    """Number of the instruction that the gang was given and has not carried out yet."""
    taken_s: float | None = None
    """When the last one was taken."""
    cost_s: float = 0.0
    """What the last one cost; 0: none was measured, in any generation."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker's own error, to tell whether the next one is the same."""

    episode: int
    step: int
    code: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """A node or a worker that goes away soon."""

    deadline_s: float
    evidence: str


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A fault of a node's own, or of a worker's on it, while all others were well."""

    at_s: float
    node: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A node that is not trusted for a while."""

    until_s: float
    lasts_s: float
    """The next time is twice as long."""
    spared: bool
    """It goes on being used, because the job could not run without it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many workers nodes were found to have memory for."""

    most: Mapping[str, int]
    """Workers of a node; those that are not named may have as many as they have places."""
    nodes: frozenset[str]
    """That were used when it was found: on others all may be different."""


NO_LIMITS: Final = Limits({}, frozenset())


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
    """Committed steps that are given up and redone."""
    members: int = 0
    """Of the gang that trained before."""
    is_planned: bool = False
    """It began between two steps at which everybody agreed to pause."""
    in_step: bool = False
    """Whether it was in the middle of a step, and that has not been decided upon yet."""
    open_step: int = 0
    """The step that was open and is redone."""
    kept_step: int = 0
    """The step that was open and is committed."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts for the summary."""

    steps_reported: int = 0
    faults: int = 0
    recoveries: int = 0
    recoveries_retry: int = 0
    recoveries_replace: int = 0
    recoveries_failover: int = 0
    recoveries_snapshot: int = 0
    recoveries_checkpoint: int = 0
    steps_rolled_back: int = 0
    """Committed steps that were given up."""
    open_steps_redone: int = 0
    """Steps that were begun, not committed, and begun again."""
    outage_s: float = 0.0
    exposed_s: float = 0.0
    """Time in training with units that lacked a home."""
    workers_lost: int = 0
    nodes_lost: int = 0
    nodes_quarantined: int = 0
    regroupings: int = 0
    """Changes of the gang between two steps, which redo none."""
    checkpoints_sealed: int = 0
    checkpoints_lost: int = 0
    ignored: int = 0
    """Events that made no sense where they came; tests allow none."""
    stale: int = 0
    """Messages of an earlier generation, or said twice."""


@dataclass(frozen=True)
class JobState:
    """All that the brain knows about a job. It has no slots: a changed copy is then one copied
    dict (`changing.replace`), and every event makes several."""

    job: Job | None = None
    phase: Phase = Phase.NEW
    since_s: float = 0.0
    """Start of the phase; if that is later, of the term, or when the journal took no longer too
    long: patience starts anew."""
    now_s: float = 0.0
    submitted_s: float = 0.0
    term: int = 0
    outcome: str = ""
    """Reason of the end."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    leaving: Mapping[str, Leaving] = field(default_factory=dict)
    """Nodes that go away soon."""
    leaving_workers: NumberMap[Leaving] = field(default_factory=NumberMap)
    """Workers that were told to end, alone."""
    staying: tuple[int, ...] = ()
    """Members that must leave and that the gang was found to need."""
    stayed_s: float = 0.0
    """When that was found; new capacity may change it."""
    suspicions: tuple[Suspicion, ...] = ()
    """Oldest first; of the last while, and of nodes that are not quarantined."""
    quarantines: Mapping[str, Quarantined] = field(default_factory=dict)
    """By node, also those that are over."""
    capacity_changed_s: float = 0.0
    limits: Limits = NO_LIMITS
    """What nodes were found to have too little memory for."""
    workers: Roster = field(default_factory=Roster)
    """All that are not known to be dead, by number."""
    next_worker: int = 0
    failed_hires: int = 0
    """Workers that died before they ever joined, while the gang trained."""
    grow_after_s: float = 0.0

    generation: int = 0
    timeline: int = 0
    form: Form | None = None
    """How the current generation was formed."""
    plan: Plan | None = None
    """That of the current generation; homes may have been added since it was formed."""
    positions: NumberMap[int] = field(default_factory=NumberMap)
    """Members of the current generation by worker number."""
    lost_members: tuple[int, ...] = ()
    """Members whose process or node is gone."""
    formed: NumberMap[None] = field(default_factory=NumberMap)
    """Members that have joined it."""
    ended: NumberMap[int] = field(default_factory=NumberMap)
    """Members that came to its end, and at which step."""

    vaults: NumberMap[KnownVault] = field(default_factory=NumberMap)
    """By owner, dead or alive; what was reported since the gang trained last."""
    homed: NumberMap[tuple[int, ...]] = field(default_factory=NumberMap)
    """Units by position, of the current plan; looked up only when a gang breaks at its end."""
    memory_since: int = 0
    """Vaults that joined this generation or a later one hold the present history."""
    forgotten: tuple[ForgetVaults, ...] = ()
    """The last vaults that were given up: repeated after a restart."""
    rung: Rung | None = None
    """Of the recovery under way."""
    settled_step: int | None = None
    """Committed steps to go on from in memory; final until the gang trains."""
    settled_in: int = 0
    """The generation that was over when it was decided."""
    silent: NumberMap[str] = field(default_factory=NumberMap)
    """Workers whose heartbeat stopped, and the evidence."""
    protect: Protect | None = None
    """What the gang was told and has not done yet."""
    exposed_since_s: float | None = None
    """Since when units lack a home."""
    pace: Pace = field(default_factory=Pace)
    snapshots: Snapshots = Snapshots()

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

    parts: Mapping[int, NumberMap[CheckpointPart]] = field(default_factory=dict)
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
    outage: Outage | None = None
    episode: int = 0
    """Recoveries so far, waits included."""
    attempts: int = 0
    """Recoveries since the last progress."""
    retries: int = 0
    """Of those, how many of the last ones in a row were of the rung retry."""
    failed_starts: Mapping[str, int] = field(default_factory=dict)
    """Workers that died before they were ready, since the last progress, per node."""
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
    return state.workers.having(*statuses)


def with_status(state: JobState, numbers: tuple[int, ...], status: WorkerStatus) -> JobState:
    """Change what workers are doing; unknown ones are left out."""
    known = [state.workers[number] for number in numbers if number in state.workers]
    changed = [
        replace(worker, status=status, since_s=state.now_s)
        for worker in known
        if worker.status is not status
    ]
    return replace(state, workers=state.workers.with_workers(changed)) if changed else state


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

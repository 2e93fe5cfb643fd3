"""What the controller is told. Every event carries the time at which it was accepted (`at_s`,
seconds of one clock); nothing in the controller reads a clock. The clock is the wall clock, since
the times of one controller must make sense to the next.

Reports of workers travel unchanged inside `Reported`. What the brain counts on:

- every controller's first event is `TermBegan` (`JobSubmitted` stands before the first);
- an agent that was restarted is `NodeLost`, then `NodeUp`; a plain reconnect repeats `NodeUp`,
  which is harmless, as is every event that tells again what is known;
- a node's reports, and the deaths on it, that came up while no controller was there are kept by
  its agent and posted afterwards;
- reports of one worker arrive in the order it sent them; those of different workers, and its
  death, in any order.

`CheckpointSealed`, `CheckpointLost` and `CommandFailed` have fields with defaults at their end: a
sender that leaves them out is understood.
"""

from dataclasses import dataclass
from typing import Any

from elasticmoe.messages.worker import (
    CheckpointFailed,
    CheckpointPart,
    Copies,
    GangEnded,
    GangFormed,
    StepDone,
    WorkerFailed,
    WorkerLeaving,
    WorkerParked,
    WorkerReady,
)


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """The first event of every job."""

    at_s: float
    spec: dict[str, Any]
    """`JobSpec` as plain data."""
    inventory: dict[str, Any]
    """`Inventory` as plain data."""
    checkpoints: list[dict[str, Any]]
    """Verified checkpoints found in the job's directory: {step, uri}, oldest first."""


@dataclass(frozen=True, slots=True)
class TermBegan:
    """A controller took over; everything it had started is unknown until reported again."""

    at_s: float
    term: int
    version: str


@dataclass(frozen=True, slots=True)
class JournalResumed:
    """The journal took long: what was said lately may not have been heard yet, and what was ordered
    went out late. Patience begins anew."""

    at_s: float
    since_s: float
    """When it begins: whoever was told to say it again has done so by then."""


@dataclass(frozen=True, slots=True)
class NodeUp:
    """An agent is ready on a node."""

    at_s: float
    node: str
    domain: str
    host: str
    capacity: int
    """Workers the job was granted on this node."""
    memory_bytes: int
    """That the job may use there; 0: not known."""
    num_devices: int = 0
    """Accelerators; without any, workers compute in the node's own memory."""


@dataclass(frozen=True, slots=True)
class NodeLost:
    """An agent does not answer any more; its workers end with it."""

    at_s: float
    node: str
    evidence: str


@dataclass(frozen=True, slots=True)
class NodeLeaving:
    """A node goes away soon and lives until then: a preemption notice, or somebody drains it."""

    at_s: float
    node: str
    deadline_s: float
    """From then on it may be gone; on the same clock as `at_s`. Whoever does not know the
    controller's clock counts both from 0."""
    evidence: str


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker's process ended; the agent has reaped it."""

    at_s: float
    node: str
    worker: int
    evidence: str
    """`killed by signal 9`, `exit status 1`."""
    log: str
    """Where its output is."""
    copies: Copies | None = None
    """What its vault holds, read after it was reaped; the node's agent keeps it."""


@dataclass(frozen=True, slots=True)
class WorkerSilent:
    """A living worker's heartbeat has stopped: it was stopped, or hangs with the interpreter
    locked. Its agent has told its gang that the generation is over; it has not been killed."""

    at_s: float
    node: str
    worker: int
    evidence: str
    """`no heartbeat for 0.31 s`."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A worker said something."""

    at_s: float
    node: str
    report: (
        WorkerReady
        | GangFormed
        | StepDone
        | WorkerParked
        | WorkerLeaving
        | WorkerFailed
        | CheckpointPart
        | CheckpointFailed
        | GangEnded
    )


@dataclass(frozen=True, slots=True)
class CheckpointSealed:
    """The manifest of a checkpoint is durable: the checkpoint exists."""

    at_s: float
    step: int
    uri: str
    bytes: int
    generation: int = 0
    """That of the `SealCheckpoint`; 0: the only one of this step that is being sealed."""


@dataclass(frozen=True, slots=True)
class CheckpointLost:
    """A checkpoint could not be written or does not verify; training goes on."""

    at_s: float
    step: int
    reason: str
    generation: int = 0
    """As in `CheckpointSealed`."""


@dataclass(frozen=True, slots=True)
class CommandFailed:
    """Something the controller asked for could not be done (a fork, a store, an agent call)."""

    at_s: float
    command: str
    """The command's class name."""
    reason: str
    generation: int = 0
    """Of the command; 0: it has none, or the newest."""
    node: str = ""
    workers: tuple[int, ...] = ()
    """The workers of a `StartWorkers`: none of them exists."""


@dataclass(frozen=True, slots=True)
class CheckpointAsked:
    """Somebody wants a checkpoint now."""

    at_s: float


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants the job to checkpoint and end; asked twice: to end without a checkpoint."""

    at_s: float
    by: str


@dataclass(frozen=True, slots=True)
class TimePassed:
    """A timer that a `WakeAt` asked for."""

    at_s: float


Event = (
    JobSubmitted
    | TermBegan
    | JournalResumed
    | NodeUp
    | NodeLost
    | NodeLeaving
    | WorkerDied
    | WorkerSilent
    | Reported
    | CheckpointSealed
    | CheckpointLost
    | CommandFailed
    | CheckpointAsked
    | StopAsked
    | TimePassed
)

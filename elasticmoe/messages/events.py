"""What the controller is told. Every event carries the time at which it was accepted (`at_s`,
seconds of one clock); nothing in the controller reads a clock.

Reports of workers travel unchanged inside `Reported`.
"""

from dataclasses import dataclass
from typing import Any

from elasticmoe.messages.worker import (
    CheckpointFailed,
    CheckpointPart,
    GangEnded,
    GangFormed,
    StepDone,
    WorkerFailed,
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
class NodeUp:
    """An agent is ready on a node."""

    at_s: float
    node: str
    domain: str
    host: str
    capacity: int
    """Workers the job was granted on this node."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class NodeLost:
    """An agent does not answer any more; its workers end with it."""

    at_s: float
    node: str
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


@dataclass(frozen=True, slots=True)
class CheckpointLost:
    """A checkpoint could not be written or does not verify; training goes on."""

    at_s: float
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class CommandFailed:
    """Something the controller asked for could not be done (a fork, a store, an agent call)."""

    at_s: float
    command: str
    reason: str


@dataclass(frozen=True, slots=True)
class CheckpointAsked:
    """Somebody wants a checkpoint now."""

    at_s: float


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants the job to checkpoint and end."""

    at_s: float
    by: str


@dataclass(frozen=True, slots=True)
class TimePassed:
    """A timer that a `WakeAt` asked for."""

    at_s: float


Event = (
    JobSubmitted
    | TermBegan
    | NodeUp
    | NodeLost
    | WorkerDied
    | Reported
    | CheckpointSealed
    | CheckpointLost
    | CommandFailed
    | CheckpointAsked
    | StopAsked
    | TimePassed
)

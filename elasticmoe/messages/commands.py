"""What the controller asks for. Doing a command twice is harmless; its outcome is an event.

After a restart the controller repeats what it had begun: agents start a worker number once, and
members take a generation's `FormGang` and an instruction's number once. A command whose generation
is older than the newest one seen is dropped.
"""

from dataclasses import dataclass
from typing import Any

from elasticmoe.messages.worker import FromMemory


@dataclass(frozen=True, slots=True)
class StartWorkers:
    """Fork workers on a node; each reports `WorkerReady`."""

    node: str
    workers: tuple[int, ...]
    """Numbers never used before in this job."""


@dataclass(frozen=True, slots=True)
class KillWorkers:
    """End worker processes at once; each is reported as `WorkerDied`."""

    node: str
    workers: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class FormGeneration:
    """Open a rendezvous store for the generation and send every member its `FormGang`."""

    generation: int
    plan: dict[str, Any]
    """`Plan.to_json()`; names the members' workers and nodes."""
    store_node: str
    checkpoint: str | None
    """URI to start from; none: from the seed."""
    first_command: int
    reason: str
    memory: FromMemory | None = None
    """Not none: start from the vaults, `checkpoint` is none."""


@dataclass(frozen=True, slots=True)
class ForgetVaults:
    """All members have joined a generation: the vaults of the dead are of no use any more."""

    node: str
    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BreakGeneration:
    """Tell every worker that is left to leave the generation; each reports `WorkerParked`, also
    one that had not joined yet. Who stays silent is killed."""

    generation: int
    reason: str
    peer_died: bool = False
    """See `BreakGang`."""


@dataclass(frozen=True, slots=True)
class InstructGang:
    """Send a numbered command to every member."""

    generation: int
    number: int
    action: str
    """`checkpoint`, `stop`, `pause`, `protect` or `snapshot`, as in `messages.worker.Instruct`."""
    plan: dict[str, Any] | None = None
    """For `protect`: the plan to follow."""


@dataclass(frozen=True, slots=True)
class SealCheckpoint:
    """Write the manifest of a checkpoint whose parts are all durable; leads to
    `CheckpointSealed` or `CheckpointLost`."""

    step: int
    generation: int
    files: tuple[dict[str, Any], ...]
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeleteCheckpoint:
    """Remove a checkpoint that `checkpoint.keep` no longer covers: manifest first."""

    step: int
    uri: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Post `TimePassed` at this time."""

    at_s: float


@dataclass(frozen=True, slots=True)
class EndJob:
    """The job is over: end all workers and agents, write the outcome."""

    outcome: str
    """`done`, `stopped`, `failed`."""
    reason: str


Command = (
    StartWorkers
    | KillWorkers
    | FormGeneration
    | ForgetVaults
    | BreakGeneration
    | InstructGang
    | SealCheckpoint
    | DeleteCheckpoint
    | WakeAt
    | EndJob
)

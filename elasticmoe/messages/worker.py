"""What a node agent and its workers say to each other: one JSON object per line.

Commands go to the worker, reports come back. Every message of a gang carries its generation;
a receiver drops what is older than what it knows.
"""

from dataclasses import dataclass
from typing import Any, Final

NOTICE_S: Final = 30.0
"""From SIGTERM to SIGKILL, if nobody says otherwise: what Kubernetes and Slurm grant unasked."""
MOST_SKIPPED: Final = 10
"""Steps in a row that a gang skips before it parks. A bad batch is over after one, and the running
loss that spikes are judged by looks back about as far: what lasts longer is not a spike."""
STEPS_SKIPPED: Final = "steps_skipped"
"""`WorkerParked.code` of a gang whose last `MOST_SKIPPED` steps changed no weights."""


@dataclass(frozen=True, slots=True)
class SnapshotCopies:
    """What one worker's vault holds of one snapshot."""

    step: int
    """Committed steps when it was taken."""
    whole: tuple[int, ...]
    """Units of which there is a whole copy."""
    parities: tuple[tuple[int, ...], ...] = ()
    """Groups of units of which only the XOR of all copies is here."""


@dataclass(frozen=True, slots=True)
class Copies:
    """What one worker's vault holds of the training state; it outlives the worker's process.

    A copy of a unit is *whole* at a step, or *torn* by a crash in the middle of its update. A whole
    copy at `prepared - 1` has all it needs to be rolled forward to `prepared`.
    """

    worker: int
    """Whose vault."""
    generation: int
    """Newest generation that it joined."""
    step: int
    """Committed steps of its progress (bias, load, counters); -1: it has none."""
    prepared: int
    """The step that all its whole units one step behind are prepared for; 0: none."""
    voted: int
    """Newest step whose vote it passed; 0: none."""
    whole: tuple[tuple[int, tuple[int, ...]], ...]
    """(step, indices of the units that are whole at it), ascending."""
    torn: tuple[int, ...] = ()
    """Units that are neither old nor new."""
    phase: str = ""
    """What the worker did last: compute, reduce, agree, prepare, vote, apply."""
    collective: int = 0
    """Number of the collective that it entered last in this generation."""
    snapshots: tuple[SnapshotCopies, ...] = ()
    """Oldest first; at most two."""


@dataclass(frozen=True, slots=True)
class FromMemory:
    """Go on from what is in the workers' vaults, instead of a checkpoint.

    Every member first rolls its prepared copies forward to `step`, or forgets that they were
    prepared; then the units it lacks come from other members.
    """

    step: int
    """Committed steps to go on from. The decision is final for this generation."""
    moves: tuple[tuple[int, int, int], ...]
    """(unit, member that has a copy, member that becomes a home and has none)."""
    progress_from: int
    """Member that has bias, load and counters of that step, or can roll them forward."""
    heirs: tuple[tuple[int, int], ...] = ()
    """(worker, dead worker on its node whose vault it takes over as its own)."""
    adopted: tuple[tuple[int, int], ...] = ()
    """(worker, dead worker on its node whose vault it reads too)."""
    is_snapshot: bool = False
    """Whether `step` is that of a snapshot, which all members first put in the place of what is
    newer in their memory."""
    rebuilt: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    """(unit, member that makes it from a parity, other units of the parity): before anything else
    moves."""
    gathered: tuple[tuple[int, int, int], ...] = ()
    """As `moves`: the copies that units are rebuilt from, to the members that rebuild them."""


@dataclass(frozen=True, slots=True)
class FormGang:
    """Join a new generation, load the state, train. Ends whatever generation went before."""

    generation: int
    member: int
    """This worker's position in the plan's members."""
    plan: dict[str, Any]
    """`Plan.to_json()`."""
    store_host: str
    store_port: int
    """The generation's rendezvous store, kept by an agent."""
    checkpoint: str | None
    """URI of the checkpoint directory to start from; none: initialise from the seed."""
    first_command: int = 1
    """Numbered commands below this one are settled."""
    memory: FromMemory | None = None
    """Not none: `checkpoint` is, and the state is in the vaults."""
    vault: str = ""
    """File of the vault that becomes this worker's own from now on; empty: it keeps what it has.
    The agent fills this in."""
    adopted: tuple[tuple[int, str], ...] = ()
    """Further vaults to read from: (dead worker, file). The agent fills this in."""


@dataclass(frozen=True, slots=True)
class BreakGang:
    """End a generation at once: break its groups, park, report `WorkerParked`."""

    generation: int
    peer_died: bool = False
    """Somebody died, so nobody else is suspected: who is computing reports before it has left."""


@dataclass(frozen=True, slots=True)
class Instruct:
    """A numbered command; takes effect at the apply of the first step at which everyone's
    record holds its number."""

    generation: int
    number: int
    action: str
    """`checkpoint`: write one at this step; `stop`: write one, then end the gang; `pause`: end the
    gang, everything stays in memory; `protect`: follow `plan` from the next step on; `snapshot`:
    take one."""
    plan: dict[str, Any] | None = None
    """For `protect`: `Plan.to_json()`, the gang's plan with other homes."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The process is up and has read the job's spec."""

    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class GangFormed:
    """This member has groups, state and data, and begins `step`."""

    generation: int
    worker: int
    step: int
    seconds: dict[str, float]
    """Time per phase: groups, state, ..."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step was committed; sent by member 0 only."""

    generation: int
    step: int
    """The committed step's number, counted from 1."""
    seconds: float
    loss: float
    metrics: dict[str, Any]
    """`StepMetrics` as plain data: mtp loss, gradient norm, learning rate, per-layer balance..."""
    samples: tuple[int, int]
    """What the members' readers read: number of the first sample, and of the one behind the last;
    equal if some were left out or read twice."""
    instructed: int
    """Number of the newest command that took effect."""
    snapshot_s: float = 0.0
    """Time that a snapshot between this step and the one before took; 0: there was none."""


@dataclass(frozen=True, slots=True)
class WorkerParked:
    """This member left the step loop: a collective failed, or it was told to."""

    generation: int
    worker: int
    committed_step: int
    reason: str
    copies: Copies | None = None
    """What is in its vault now; none if it has none yet."""
    code: str = ""
    """Of what it found: `corrupted`, `STEPS_SKIPPED`; empty: it lost a peer, or was told."""
    adopted: tuple[Copies, ...] = ()
    """If it found something corrupted: the vaults of dead workers that it was reading."""


@dataclass(frozen=True, slots=True)
class WorkerLeaving:
    """This process was told to end soon, and trains on until somebody takes its place."""

    worker: int
    seconds: float
    """For how long it may count on being left alone."""
    evidence: str
    """`SIGTERM`."""


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """Training raised something no recovery cures; the worker ends."""

    generation: int
    worker: int
    step: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckpointPart:
    """This member's file of a checkpoint is durable."""

    generation: int
    worker: int
    step: int
    files: list[dict[str, Any]]
    """Manifest rows, as `checkpoint.manifest` defines them."""
    state: dict[str, Any]
    """Step, learning state and data position as plain data; equal on all members."""


@dataclass(frozen=True, slots=True)
class CheckpointFailed:
    """This member could not write its file; training goes on."""

    generation: int
    worker: int
    step: int
    message: str


@dataclass(frozen=True, slots=True)
class GangEnded:
    """All steps are done, or a stop took effect; the worker waits for what comes next."""

    generation: int
    worker: int
    step: int
    snapshots: tuple[SnapshotCopies, ...] = ()
    """As in `Copies`; all else that is in its vault, the step and the plan say."""
    instructed: int = 0
    """As in `StepDone`: tells which plan; the reports of the last steps may be lost."""


WorkerCommand = FormGang | BreakGang | Instruct
WorkerReport = (
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

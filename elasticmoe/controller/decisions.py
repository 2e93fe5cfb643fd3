"""What the brain decides, as frozen data with its reason.

A decision is written to the journal before it takes effect and replayed from there, never
recomputed: a newer version of the code cannot rewrite history. `Decision` lists them all.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from elasticmoe.messages.worker import FromMemory
from elasticmoe.spec.job import Rung


@dataclass(frozen=True, slots=True)
class Casualty:
    """One sign that a generation is over, or one worker that was lost."""

    kind: Literal["died", "failed", "node_lost", "parked", "silent", "stuck", "stalled", "command"]
    worker: int
    """-1 where no worker is concerned."""
    node: str
    text: str
    """What was seen: `killed by signal 9`, an error's message."""
    log: str = ""
    """Where the worker's output is."""
    code: str = ""
    """Of the error, for `failed`; of what it found, for `parked`, unless it just lost a peer."""
    step: int = 0
    """At which it failed, for `failed`; the last one, for steps that were skipped."""


@dataclass(frozen=True, slots=True)
class Gather:
    """Have this many workers ready; start those that are missing."""

    at_s: float
    workers: int
    hires: tuple[tuple[int, str], ...]
    """Numbers of the workers to start, and their nodes."""
    reason: str
    limits: tuple[tuple[str, int], ...] = ()
    """Nodes, and the most workers there that they were found to have memory for."""


@dataclass(frozen=True, slots=True)
class Form:
    """Open a generation."""

    at_s: float
    generation: int
    timeline: int
    plan: dict[str, Any]
    """`Plan.to_json()` as it comes back from JSON text."""
    workers: tuple[int, ...]
    """The plan's members, by their positions."""
    store_node: str
    step: int
    """Committed steps that the generation starts from."""
    checkpoint: str | None
    """Where they are; none: from the seed."""
    first_command: int
    reason: str
    memory: FromMemory | None = None
    """Not none: start from what is in the workers' vaults; `checkpoint` is none."""
    newcomers: tuple[int, ...] = ()
    """Members that were not in the generation before."""
    limits: tuple[tuple[str, int], ...] = ()
    """Nodes, and the most workers there that they were found to have memory for."""
    unprotected: bool = False
    """Units lack homes, and the nodes have no memory for more."""


@dataclass(frozen=True, slots=True)
class Train:
    """All members have joined: the generation trains."""

    at_s: float
    generation: int
    reason: str
    """After an outage: what happened, what it cost and what was done, in one sentence."""


@dataclass(frozen=True, slots=True)
class TakeCheckpoint:
    """Tell the gang to write a checkpoint out of turn."""

    at_s: float
    generation: int
    number: int
    """Of the instruction."""
    reason: str


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Tell the gang to copy its state to host memory."""

    at_s: float
    generation: int
    number: int
    """Of the instruction."""
    reason: str


@dataclass(frozen=True, slots=True)
class Protect:
    """Give units that lack homes new ones while the gang trains on."""

    at_s: float
    generation: int
    number: int
    """Of the instruction; once it has taken effect `plan` is the generation's plan."""
    plan: dict[str, Any]
    """`Plan.to_json()` as it comes back from JSON text."""
    units: int
    """How many units get a home."""
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Let the gang come to its end between two steps: with a last checkpoint, or with everything
    in memory (to `grow`, or to `leave` workers behind) and another gang right after it."""

    at_s: float
    generation: int
    number: int
    """Of the instruction; -1: none is needed, all steps are done."""
    purpose: Literal["finish", "stop", "grow", "leave"]
    reason: str


@dataclass(frozen=True, slots=True)
class Regroup:
    """The gang has ended at an agreed step: form another one from there."""

    at_s: float
    reason: str
    rung: Rung = "checkpoint"
    """How: `replace` who leaves in place, `failover` to whoever is ready; both from memory."""
    step: int = 0
    """Committed steps; from memory only."""
    leavers: tuple[int, ...] = ()
    """Members that are replaced in place, and end now."""


@dataclass(frozen=True, slots=True)
class Stay:
    """Members must leave, and the gang cannot do without them: it trains on, and is ready."""

    at_s: float
    workers: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A node had faults of its own again and again: it gets no workers for a while."""

    at_s: float
    node: str
    until_s: float
    spared: bool
    """The job could not run without it: nothing changes."""
    reason: str


@dataclass(frozen=True, slots=True)
class Break:
    """The generation is over: everyone who is left parks."""

    at_s: float
    generation: int
    evidence: tuple[Casualty, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Fence:
    """Kill workers that do not do what they were told."""

    at_s: float
    workers: tuple[int, ...]
    reason: str
    text: str = ""
    """What is said of each of them as a cause: `did not leave its generation in time`."""


@dataclass(frozen=True, slots=True)
class Recover:
    """Go on after a fault, by the first rung of the ladder that applies.

    From memory (every rung above *checkpoint*) `step` is final for the outage: it is not decided
    again until the gang trains, unless a later fault leaves no copies of it.
    """

    at_s: float
    rung: Rung
    step: int
    """Committed steps that are kept."""
    redo_steps: int
    """Committed steps that must be redone."""
    refused: tuple[str, ...]
    """Checkpoints that turned out not to verify; they are not used again."""
    attempt: int
    """Recoveries since the last new committed step, this one included."""
    retry_at_s: float
    """Back-off: nothing is started before."""
    evidence: tuple[Casualty, ...]
    reason: str
    open_step: int = 0
    """The step that was open and is dropped; 0: none was, or it is committed by this decision."""
    settled: str = ""
    """From memory: why `step` is the committed one."""
    passed_over: tuple[str, ...] = ()
    """Cheaper rungs, and why each does not apply."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Too few workers, or too little memory: wait for nodes. The last rung."""

    at_s: float
    step: int
    redo_steps: int
    refused: tuple[str, ...]
    evidence: tuple[Casualty, ...]
    reason: str
    from_memory: bool = False
    """Whether `step` is in the vaults that are left; else it is the newest checkpoint's."""
    open_step: int = 0
    """As in `Recover`."""
    limits: tuple[tuple[str, int], ...] = ()
    """Nodes, and the most workers there that they were found to have memory for."""


@dataclass(frozen=True, slots=True)
class Finish:
    """All steps are done and saved."""

    at_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody asked the job to end early, and it has."""

    at_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job cannot be helped."""

    at_s: float
    code: str
    """Stable name of the cause: `crash_loop`, `same_failure_twice`, or an error's `code`."""
    log: str
    """Where the output of the worker that failed first is."""
    reason: str


Decision = (
    Gather
    | Form
    | Train
    | TakeCheckpoint
    | TakeSnapshot
    | Protect
    | Drain
    | Regroup
    | Stay
    | Quarantine
    | Break
    | Fence
    | Recover
    | Wait
    | Finish
    | Stop
    | GiveUp
)


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Nothing to decide yet; time alone will change that."""

    at_s: float


NO_NUMBER: Final = -1
"""`Drain.number` where no instruction is sent."""

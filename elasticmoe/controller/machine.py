"""Every decision starts here: `advance(state, event) -> (state, commands)`.

An event is first *absorbed*: facts change, nothing is judged. Then the phase's `decide` function
is asked until it has nothing more to decide; each decision is *applied*, and the table in `phases`
moves the phase. On replay recorded decisions are applied instead of asking.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from elasticmoe.controller import (
    capacity,
    casualties,
    checkpoints,
    ending,
    faults,
    forming,
    gathering,
    leaving,
    protecting,
    quarantine,
    snapshots,
    training,
)
from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import (
    Break,
    Casualty,
    Decision,
    Drain,
    Fence,
    Finish,
    Form,
    Gather,
    GiveUp,
    LookAgain,
    Protect,
    Quarantine,
    Recover,
    Regroup,
    Stay,
    Stop,
    TakeCheckpoint,
    TakeSnapshot,
    Train,
    Wait,
)
from elasticmoe.controller.phases import Phase, next_phase
from elasticmoe.controller.record import Entry, Progress, Record, as_progress, turns
from elasticmoe.controller.state import (
    Checkpoint,
    Job,
    JobState,
    Outcome,
    WorkerStatus,
    having,
    ignored,
    stale,
)
from elasticmoe.controller.wording import command_failed
from elasticmoe.messages.codec import build
from elasticmoe.messages.commands import BreakGeneration, Command, WakeAt
from elasticmoe.messages.events import (
    CheckpointAsked,
    CheckpointLost,
    CheckpointSealed,
    CommandFailed,
    Event,
    JobSubmitted,
    JournalResumed,
    NodeLeaving,
    NodeLost,
    NodeUp,
    Reported,
    StopAsked,
    TermBegan,
    TimePassed,
    WorkerDied,
    WorkerSilent,
)
from elasticmoe.messages.worker import (
    CheckpointFailed,
    CheckpointPart,
    GangEnded,
    GangFormed,
    StepDone,
    WorkerFailed,
    WorkerLeaving,
    WorkerParked,
    WorkerReady,
)
from elasticmoe.plan.types import Inventory
from elasticmoe.spec.job import JobSpec

MAX_DECISIONS: Final = 32
"""Upon one event; more would be a circle."""

DECIDE: Final[Mapping[Phase, Callable[[JobState], Decision | LookAgain | None]]] = {
    Phase.WAITING: capacity.decide_waiting,
    Phase.GATHERING: gathering.decide_gathering,
    Phase.FORMING: forming.decide_forming,
    Phase.TRAINING: training.decide_training,
    Phase.DRAINING: training.decide_draining,
    Phase.BREAKING: faults.decide_breaking,
}

APPLY: Final[Mapping[type, Callable[[JobState, Any], Outcome]]] = {
    Gather: capacity.apply_gather,
    Form: forming.apply_form,
    Train: forming.apply_train,
    TakeCheckpoint: training.apply_take_checkpoint,
    TakeSnapshot: snapshots.apply_take_snapshot,
    Protect: protecting.apply_protect,
    Drain: training.apply_drain,
    Regroup: leaving.apply_regroup,
    Stay: leaving.apply_stay,
    Quarantine: quarantine.apply_quarantine,
    Break: faults.apply_break,
    Fence: capacity.apply_fence,
    Recover: faults.apply_recover,
    Wait: faults.apply_wait,
    Finish: ending.apply_end,
    Stop: ending.apply_end,
    GiveUp: ending.apply_end,
}


def advance(
    state: JobState, event: Event, now_s: float = 0.0
) -> tuple[JobState, tuple[Command, ...]]:
    """Take in an event and decide what to do.

    Never raises for an event that makes no sense here: the journal keeps it, `tally` counts it,
    nothing else changes.

    Args:
        state: what is known so far; `JobState()` before the first event.
        now_s: when the event is taken in: behind a backlog that is later than it was accepted.
            Patience is judged by the time of acceptance, because what was said later has not been
            heard yet, and begins with the decision: our own delay is nobody's silence.

    Returns:
        What is known then, with this call's decisions in `decided`, and what to do, in order.
    """
    steps_done = as_progress(event)
    state, commands = _absorb(state, steps_done or event)
    if steps_done is not None:  # progress is folded in the journal: nothing is decided upon it
        return _timed(state, commands, training.next_look(state))
    for _ in range(MAX_DECISIONS):
        decision = decide(state)
        if not isinstance(decision, Decision):
            return _timed(state, commands, decision)
        if now_s > decision.at_s:
            decision = replace(decision, at_s=now_s)
        state, more = apply(state, decision)
        commands += more
    raise AssertionError(f"decisions go in a circle: {state.decided}")


def glance(state: JobState, timer: TimePassed) -> tuple[JobState, tuple[Command, ...]] | None:
    """See whether a timer came to nothing, as most do that watch over the pace of steps.

    Returns:
        None if it matters: it must be written down and taken in with `advance`. Else the state,
        in which nothing has changed but the timer that runs, and the next timer.
    """
    looked, _ = _absorb(state, timer)
    look = decide(looked)
    if isinstance(look, Decision) or looked.pace != state.pace:
        return None
    kept, commands = _timed(looked, (), look)
    return replace(state, wake_at_s=kept.wake_at_s), commands


def decide(state: JobState) -> Decision | LookAgain | None:
    """Ask the phase what comes next: a decision, a time to look again, or nothing."""
    if state.phase not in DECIDE:
        return None
    return DECIDE[state.phase](state)


def apply(state: JobState, decision: Decision) -> Outcome:
    """Let a decision take effect, at its own time."""
    heard_s = state.now_s
    state = replace(state, now_s=max(heard_s, decision.at_s))
    state, commands = APPLY[type(decision)](state, decision)
    phase = next_phase(state.phase, type(decision))
    if phase is not state.phase:
        state = replace(state, phase=phase, since_s=decision.at_s)
    return replace(state, now_s=heard_s, decided=(*state.decided, decision)), commands


def replay(records: Iterable[Record]) -> JobState:
    """Rebuild the state from a journal: recorded decisions count, none is taken again."""
    state = JobState()
    for turn in turns(records):
        state, _ = _absorb(state, turn.entry)
        for decision in turn.decisions:
            state, _ = apply(state, decision)
    return state


def outstanding(state: JobState) -> tuple[Command, ...]:
    """What a restarted controller must ask for again; doing a command twice is harmless."""
    commands: list[Command] = [*capacity.starts(having(state, WorkerStatus.STARTING))]
    commands += capacity.kills(having(state, WorkerStatus.LEAVING), "it was to end")
    commands += checkpoints.repeated_commands(state)
    commands += state.forgotten
    commands += protecting.protect_commands(state)
    commands += snapshots.snapshot_commands(state)
    if state.phase is Phase.FORMING and state.form is not None:
        commands.append(forming.form_command(state.form))
    if state.phase is Phase.BREAKING:
        commands.append(BreakGeneration(state.generation, "the generation is over"))
    commands += training.drain_commands(state)
    if state.is_final:
        return ending.end_commands(state)
    return tuple(commands)


def _absorb(state: JobState, entry: Entry) -> Outcome:
    state = replace(state, now_s=max(state.now_s, entry.at_s), decided=())
    if state.is_final:
        return state, ()
    if isinstance(entry, JobSubmitted):
        return _submitted(state, entry)
    if state.phase is Phase.NEW:
        return ignored(state)
    return _absorb_known(state, entry)


def _absorb_known(state: JobState, entry: Entry) -> Outcome:
    match entry:
        case Progress():
            return training.progress(state, entry)
        case Reported():
            return _reported(state, entry)
        case TermBegan():
            state = _resumed(state, state.now_s)
            return replace(state, term=entry.term, wake_at_s=None), ()
        case JournalResumed():
            return _resumed(state, entry.since_s), ()
        case NodeUp():
            return capacity.node_up(state, entry)
        case NodeLost():
            return capacity.node_lost(state, entry)
        case NodeLeaving():
            return leaving.node_leaving(state, entry)
        case WorkerDied():
            return capacity.worker_died(state, entry)
        case WorkerSilent():
            return casualties.worker_silent(state, entry)
        case CheckpointSealed():
            return checkpoints.sealed(state, entry)
        case CheckpointLost():
            return checkpoints.lost(state, entry)
        case CommandFailed():
            return _command_failed(state, entry)
        case CheckpointAsked():
            return training.checkpoint_asked(state)
        case StopAsked():
            return ending.stop_asked(state, entry)
        case TimePassed():
            return training.time_passed(state)
    return ignored(state)


def _resumed(state: JobState, since_s: float) -> JobState:
    """Nobody listened for a while: all patience begins anew."""
    since_s = max(since_s, state.since_s)
    return replace(state, since_s=since_s, pace=state.pace.resumed(since_s))


def _reported(state: JobState, event: Reported) -> Outcome:
    match event.report:
        case WorkerReady() as report:
            return capacity.worker_ready(state, report)
        case GangFormed() as report:
            return forming.gang_formed(state, report)
        case WorkerParked() as report:
            return casualties.worker_parked(state, report)
        case WorkerFailed() as report:
            return casualties.worker_failed(state, report, event.node)
        case WorkerLeaving() as report:
            return leaving.worker_leaving(state, report)
        case CheckpointPart() as report:
            return checkpoints.part(state, report)
        case CheckpointFailed() as report:
            return checkpoints.part_failed(state, report)
        case GangEnded() as report:
            return training.gang_ended(state, report)
        case StepDone():
            raise AssertionError("a committed step is taken in as progress")


def _submitted(state: JobState, event: JobSubmitted) -> Outcome:
    if state.phase is not Phase.NEW:
        return ignored(state)
    spec = JobSpec.model_validate_json(json.dumps(event.spec))
    found = tuple(Checkpoint(one["step"], one["uri"]) for one in event.checkpoints)
    start = found[-1].step if found else 0
    state = replace(
        state,
        job=Job(spec, build(Inventory, event.inventory)),
        phase=next_phase(state.phase, JobSubmitted),
        since_s=event.at_s,
        submitted_s=event.at_s,
        capacity_changed_s=event.at_s,
        checkpoints=found,
        ever_saved=bool(found),
        committed_step=start,
        high_step=start,
    )
    return state, ()


def _command_failed(state: JobState, event: CommandFailed) -> Outcome:
    """What failed by itself is harmless where patience ends the wait anyway."""
    match event.command:
        case "StartWorkers":
            return capacity.hire_failed(state, event.workers, event.node, event.reason)
        case "SealCheckpoint":
            return checkpoints.seal_failed(state, event.reason)
        case "FormGeneration" | "InstructGang":
            current = event.generation in (0, state.generation)
            if not current or state.phase not in casualties.GANG_PHASES:
                return stale(state)
            sign = Casualty("command", -1, "", command_failed(event) or event.reason)
            return casualties.add_casualties(state, (sign,)), ()
    return state, ()


def _timed(
    state: JobState, commands: tuple[Command, ...], look: LookAgain | None
) -> tuple[JobState, tuple[Command, ...]]:
    """Ask for a timer, unless one that is early enough runs already."""
    running_s = state.wake_at_s
    if running_s is not None and running_s <= state.now_s:
        running_s = None
    if look is not None and (running_s is None or look.at_s < running_s):
        running_s = look.at_s
        commands = (*commands, WakeAt(look.at_s))
    if running_s != state.wake_at_s:
        state = replace(state, wake_at_s=running_s)
    return state, commands

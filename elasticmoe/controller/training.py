"""Reports of a gang that trains, and how it comes to its end."""

from dataclasses import replace

from elasticmoe.controller.capacity import decide_gather, decide_starting, room
from elasticmoe.controller.decisions import (
    NO_NUMBER,
    Break,
    Casualty,
    Drain,
    Fence,
    Finish,
    Gather,
    GiveUp,
    LookAgain,
    Regroup,
    Stop,
    TakeCheckpoint,
)
from elasticmoe.controller.ending import decide_finish, decide_stop
from elasticmoe.controller.faults import decide_break
from elasticmoe.controller.record import Progress
from elasticmoe.controller.state import (
    DRAIN_PATIENCE_S,
    LIVING,
    JobState,
    Outage,
    Outcome,
    WorkerStatus,
    counted,
    having,
    ignored,
    stale,
    with_status,
)
from elasticmoe.controller.wording import described, plural
from elasticmoe.messages.commands import InstructGang
from elasticmoe.messages.worker import GangEnded


def progress(state: JobState, entry: Progress) -> Outcome:
    """Steps were committed. Folding several reports into one leads to the same state."""
    count = entry.last_step - entry.first_step + 1
    if entry.generation != state.generation:
        return counted(state, stale=count), ()
    new = max(entry.last_step - max(state.committed_step, entry.first_step - 1), 0)
    state = counted(state, stale=count - new, steps_reported=new)
    if not new:
        return state, ()
    state = replace(
        state,
        committed_step=entry.last_step,
        loss=entry.loss,
        instructed=max(state.instructed, entry.instructed),
    )
    if entry.last_step > state.high_step:
        state = replace(state, high_step=entry.last_step, attempts=0, first_error=None)
    return state, ()


def gang_ended(state: JobState, report: GangEnded) -> Outcome:
    """A member has come to the end of its gang and waits."""
    if report.generation != state.generation or report.worker in state.ended:
        return stale(state)
    if report.worker not in state.members:
        return ignored(state)
    state = replace(state, ended={**state.ended, report.worker: report.step})
    worker = state.workers.get(report.worker)
    if worker is not None and worker.status is WorkerStatus.BUSY:
        state = with_status(state, (report.worker,), WorkerStatus.IDLE)
    return state, ()


def checkpoint_asked(state: JobState) -> Outcome:
    """Somebody wants a checkpoint now."""
    return replace(state, checkpoint_asked=True), ()


def decide_training(
    state: JobState,
) -> Break | Drain | TakeCheckpoint | Gather | Fence | LookAgain | None:
    """Answer faults first, then wishes, then room to grow."""
    if state.casualties:
        return decide_break(state, state.casualties)
    number = state.next_command
    if state.ended:
        step = max(state.ended.values())
        return Drain(
            state.now_s, state.generation, NO_NUMBER, "finish", f"the gang ended at step {step}"
        )
    if state.stops:
        reason = f"{state.stop_by} asked to stop"
        return Drain(state.now_s, state.generation, number, "stop", reason)
    if state.checkpoint_asked:
        return TakeCheckpoint(state.now_s, state.generation, number, "somebody asked for it")
    return _decide_grow(state)


def _decide_grow(state: JobState) -> Drain | Gather | Fence | LookAgain | None:
    """Use more workers once they are ready. Grow late: every change of size pauses the gang."""
    workers = state.spec.workers
    target = min(workers.replicas, room(state))
    if target <= len(state.members):
        return None
    settled_s = max(state.capacity_changed_s + workers.settle_s, state.grow_after_s)
    if state.now_s < settled_s:
        return LookAgain(settled_s)
    more = target - len(state.members)
    if len(having(state, *LIVING)) < target:
        return decide_gather(state, f"room for {more} more stayed healthy")
    if having(state, WorkerStatus.STARTING):
        return decide_starting(state)
    return Drain(
        state.now_s,
        state.generation,
        state.next_command,
        "grow",
        f"{plural(more, 'new worker')} stayed healthy",
    )


def decide_draining(
    state: JobState,
) -> Break | Finish | Stop | GiveUp | Regroup | LookAgain:
    """Wait for the last reports and the last checkpoint; a stop is never held up by a fault."""
    assert state.drain is not None, "draining has a purpose"
    if state.casualties and state.stops:
        return decide_stop(state, described(state.casualties))
    if state.casualties:
        return decide_break(state, state.casualties)
    if state.stops > 1:
        return decide_stop(state, "asked twice")
    if len(state.ended) == len(state.members):
        ending = _decide_ended(state, max(state.ended.values()))
        if ending is not None:
            return ending
    patience_s = state.since_s + DRAIN_PATIENCE_S
    if state.now_s < patience_s:
        return LookAgain(patience_s)
    if state.stops:
        return decide_stop(state, f"the gang did not end within {DRAIN_PATIENCE_S:g} s")
    return _decide_unfinished(state, f"the gang did not end within {DRAIN_PATIENCE_S:g} s")


def _decide_ended(state: JobState, step: int) -> Finish | Stop | Break | GiveUp | Regroup | None:
    """All members are at their end: go on as soon as it is known whether that is saved."""
    if step in state.unsaved_steps:
        why = f"the checkpoint of step {step} could not be written: {state.unsaved_steps[step]}"
        return decide_stop(state, why) if state.stops else _decide_unfinished(state, why)
    if state.newest is None or state.newest.step < step:
        return None
    if step >= state.spec.schedule.steps:
        return decide_finish(state)
    if state.stops:
        return decide_stop(state)
    assert state.drain is not None, "draining has a purpose"
    return Regroup(state.now_s, state.drain.reason)


def _decide_unfinished(state: JobState, why: str) -> GiveUp | Break:
    """The gang's end is not saved. At the last step nothing would be won by redoing it."""
    if state.ended and max(state.ended.values()) >= state.spec.schedule.steps:
        newest = f"step {state.newest.step}" if state.newest else "none"
        reason = f"all steps are done, but {why}. The newest checkpoint: {newest}"
        return GiveUp(state.now_s, "bad_storage", "", reason)
    return decide_break(state, (Casualty("command", -1, "", why),))


def apply_take_checkpoint(state: JobState, decision: TakeCheckpoint) -> Outcome:
    """Instruct the gang."""
    state = replace(state, checkpoint_asked=False, next_command=decision.number + 1)
    return state, (InstructGang(decision.generation, decision.number, "checkpoint"),)


def apply_drain(state: JobState, decision: Drain) -> Outcome:
    """Instruct the gang, unless it has come to its end by itself."""
    state = replace(state, drain=decision)
    if decision.number == NO_NUMBER:
        return state, ()
    state = replace(state, next_command=decision.number + 1)
    return state, (InstructGang(decision.generation, decision.number, "stop"),)


def apply_regroup(state: JobState, decision: Regroup) -> Outcome:
    """The pause for the change of size counts as an outage without a cause."""
    return replace(state, outage=Outage(decision.at_s), failed_hires=0), ()

"""Reports of a gang that trains, and how it comes to its end."""

from elasticmoe.controller.avoided import next_end_s, num_staying
from elasticmoe.controller.capacity import decide_starting, free_places, room
from elasticmoe.controller.casualties import decide_fence_silent
from elasticmoe.controller.changing import replace
from elasticmoe.controller.checkpoints import missed_step
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
    Protect,
    Regroup,
    Stay,
    Stop,
    TakeCheckpoint,
    TakeSnapshot,
)
from elasticmoe.controller.ending import decide_finish, decide_stop
from elasticmoe.controller.faults import decide_break
from elasticmoe.controller.layouts import fit_afresh
from elasticmoe.controller.leaving import decide_leave, decide_regroup, leavers, pauses
from elasticmoe.controller.pace import Pace
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.protecting import decide_protect, protected
from elasticmoe.controller.record import Progress
from elasticmoe.controller.snapshots import decide_snapshot, look_for_snapshot, snapshot_taken
from elasticmoe.controller.state import (
    DRAIN_PATIENCE_S,
    SETTLE_S,
    UNHEARD_PATIENCE_S,
    UNMEASURED_BOUND_S,
    JobState,
    Outcome,
    WorkerStatus,
    counted,
    ignored,
    stale,
    with_status,
)
from elasticmoe.controller.vaults import reopened, with_ended, with_snapshots
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
    began_s = entry.arrivals[0] if entry.arrivals else entry.at_s
    state = protected(state, entry.instructed, began_s)
    state = reopened(snapshot_taken(state, entry), entry.last_step)
    pace = _paced(state, entry, new)
    state = replace(
        state,
        committed_step=entry.last_step,
        loss=entry.loss,
        instructed=max(state.instructed, entry.instructed),
        pace=pace,
    )
    if entry.last_step > state.high_step:
        state = replace(
            state,
            high_step=entry.last_step,
            attempts=0,
            retries=0,
            failed_starts={},
            first_error=None,
        )
    return state, ()


def _paced(state: JobState, entry: Progress, new: int) -> Pace:
    """Measure the steps that are new, one by one, as they would have been without folding."""
    if state.phase not in (Phase.TRAINING, Phase.DRAINING):
        return state.pace  # their time is not that of a step alone
    pace, instructed = state.pace, state.instructed
    for step, at_s in zip(
        range(entry.last_step - new + 1, entry.last_step + 1), entry.arrivals[-new:], strict=False
    ):
        is_saving = _is_saving(state, step, pace.eventful_step)
        pace = pace.stepped(at_s, is_saving=is_saving)
        if entry.instructed > instructed:
            pace, instructed = replace(pace, eventful_step=step + 1), entry.instructed
    return pace


def _is_saving(state: JobState, step: int, eventful_step: int) -> bool:
    """Whether a step may be slow because a checkpoint is written or homes are copied: what a
    command asks for is done behind the report of the step at which it took effect."""
    interval = state.spec.checkpoint.interval_steps
    return (
        step % interval == 0
        or (step - 1) % interval == 0
        or step == eventful_step
        or bool(state.parts)
        or bool(state.sealing)
    )


def look_for_stall(state: JobState) -> LookAgain | None:
    """When the open step will be late, as far as is known now; none: no step is open."""
    if not _takes_steps(state):
        return None
    step, pace = state.committed_step + 1, state.pace
    bound_s = pace.bound_s(is_saving=_is_saving(state, step, pace.eventful_step))
    late_s = pace.last_s + (UNMEASURED_BOUND_S if bound_s is None else bound_s)
    drain = state.drain
    if drain is not None and drain.at_s < state.since_s and pace.last_s <= state.since_s:
        late_s = max(late_s, state.since_s + UNHEARD_PATIENCE_S)
    return LookAgain(late_s)


def next_look(state: JobState) -> LookAgain | None:
    """When time alone will bring something to decide for a gang that trains."""
    looks = [look for look in (look_for_stall(state), look_for_snapshot(state)) if look]
    return min(looks, key=lambda look: look.at_s, default=None)


def _takes_steps(state: JobState) -> bool:
    """Whether another step must come: also while draining, until the gang has come to its end."""
    if state.committed_step >= state.spec.schedule.steps:
        return False
    if state.phase is Phase.DRAINING and state.drain is not None:
        return state.instructed < state.drain.number and not state.ended
    return state.phase is Phase.TRAINING


def time_passed(state: JobState) -> Outcome:
    """A timer: note it if the open step is late."""
    due = look_for_stall(state)
    if due is not None and state.now_s >= due.at_s and state.pace.overdue_s is None:
        state = replace(state, pace=replace(state.pace, overdue_s=state.now_s))
    return state, ()


def _decide_stalled(state: JobState) -> Break | LookAgain | None:
    """Break a gang whose open step is late, once reports under way have had time to arrive."""
    due, overdue_s = look_for_stall(state), state.pace.overdue_s
    if due is None or overdue_s is None:
        return due
    if state.now_s < overdue_s + SETTLE_S:
        return LookAgain(overdue_s + SETTLE_S)
    pace = state.pace
    bound_s = due.at_s - pace.last_s
    measured = (
        f"the slowest of the last {len(pace.intervals)} steps took {max(pace.intervals):.2f} s"
        if pace.intervals
        else "no step was measured yet"
    )
    late_s = state.now_s - pace.last_s
    text = f"no step for {late_s:.2f} s, the bound is {bound_s:.2f} s ({measured})"
    return decide_break(state, (Casualty("stalled", -1, "", text),))


def gang_ended(state: JobState, report: GangEnded) -> Outcome:
    """A member has come to the end of its gang and waits."""
    if report.generation != state.generation or report.worker in state.ended:
        return stale(state)
    if report.worker not in state.positions:
        return ignored(state)
    state = replace(state, ended=state.ended.with_item(report.worker, report.step))
    state = with_snapshots(protected(state, report.instructed, state.now_s), report)
    worker = state.workers.get(report.worker)
    if worker is not None and worker.status is WorkerStatus.BUSY:
        state = with_status(state, (report.worker,), WorkerStatus.IDLE)
    if state.phase is Phase.BREAKING:  # it will not park: it has nothing to leave
        state = with_ended(state, (report.worker,))
    return state, ()


def checkpoint_asked(state: JobState) -> Outcome:
    """Somebody wants a checkpoint now."""
    return replace(state, checkpoint_asked=True), ()


def decide_training(
    state: JobState,
) -> (
    Break
    | Drain
    | TakeCheckpoint
    | TakeSnapshot
    | Protect
    | Gather
    | Fence
    | Stay
    | LookAgain
    | None
):
    """Answer faults first, then wishes, then who must leave, what is missing, room to grow."""
    if state.casualties:
        return decide_break(state, state.casualties)
    stalled = _decide_stalled(state)
    if isinstance(stalled, Break):
        return stalled
    looks = [] if stalled is None else [stalled]
    for decide in (_decide_wishes, decide_leave, decide_protect, decide_snapshot, _decide_grow):
        found = decide(state)
        if isinstance(found, LookAgain):
            looks.append(found)
        elif found is not None:
            return found
    return min(looks, key=lambda look: look.at_s, default=None)


def _decide_wishes(state: JobState) -> Drain | TakeCheckpoint | Fence | None:
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
        return TakeCheckpoint(state.now_s, state.generation, number, _why_save(state))
    return decide_fence_silent(state)


def _why_save(state: JobState) -> str:
    if state.staying:
        return "members may be gone soon"
    missed = missed_step(state)
    return f"that of step {missed} was cut off" if missed else "somebody asked for it"


def _decide_more(state: JobState, reason: str) -> Gather:
    """Start workers, if the gang is larger with them; else nobody, until there is more room."""
    gather = fit_afresh(state, {})
    if gather is not None and gather.workers > len(state.members):
        return replace(gather, reason=reason)
    free = [name for name, places in free_places(state).items() if places]
    limits = tuple(sorted((name, len(state.workers.on_node(name))) for name in free))
    why = "there is memory for no more workers"
    return Gather(state.now_s, len(state.members), (), why, limits)


def _decide_grow(state: JobState) -> Drain | Gather | Fence | LookAgain | None:
    """Use more workers once they are ready. Grow late: every change of size pauses the gang. Not
    before those who must leave have left: that is one change then."""
    workers = state.spec.workers
    if not set(leavers(state)) <= set(state.staying):
        return None
    if len(state.members) >= workers.replicas:
        return None
    target = min(workers.replicas, room(state))
    if target <= len(state.members):
        end_s = next_end_s(state)  # of a quarantine, or of a notice that came to nothing
        return None if end_s is None else LookAgain(end_s)
    settled_s = max(state.capacity_changed_s + workers.settle_s, state.grow_after_s)
    if state.now_s < settled_s:
        return LookAgain(settled_s)
    more = target - len(state.members)
    if num_staying(state) < target:
        return _decide_more(state, f"room for {more} more stayed healthy")
    if state.workers.count(WorkerStatus.STARTING):
        return decide_starting(state)
    if state.parts or state.sealing:  # a checkpoint that is being written would be lost
        return None
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
    stalled = _decide_stalled(state)
    if isinstance(stalled, Break):
        return decide_stop(state, stalled.reason) if state.stops else stalled
    patience_s = state.since_s + DRAIN_PATIENCE_S
    if state.now_s < patience_s:
        return LookAgain(patience_s if stalled is None else min(patience_s, stalled.at_s))
    late = f"the gang did not end within {DRAIN_PATIENCE_S:g} s"
    if state.stops:
        return decide_stop(state, late)
    if state.newest is not None and state.newest.step >= state.spec.schedule.steps:
        return decide_finish(state)
    return decide_break(state, (Casualty("command", -1, "", late),))


def _decide_ended(state: JobState, step: int) -> Finish | Stop | Break | GiveUp | Regroup | None:
    """All members are at their end: go on as soon as it is known whether that is saved, or at once
    if all that was wanted is another gang."""
    if pauses(state.drain) and step < state.spec.schedule.steps:
        return decide_regroup(state, step)
    if step in state.unsaved_steps:
        why = f"the checkpoint of step {step} could not be written: {state.unsaved_steps[step]}"
        return decide_stop(state, why) if state.stops else _decide_unfinished(state, why)
    if state.newest is None or state.newest.step < step:
        return None
    if step >= state.spec.schedule.steps:
        return decide_finish(state)
    if state.stops:
        return decide_stop(state)
    return None


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
    return state, drain_commands(state)


def drain_commands(state: JobState) -> tuple[InstructGang, ...]:
    """What the gang was told and has not done yet; said again after a restart."""
    drain = state.drain
    if drain is None or drain.number <= state.instructed:
        return ()
    action = "pause" if pauses(drain) else "stop"
    return (InstructGang(drain.generation, drain.number, action),)

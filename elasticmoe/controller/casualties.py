"""Signs that a generation is over: failed and parked workers, and whose loss matters."""

from typing import Final

from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import Casualty, Fence
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.state import (
    NUM_FAILURES_KEPT,
    Failure,
    JobState,
    Outcome,
    WorkerStatus,
    stale,
    with_status,
)
from elasticmoe.controller.vaults import with_report
from elasticmoe.controller.wording import is_cause, listed, workers_named
from elasticmoe.messages.events import WorkerDied, WorkerSilent
from elasticmoe.messages.worker import MOST_SKIPPED, STEPS_SKIPPED, WorkerFailed, WorkerParked

OWN_SIGNALS: Final = {4: "sigill", 6: "sigabrt", 7: "sigbus", 8: "sigfpe", 11: "sigsegv"}
"""Signals that a program brings upon itself, and what they are called as the code of a failure. Not
SIGKILL: anybody sends that, and the kernel to whoever it finds when a machine lacks memory."""
GANG_PHASES: Final = (Phase.FORMING, Phase.TRAINING, Phase.DRAINING)
"""A generation runs: losing a member ends it."""


def is_needed(state: JobState, worker: int) -> bool:
    """Whether losing a worker must be answered in this phase."""
    if state.phase in (Phase.GATHERING, Phase.BREAKING):
        return True
    if state.phase not in GANG_PHASES or worker not in state.positions:
        return False
    end = state.ended.get(worker)
    if end is None:
        return True
    saved = state.newest is not None and state.newest.step >= end
    sealing = any(seal.step == end for seal in state.sealing)
    return not (saved or sealing or worker in state.parts.get(end, {}))


def add_casualties(state: JobState, casualties: tuple[Casualty, ...]) -> JobState:
    """Note casualties; a cause replaces the mere sign that the same worker gave before."""
    if not casualties:
        return state
    new = {casualty.worker for casualty in casualties}
    kept = tuple(
        one
        for one in state.casualties
        if one.worker not in new or one.kind not in ("parked", "silent")
    )
    return replace(state, casualties=kept + casualties)


def worker_parked(state: JobState, report: WorkerParked) -> Outcome:
    """A member left the step loop, by itself or because it was told to."""
    worker = state.workers.get(report.worker)
    if report.generation != state.generation or worker is None:
        return stale(state)
    if report.copies is not None:
        state = with_report(state, report.worker, worker.node, report.copies)
    for copies in report.adopted:  # of workers that are dead, unless they are given up by now
        if copies.worker in state.vaults and copies.worker not in state.workers:
            state = with_report(state, copies.worker, worker.node, copies)
    if worker.status is not WorkerStatus.BUSY:
        return stale(state)
    needed = is_needed(state, report.worker)
    state = with_status(state, (report.worker,), WorkerStatus.IDLE)
    tells_why = state.phase is Phase.BREAKING and report.code  # peers may have been quicker
    if (state.phase in GANG_PHASES and needed) or tells_why:
        skipped = report.code == STEPS_SKIPPED
        step = report.committed_step if skipped else 0
        sign = Casualty(
            "parked", report.worker, worker.node, report.reason, code=report.code, step=step
        )
        state = add_casualties(state, (sign,))
        if skipped:
            state = noted(state, step, report.code)
    return state, ()


def worker_failed(state: JobState, report: WorkerFailed, node: str) -> Outcome:
    """A worker ends with an error of its own; its death may be reported before or after."""
    worker = state.workers.get(report.worker)
    casualty = Casualty(
        "failed", report.worker, node, report.message, code=report.code, step=report.step
    )
    if worker is None:
        died = [one for one in state.casualties if one.worker == report.worker]
        if not died:
            return stale(state)
        kept = tuple(one for one in state.casualties if one.worker != report.worker)
        state = replace(state, casualties=(*kept, replace(casualty, log=died[0].log)))
        return noted(state, report.step, report.code), ()
    is_old = report.worker in state.positions and report.generation < state.generation
    if is_old or worker.status is WorkerStatus.LEAVING:
        return stale(state)
    if is_needed(state, report.worker):
        state = add_casualties(state, (casualty,))
    state = noted(state, report.step, report.code)
    return with_status(state, (report.worker,), WorkerStatus.LEAVING), ()


def death_of(state: JobState, event: WorkerDied) -> Casualty:
    """A process that has ended, and whether by something it did in its step.

    Only the first cause of a fault counts: whose peers are gone may end by an abort, too.
    """
    casualty = Casualty("died", event.worker, event.node, event.evidence, event.log)
    number = event.evidence.removeprefix("killed by signal ")
    code = OWN_SIGNALS.get(int(number), "") if number.isdecimal() else ""
    is_first = not any(map(is_cause, state.casualties))
    trained = state.phase in (Phase.TRAINING, Phase.DRAINING) or (
        state.phase is Phase.BREAKING and state.outage is not None and state.outage.in_step
    )
    if not code or not is_first or not trained or event.worker not in state.positions:
        return casualty
    known = event.copies.step if event.copies is not None else 0
    return replace(casualty, code=code, step=max(known, state.committed_step) + 1)


def worker_silent(state: JobState, event: WorkerSilent) -> Outcome:
    """A worker's heartbeat has stopped: it is killed at once, whatever else happens."""
    worker = state.workers.get(event.worker)
    if worker is None or worker.status is WorkerStatus.LEAVING or event.worker in state.silent:
        return stale(state)
    state = replace(state, silent=state.silent.with_item(event.worker, event.evidence))
    if is_needed(state, event.worker):
        sign = Casualty("silent", event.worker, event.node, event.evidence)
        state = add_casualties(state, (sign,))
    return state, ()


def decide_fence_silent(state: JobState) -> Fence | None:
    """Kill workers whose heartbeat stopped."""
    silent = tuple(
        number
        for number in state.silent
        if number in state.workers and state.workers[number].status is not WorkerStatus.LEAVING
    )
    if not silent:
        return None
    evidence = listed(sorted({state.silent[number] for number in silent}))
    text = "fell silent and was killed"
    return Fence(state.now_s, silent, f"{workers_named(silent)} fell silent ({evidence})", text)


def repeated_failure(state: JobState) -> Casualty | None:
    """A failure that was recovered from before, with the same code at the same step; of skipped
    steps, some that were skipped before."""
    for casualty in state.casualties:
        own = casualty.kind == "died" and casualty.code
        if casualty.kind != "failed" and casualty.code != STEPS_SKIPPED and not own:
            continue
        reach = MOST_SKIPPED if casualty.code == STEPS_SKIPPED else 1
        for failure in state.failures:
            same = failure.code == casualty.code and abs(failure.step - casualty.step) < reach
            if same and failure.episode < state.episode:
                return casualty
    return None


def last_update(state: JobState) -> int | None:
    """The last step that changed weights, if the gang parked because it skips all others."""
    ends = [one.step for one in state.casualties if one.code == STEPS_SKIPPED]
    return min(ends) - MOST_SKIPPED if ends else None


def noted(state: JobState, step: int, code: str) -> JobState:
    """Remember a failure, to tell whether the next one is the same."""
    failure = Failure(state.episode, step, code)
    if failure in state.failures:
        return state
    return replace(state, failures=(*state.failures, failure)[-NUM_FAILURES_KEPT:])

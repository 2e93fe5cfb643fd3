"""Signs that a generation is over: failed and parked workers, and whose loss matters."""

from dataclasses import replace
from typing import Final

from elasticmoe.controller.decisions import Casualty
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
from elasticmoe.messages.worker import WorkerFailed, WorkerParked

GANG_PHASES: Final = (Phase.FORMING, Phase.TRAINING, Phase.DRAINING)
"""A generation runs: losing a member ends it."""


def is_needed(state: JobState, worker: int) -> bool:
    """Whether losing a worker must be answered in this phase."""
    if state.phase in (Phase.GATHERING, Phase.BREAKING):
        return True
    if state.phase not in GANG_PHASES or worker not in state.members:
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
    kept = tuple(one for one in state.casualties if one.worker not in new or one.kind != "parked")
    return replace(state, casualties=kept + casualties)


def worker_parked(state: JobState, report: WorkerParked) -> Outcome:
    """A member left the step loop, by itself or because it was told to."""
    worker = state.workers.get(report.worker)
    if report.generation != state.generation or worker is None:
        return stale(state)
    if worker.status is not WorkerStatus.BUSY:
        return stale(state)
    needed = is_needed(state, report.worker)
    state = with_status(state, (report.worker,), WorkerStatus.IDLE)
    if state.phase in GANG_PHASES and needed:
        sign = Casualty("parked", report.worker, worker.node, report.reason)
        state = add_casualties(state, (sign,))
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
        return _noted(state, report), ()
    is_old = report.worker in state.members and report.generation < state.generation
    if is_old or worker.status is WorkerStatus.LEAVING:
        return stale(state)
    if is_needed(state, report.worker):
        state = add_casualties(state, (casualty,))
    state = _noted(state, report)
    return with_status(state, (report.worker,), WorkerStatus.LEAVING), ()


def repeated_failure(state: JobState) -> Casualty | None:
    """A failure that was recovered from before, with the same code at the same step."""
    for casualty in state.casualties:
        if casualty.kind == "failed":
            for failure in state.failures:
                same = (failure.step, failure.code) == (casualty.step, casualty.code)
                if same and failure.episode < state.episode:
                    return casualty
    return None


def _noted(state: JobState, report: WorkerFailed) -> JobState:
    failure = Failure(state.episode, report.step, report.code)
    if failure in state.failures:
        return state
    return replace(state, failures=(*state.failures, failure)[-NUM_FAILURES_KEPT:])

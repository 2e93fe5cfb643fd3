"""Who is in the next generation, and from where it starts."""

from functools import partial
from typing import Final

from elasticmoe.controller.avoided import avoided_nodes, limits, num_staying, surplus
from elasticmoe.controller.capacity import decide_gather, decide_starting, room
from elasticmoe.controller.casualties import decide_fence_silent
from elasticmoe.controller.decisions import (
    Fence,
    Form,
    Gather,
    GiveUp,
    LookAgain,
    Recover,
    Stop,
    Wait,
)
from elasticmoe.controller.ending import decide_stop, ends_now
from elasticmoe.controller.faults import survey
from elasticmoe.controller.layouts import (
    form_afresh,
    form_as_before,
    form_in_memory,
    lacks_memory,
    missing,
    orphaned_nodes,
    place_of,
    reconsider,
)
from elasticmoe.controller.recovery import decide_recovery
from elasticmoe.controller.replacing import (
    dead_members,
    find_deserted,
    find_replacements,
    replacing,
)
from elasticmoe.controller.snapshots import find_snapshot
from elasticmoe.controller.state import (
    LIVING,
    PARK_PATIENCE_S,
    REAP_PATIENCE_S,
    JobState,
    Worker,
    WorkerStatus,
    having,
)
from elasticmoe.controller.vaults import shortage
from elasticmoe.controller.wording import listed, plural
from elasticmoe.spec.job import Rung

FROM_MEMORY: Final = ("retry", "replace", "failover")

Next = Gather | Fence | Form | Recover | Wait | Stop | GiveUp | LookAgain | None


def decide_gathering(state: JobState) -> Next:
    """Start what is missing, wait until all are ready, form."""
    if ends_now(state):
        return decide_stop(state)
    silent = decide_fence_silent(state)
    if silent is not None:
        return silent
    if state.casualties:
        leaving = having(state, WorkerStatus.LEAVING)
        reaped_s = _told_s(state, leaving) + PARK_PATIENCE_S
        if leaving and state.now_s < reaped_s:  # its death tells its log, and frees its place
            return LookAgain(reaped_s)
        return decide_recovery(survey(state))
    if state.now_s < state.retry_at_s:
        return LookAgain(state.retry_at_s)
    if state.rung in FROM_MEMORY and state.settled_step is None:
        return decide_recovery(survey(state))  # a vault turned out to be further
    match state.rung:
        case "retry":
            return _decide_retry(state)
        case "replace":
            return _decide_replace(state)
        case "failover" | "snapshot":
            return _decide_failover(state, state.rung)
    return _decide_afresh(state)


def _decide_afresh(state: JobState) -> Next:
    """From a checkpoint: as many workers as are wanted and fit."""
    wanted = _decide_number(state, state.spec.workers.replicas)
    if wanted is not None:
        return wanted
    return form_afresh(state, _ready(state))


def _decide_number(state: JobState, enough: int) -> Gather | Fence | Wait | LookAgain | None:
    """Have a number of workers ready, or as many as there is room for; none: they are."""
    living = num_staying(state)
    if living < enough or living < state.spec.workers.min:
        fitting = room(state)
        if fitting < state.spec.workers.min:
            return _decide_wait(state, fitting)
        if living < min(enough, fitting):
            return decide_gather(state, missing(state, fitting))
    if state.workers.count(WorkerStatus.STARTING):
        return decide_starting(state)
    return None


def _decide_retry(state: JobState) -> Next:
    if dead_members(state):
        return reconsider(state, "retry", "a member is gone")
    return form_as_before(state, "retry", state.members, {})


def _decide_replace(state: JobState) -> Next:
    leaving = [one for one in having(state, WorkerStatus.LEAVING) if one.number in state.positions]
    reaped_s = _told_s(state, tuple(leaving)) + REAP_PATIENCE_S
    if leaving and state.now_s < reaped_s:  # its death tells what it leaves, and frees its place
        return LookAgain(reaped_s)
    replacements = find_replacements(state)
    if replacements.refusal:
        return reconsider(state, "replace", replacements.refusal)
    if replacements.hires:
        return replacing(state, replacements, "the place of a dead member is empty")
    newcomer = dict(replacements.found)
    if any(state.workers[one].status is WorkerStatus.STARTING for one in newcomer.values()):
        return decide_starting(state)
    workers = tuple(newcomer.get(number, number) for number in state.members)
    replaced = {new: dead for dead, new in replacements.found}
    return form_as_before(state, "replace", workers, replaced)


def _decide_failover(state: JobState, rung: Rung) -> Next:
    """Nobody waits for a worker that starts, unless there are too few without it, or nobody else
    can read memory that is needed."""
    ready = _ready(state)
    if len(ready) < state.spec.workers.min:
        wanted = _decide_number(state, state.spec.workers.replicas)
        if wanted is not None:
            return wanted
    reader = _decide_readers(state, is_snapshot=rung == "snapshot")
    if reader is not None:
        return reader
    if (avoided_nodes(state) or surplus(state)) and lacks_memory(state, ready, rung):
        ready = _ready(state, everybody=True)  # who was to be left has what nobody else has
    return form_in_memory(state, rung, ready)


def _told_s(state: JobState, leaving: tuple[Worker, ...]) -> float:
    """When the last of them was told to end, or their deaths could be heard again."""
    return max([state.since_s, *(worker.since_s for worker in leaving)])


def _decide_readers(state: JobState, *, is_snapshot: bool) -> Gather | Fence | LookAgain | None:
    """Have a worker on every node whose memory is needed; none: all are there."""
    assert state.settled_step is not None, "a rung of memory has settled the step"
    deserted = find_deserted(state, state.settled_step, is_snapshot=is_snapshot)
    if not deserted:
        return None
    empty = [
        node
        for node in deserted
        if not any(
            state.workers[number].status is WorkerStatus.STARTING
            for number in state.workers.on_node(node)
        )
    ]
    if not empty:
        return decide_starting(state)
    hires = tuple((state.next_worker + place, node) for place, node in enumerate(empty))
    nodes = f"node{'s' if len(empty) > 1 else ''} {listed(empty)}"
    reason = f"nobody is left on {nodes} to read the memory there"
    return Gather(state.now_s, state.workers.count(*LIVING) + len(hires), hires, reason)


def _ready(state: JobState, *, everybody: bool = False) -> tuple[Worker, ...]:
    """Workers for the next generation: those with memory first, or on a node where some is to be
    read. Those of one node follow each other.

    Args:
        everybody: also on nodes that the job keeps away from, and beyond the limits.
    """
    avoided = frozenset() if everybody else avoided_nodes(state)
    waiting, workers = having(state, WorkerStatus.IDLE), state.spec.workers
    wanted = workers.max if limits(state) else max(workers.replicas, len(state.members))
    beyond = set() if everybody else {worker.number for worker in surplus(state)}
    ready = tuple(
        worker for worker in waiting if worker.node not in avoided and worker.number not in beyond
    )

    place = partial(place_of, state)
    if len(ready) > wanted:
        orphaned = orphaned_nodes(state)

        def use(worker: Worker) -> tuple[bool, bool, tuple[str, str, int]]:
            return worker.number not in state.vaults, worker.node not in orphaned, place(worker)

        ready = tuple(sorted(ready, key=use)[:wanted])
    return tuple(sorted(ready, key=place))


def _decide_wait(state: JobState, fitting: int) -> Wait:
    from_memory = state.settled_step is not None and (
        not shortage(state, state.settled_step, frozenset(state.nodes))
        or find_snapshot(state, frozenset(state.nodes), state.settled_step) == state.settled_step
    )
    newest = state.newest.step if state.newest else 0
    step = state.settled_step if from_memory and state.settled_step is not None else newest
    reason = (
        f"{plural(fitting, 'worker')} can run and workers.min is {state.spec.workers.min}: "
        "waiting for nodes"
    )
    return Wait(
        at_s=state.now_s,
        step=step,
        redo_steps=max(state.committed_step - step, 0),
        refused=(),
        evidence=(),
        reason=reason,
        from_memory=from_memory,
    )

"""Who is in the next generation, and from where it starts."""

from collections.abc import Mapping
from typing import Final

from elasticmoe.controller.avoided import avoided_nodes, num_staying, surplus, with_limits
from elasticmoe.controller.capacity import decide_gather, decide_starting, room
from elasticmoe.controller.casualties import decide_fence_silent
from elasticmoe.controller.changing import replace
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
from elasticmoe.controller.fitting import (
    Crowded,
    in_words,
    overfull_by_protection,
    overfull_nodes,
)
from elasticmoe.controller.memory import plan_recall
from elasticmoe.controller.recovery import decide_recovery, origin
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
from elasticmoe.errors import PlanError
from elasticmoe.messages.worker import FromMemory
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.types import Member, Plan
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
        reaped_s = max((worker.since_s + PARK_PATIENCE_S for worker in leaving), default=0.0)
        if state.now_s < reaped_s:  # its death brings the place of its log, and frees its own
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
    return _form_afresh(state)


def _decide_number(state: JobState, enough: int) -> Gather | Fence | Wait | LookAgain | None:
    """Have a number of workers ready, or as many as there is room for; none: they are."""
    living = num_staying(state)
    if living < enough or living < state.spec.workers.min:
        fitting = room(state)
        if fitting < state.spec.workers.min:
            return _decide_wait(state, fitting)
        if living < min(enough, fitting):
            return decide_gather(state, _missing(state, fitting))
    if state.workers.count(WorkerStatus.STARTING):
        return decide_starting(state)
    return None


def _decide_retry(state: JobState) -> Next:
    if dead_members(state):
        return _reconsider(state, "retry", "a member is gone")
    return _form_as_before(state, "retry", state.members, {})


def _decide_replace(state: JobState) -> Next:
    leaving = [one for one in having(state, WorkerStatus.LEAVING) if one.number in state.positions]
    reaped_s = max((one.since_s + REAP_PATIENCE_S for one in leaving), default=0.0)
    if state.now_s < reaped_s:  # its death tells what it leaves, and frees its place
        return LookAgain(reaped_s)
    replacements = find_replacements(state)
    if replacements.refusal:
        return _reconsider(state, "replace", replacements.refusal)
    if replacements.hires:
        return replacing(state, replacements, "the place of a dead member is empty")
    newcomer = dict(replacements.found)
    if any(state.workers[one].status is WorkerStatus.STARTING for one in newcomer.values()):
        return decide_starting(state)
    workers = tuple(newcomer.get(number, number) for number in state.members)
    replaced = {new: dead for dead, new in replacements.found}
    return _form_as_before(state, "replace", workers, replaced)


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
    if avoided_nodes(state) and _lacks_memory(state, ready, rung):
        ready = _ready(state, avoided=frozenset())  # who was to be left has what nobody else has
    return _form_in_memory_there_is(state, rung, ready)


def _form_in_memory_there_is(state: JobState, rung: Rung, ready: tuple[Worker, ...]) -> Next:
    """With everybody, or without those who bring nothing but need memory that their node has not.
    A gang that paused to grow goes on as it was if nobody who came can stay."""
    crowded, chosen = Crowded(ready), ready
    orphaned = _orphaned(state)
    strangers = {
        one.number for one in ready if one.number not in state.vaults and one.node not in orphaned
    }
    while True:
        workers = tuple(worker.number for worker in chosen)
        if _is_planned(state) and set(workers) == set(state.members):
            return _form_as_before(state, rung, state.members, {}, crowded)
        recalled = _recall(state, rung, workers, {}, _layout_to_grow(state, workers))
        if not isinstance(recalled, tuple):
            return recalled
        overfull = overfull_nodes(state, recalled[0])
        if not overfull:
            return _form_recalled(state, *recalled, crowded)
        fewer = crowded.leave_out(chosen, strangers, overfull)
        if len(fewer) in (len(chosen), 0) or len(fewer) < state.spec.workers.min:
            return _more_or_wait(state, crowded)
        chosen = fewer


def _more_or_wait(state: JobState, crowded: Crowded) -> Next:
    """Start more workers where there may be memory for them, else the ladder decides."""
    if state.workers.count(WorkerStatus.STARTING):
        return decide_starting(state)
    limited = with_limits(state, crowded.first_limits)
    fitting = room(limited)
    if min(fitting, state.spec.workers.replicas) > num_staying(limited):
        gather = decide_gather(limited, _missing(limited, fitting))
        return replace(gather, limits=tuple(sorted(crowded.first_limits.items())))
    limited = with_limits(state, crowded.limits)
    decision = decide_recovery(survey(limited, crowded=crowded.node))
    limits = tuple(sorted(crowded.limits.items()))
    return replace(decision, limits=limits) if isinstance(decision, Wait) else decision


def _is_planned(state: JobState) -> bool:
    outage = state.outage
    return outage is not None and outage.is_planned and not outage.causes


def _layout_to_grow(state: JobState, workers: tuple[int, ...]) -> Plan | None:
    """A gang that pauses to grow is laid out afresh: who comes takes a share of all homes, and
    those of each unit are apart again. None: after a loss as little as possible is moved."""
    if not _is_planned(state):
        return None
    assert state.job is not None, "no job was submitted"
    return make_plan(state.job.spec, state.job.inventory, _members(state, workers))


def _lacks_memory(state: JobState, workers: tuple[Worker, ...], rung: Rung) -> bool:
    """Whether workers cannot go on without what others, who wait too, have in memory."""
    assert state.settled_step is not None, "a rung of memory has settled the step"
    staying = {worker.number for worker in workers}
    waiting = {one.number for one in having(state, WorkerStatus.IDLE)} - staying
    without = replace(state, vaults=state.vaults.without(waiting))
    nodes = frozenset(worker.node for worker in workers)
    if rung == "snapshot":
        return find_snapshot(without, nodes) != state.settled_step
    return bool(shortage(without, state.settled_step, nodes))


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


def _reconsider(state: JobState, rung: Rung, why: str) -> Recover | Wait | GiveUp:
    """What was decided does not work any more: take the next rung that does."""
    return decide_recovery(survey(state, ((rung, why),)))


def _ready(state: JobState, avoided: frozenset[str] | None = None) -> tuple[Worker, ...]:
    """Workers for the next generation: those with memory first, or on a node where some is to be
    read. Those of one node follow each other.

    Args:
        avoided: nodes that are left out; none: those that the job keeps away from.
    """
    avoided = avoided_nodes(state) if avoided is None else avoided
    waiting, wanted = having(state, WorkerStatus.IDLE), state.spec.workers.replicas
    beyond = {worker.number for worker in surplus(state)}
    ready = tuple(
        worker for worker in waiting if worker.node not in avoided and worker.number not in beyond
    )

    def place(worker: Worker) -> tuple[str, str, int]:
        return state.nodes[worker.node].domain, worker.node, worker.number

    if len(ready) > wanted:
        orphaned = _orphaned(state)

        def use(worker: Worker) -> tuple[bool, bool, tuple[str, str, int]]:
            return worker.number not in state.vaults, worker.node not in orphaned, place(worker)

        ready = tuple(sorted(ready, key=use)[:wanted])
    return tuple(sorted(ready, key=place))


def _orphaned(state: JobState) -> set[str]:
    """Nodes with memory of workers that are dead."""
    return {
        vault.node
        for owner, vault in state.vaults.items()
        if owner not in state.workers and vault.copies is not None
    }


def _members(state: JobState, workers: tuple[int, ...]) -> tuple[Member, ...]:
    nodes = [state.workers[number].node for number in workers]
    return tuple(
        Member(number, node, state.nodes[node].domain)
        for number, node in zip(workers, nodes, strict=True)
    )


def _form_as_before(
    state: JobState,
    rung: Rung,
    workers: tuple[int, ...],
    replaced: Mapping[int, int],
    crowded: Crowded | None = None,
) -> Form | Recover | Wait | GiveUp:
    """In the layout that there was: it fitted."""
    recalled = _recall(state, rung, workers, replaced, state.plan)
    return _form_recalled(state, *recalled, crowded) if isinstance(recalled, tuple) else recalled


def _recall(
    state: JobState,
    rung: Rung,
    workers: tuple[int, ...],
    replaced: Mapping[int, int],
    plan: Plan | None,
) -> tuple[Plan, FromMemory] | Recover | Wait | GiveUp:
    """A layout and what it takes from where in memory; none: make one for these workers."""
    assert state.settled_step is not None, "a rung of memory has settled the step"
    step, members = state.settled_step, _members(state, workers)
    try:
        return plan_recall(
            state, members, step=step, replaced=replaced, plan=plan, is_snapshot=rung == "snapshot"
        )
    except PlanError as error:
        return _reconsider(state, rung, str(error))


def _form_recalled(
    state: JobState, plan: Plan, memory: FromMemory, crowded: Crowded | None = None
) -> Form:
    where = "the snapshot of" if memory.is_snapshot else "memory at"
    reason = f"{plural(len(plan.members), 'worker')} go on from {where} step {memory.step}"
    overfull = overfull_by_protection(state, plan)
    if overfull is not None:
        reason += f"; units that lack homes get none: {in_words(overfull)}"
    form = _form(state, plan, memory.step, reason, crowded)
    return replace(form, memory=memory, unprotected=overfull is not None)


def _form_afresh(state: JobState) -> Next:
    """With as many as fit."""
    assert state.job is not None, "no job was submitted"
    chosen = _ready(state)
    crowded = Crowded(chosen)
    while True:
        members = _members(state, tuple(worker.number for worker in chosen))
        try:
            plan = make_plan(state.job.spec, state.job.inventory, members)
        except PlanError as error:
            reason = f"no plan for {len(members)} workers: {error}"
            return GiveUp(state.now_s, error.code, "", reason)
        overfull = overfull_nodes(state, plan)
        if not overfull:
            break
        chosen = crowded.leave_out(chosen, {worker.number for worker in chosen}, overfull)
        if len(chosen) < state.spec.workers.min:
            return _more_or_wait(state, crowded)
    start = state.newest
    reason = f"{plural(len(members), 'worker')} start from {origin(start)}"
    form = _form(state, plan, start.step if start else 0, reason, crowded)
    return replace(form, checkpoint=start.uri if start else None)


def _form(state: JobState, plan: Plan, step: int, reason: str, crowded: Crowded | None) -> Form:
    workers = tuple(member.worker for member in plan.members)
    limits = crowded.limits_of(plan.members) if crowded else {}
    if crowded and crowded.node:
        reason += f", without others that are ready: {in_words(crowded.node)}"
    return Form(
        at_s=state.now_s,
        generation=state.generation + 1,
        timeline=state.timeline + (step < state.committed_step),
        plan=plan.to_json(),
        workers=workers,
        store_node=plan.members[0].node,
        step=step,
        checkpoint=None,
        first_command=state.next_command,
        reason=reason,
        newcomers=tuple(number for number in workers if number not in state.positions),
        limits=tuple(sorted(limits.items())),
    )


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


def _missing(state: JobState, fitting: int) -> str:
    wanted = state.spec.workers.replicas
    target = min(wanted, fitting)
    missing = target - num_staying(state)
    fewer = f", room for no more of the {wanted} wanted" if target < wanted else ""
    return f"{missing} missing of {target}{fewer}"

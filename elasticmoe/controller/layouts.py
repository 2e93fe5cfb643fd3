"""The layout of the next generation: as before, or one that there is memory for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial

from elasticmoe.controller.avoided import num_staying, num_wanted, staying, with_limits
from elasticmoe.controller.capacity import decide_gather, decide_starting, room
from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import (
    Fence,
    Form,
    Gather,
    GiveUp,
    LookAgain,
    Recover,
    Wait,
)
from elasticmoe.controller.faults import survey
from elasticmoe.controller.fitting import (
    Crowded,
    in_words,
    needed_bytes,
    overfull_by_protection,
    overfull_nodes,
)
from elasticmoe.controller.memory import plan_recall
from elasticmoe.controller.recovery import decide_recovery, origin
from elasticmoe.controller.snapshots import find_snapshot
from elasticmoe.controller.state import (
    JobState,
    Worker,
    WorkerStatus,
    having,
)
from elasticmoe.controller.vaults import shortage
from elasticmoe.controller.wording import plural
from elasticmoe.errors import PlanError
from elasticmoe.messages.worker import FromMemory
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.memory import Overfull
from elasticmoe.plan.types import Member, Plan
from elasticmoe.spec.job import Rung

Next = Gather | Fence | Form | Recover | Wait | GiveUp | LookAgain | None


def form_as_before(
    state: JobState,
    rung: Rung,
    workers: tuple[int, ...],
    replaced: Mapping[int, int],
    crowded: Crowded | None = None,
) -> Form | Recover | Wait | GiveUp:
    """In the layout that there was: it fitted."""
    recalled = _recall(state, rung, workers, replaced, state.plan)
    return _form_recalled(state, *recalled, crowded) if isinstance(recalled, tuple) else recalled


def form_in_memory(state: JobState, rung: Rung, ready: tuple[Worker, ...]) -> Next:
    """With everybody, or without those who need memory that their node has not, and bring nothing
    that others have not. A gang that paused to grow goes on as it was if nobody who came can stay.
    """
    crowded, chosen = Crowded(ready), ready
    orphaned = orphaned_nodes(state)
    strangers = {
        one.number for one in ready if one.number not in state.vaults and one.node not in orphaned
    }
    while True:
        workers = tuple(worker.number for worker in chosen)
        if _is_planned(state) and set(workers) == set(state.members):
            return form_as_before(state, rung, state.members, {}, crowded)
        overfull: tuple[Overfull, ...] = ()
        for plan in _layouts(state, workers):
            recalled = _recall(state, rung, workers, {}, plan)
            if not isinstance(recalled, tuple):
                return recalled
            needed = needed_bytes(state, recalled[0])
            overfull = overfull_nodes(state, recalled[0], needed)
            if not overfull:
                return _form_recalled(state, *recalled, crowded, needed)
        fewer = crowded.leave_out(chosen, strangers, overfull, partial(_spare, state, rung, chosen))
        if len(fewer) in (len(chosen), 0) or len(fewer) < state.spec.workers.min:
            if _is_planned(state) and {one.number for one in ready}.issuperset(state.members):
                return form_as_before(state, rung, state.members, {}, crowded)
            return _more_or_wait(state, crowded)
        chosen = fewer


def form_afresh(state: JobState, ready: tuple[Worker, ...]) -> Next:
    """With as many as fit."""
    assert state.job is not None, "no job was submitted"
    crowded, chosen = Crowded(ready), ready
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


def _more_or_wait(state: JobState, crowded: Crowded) -> Next:
    """Start more workers where there may be memory for them, else the ladder decides."""
    if state.workers.count(WorkerStatus.STARTING):
        return decide_starting(state)
    afresh = fit_afresh(state, crowded.first_limits)
    if afresh is not None and afresh.hires:
        return afresh
    limited = with_limits(state, crowded.limits)
    damage = survey(limited, crowded=crowded.node)
    decision = decide_recovery(replace(damage, fits_afresh=afresh is not None))
    limits = tuple(sorted(crowded.limits.items()))
    return replace(decision, limits=limits) if isinstance(decision, Wait) else decision


def fit_afresh(state: JobState, limits: dict[str, int]) -> Gather | None:
    """The workers that would be there, and those to be started for that, if a layout made afresh,
    without regard to what is in whose memory, is to fit: nobody is started to find that out.

    Args:
        limits: most workers of some nodes, beside the limits that hold.

    Returns:
        None if there is no such layout. Maybe nobody is to be started.
    """
    assert state.job is not None, "no job was submitted"
    while True:
        limited = with_limits(state, limits)
        gather = decide_gather(limited, missing(limited, room(limited)))
        hired = [Worker(*hire, WorkerStatus.STARTING, state.now_s) for hire in gather.hires]
        there = sorted((*staying(limited), *hired), key=partial(place_of, state))
        if len(there) < state.spec.workers.min:
            return None
        members = tuple(_member(state, worker) for worker in there)
        overfull = overfull_nodes(state, make_plan(state.job.spec, state.job.inventory, members))
        if not overfull:
            return replace(gather, limits=tuple(sorted(limits.items())))
        tried = Counter(member.node for member in members)
        limits = limits | {one.node: tried[one.node] - 1 for one in overfull}


def _spare(
    state: JobState, rung: Rung, workers: tuple[Worker, ...], going: tuple[Worker, ...]
) -> bool:
    """Whether some workers can be left out because others of them have what they keep."""
    return not lacks_memory(state, tuple(one for one in workers if one not in going), rung)


def lacks_memory(state: JobState, workers: tuple[Worker, ...], rung: Rung) -> bool:
    """Whether workers cannot go on without what others, who wait too, have in memory."""
    assert state.settled_step is not None, "a rung of memory has settled the step"
    staying = {worker.number for worker in workers}
    waiting = {one.number for one in having(state, WorkerStatus.IDLE)} - staying
    without = replace(state, vaults=state.vaults.without(waiting))
    nodes = frozenset(worker.node for worker in workers)
    if rung == "snapshot":
        return find_snapshot(without, nodes) != state.settled_step
    return bool(shortage(without, state.settled_step, nodes))


def _layouts(state: JobState, workers: tuple[int, ...]) -> Iterator[Plan | None]:
    """What is tried with some workers. None: after a loss as little as possible is moved, which may
    be too much for those who have most already. A gang that pauses to grow is laid out afresh: who
    comes takes a share of all homes, and those of each unit are apart again."""
    if not _is_planned(state):
        yield None
    assert state.job is not None, "no job was submitted"
    yield make_plan(state.job.spec, state.job.inventory, _members(state, workers))


def _is_planned(state: JobState) -> bool:
    outage = state.outage
    return outage is not None and outage.is_planned and not outage.causes


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
        return reconsider(state, rung, str(error))


def _form_recalled(
    state: JobState,
    plan: Plan,
    memory: FromMemory,
    crowded: Crowded | None = None,
    needed: Mapping[str, int] | None = None,
) -> Form:
    where = "the snapshot of" if memory.is_snapshot else "memory at"
    reason = f"{plural(len(plan.members), 'worker')} go on from {where} step {memory.step}"
    overfull = overfull_by_protection(state, plan, needed)
    if overfull is not None:
        reason += f"; units that lack homes get none: {in_words(overfull)}"
    form = _form(state, plan, memory.step, reason, crowded)
    return replace(form, memory=memory, unprotected=overfull is not None)


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


def reconsider(state: JobState, rung: Rung, why: str) -> Recover | Wait | GiveUp:
    """What was decided does not work any more: take the next rung that does."""
    return decide_recovery(survey(state, ((rung, why),)))


def missing(state: JobState, fitting: int) -> str:
    """Why more workers are started, as a sentence's part."""
    wanted = num_wanted(state)
    target = min(wanted, fitting)
    missing = target - num_staying(state)
    fewer = f", room for no more of the {wanted} wanted" if target < wanted else ""
    return f"{missing} missing of {target}{fewer}"


def orphaned_nodes(state: JobState) -> set[str]:
    """Nodes with memory of workers that are dead."""
    return {
        vault.node
        for owner, vault in state.vaults.items()
        if owner not in state.workers and vault.copies is not None
    }


def place_of(state: JobState, worker: Worker) -> tuple[str, str, int]:
    """Sorts workers as a layout takes them: those of one node follow each other."""
    return state.nodes[worker.node].domain, worker.node, worker.number


def _members(state: JobState, workers: tuple[int, ...]) -> tuple[Member, ...]:
    return tuple(_member(state, state.workers[number]) for number in workers)


def _member(state: JobState, worker: Worker) -> Member:
    return Member(worker.number, worker.node, state.nodes[worker.node].domain)

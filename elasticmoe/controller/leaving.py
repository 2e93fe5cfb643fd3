"""Moving off before the end: nodes and workers that go away soon, and nodes in quarantine.

The gang pauses between two steps, and those who stay go on from memory: no step is redone.
"""

from collections.abc import Collection

from elasticmoe.controller.avoided import (
    avoided_nodes,
    num_places,
    num_staying,
    shunned_nodes,
    surplus,
)
from elasticmoe.controller.capacity import decide_gather, decide_starting, kills, room
from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import (
    Drain,
    Fence,
    Gather,
    LookAgain,
    Protect,
    Regroup,
    Stay,
)
from elasticmoe.controller.fitting import in_words, overfull_nodes
from elasticmoe.controller.protecting import no_longer_exposed, protect_with
from elasticmoe.controller.state import (
    SETTLE_S,
    JobState,
    Leaving,
    Outage,
    Outcome,
    WorkerStatus,
    counted,
    stale,
    with_status,
)
from elasticmoe.controller.vaults import with_ended
from elasticmoe.controller.wording import listed, plural, workers_named
from elasticmoe.messages.events import NodeLeaving
from elasticmoe.messages.worker import WorkerLeaving
from elasticmoe.plan.protection import confined, evacuate, restore_protection

Next = Gather | Fence | Protect | Stay | Drain | LookAgain | None


def node_leaving(state: JobState, event: NodeLeaving) -> Outcome:
    """A node goes away soon."""
    known = state.leaving.get(event.node)
    if event.node not in state.nodes or (known and known.deadline_s <= event.deadline_s):
        return stale(state)
    leaving = Leaving(event.deadline_s, event.evidence)
    return replace(state, leaving={**state.leaving, event.node: leaving}), ()


def worker_leaving(state: JobState, report: WorkerLeaving) -> Outcome:
    """A worker was told to end, alone. One that nobody needs does so at once."""
    worker = state.workers.get(report.worker)
    if worker is None or report.worker in state.leaving_workers:
        return stale(state)
    if worker.status is WorkerStatus.LEAVING:
        return stale(state)
    leaving = Leaving(state.now_s + report.seconds, report.evidence)
    state = replace(state, leaving_workers=state.leaving_workers.with_item(report.worker, leaving))
    if worker.status is WorkerStatus.BUSY or report.worker in state.positions:
        return state, ()
    commands = kills((worker,), f"it was told to end ({report.evidence})")
    return with_status(state, (report.worker,), WorkerStatus.LEAVING), commands


def decide_leave(state: JobState) -> Next:
    """Have the gang go on without members that must leave, before they do.

    Others are started first where there is room, and units that only those who leave are homes of
    get another home first. If the gang needs them, or there is no time, it trains on: a death
    costs a redone step at most.
    """
    going = leavers(state)
    if not going or (
        set(going) <= set(state.staying) and state.stayed_s >= state.capacity_changed_s
    ):
        return None
    left_s = _deadline_s(state, going) - state.now_s
    step_s = max(state.pace.intervals, default=0.0)
    if left_s < step_s:
        took = f"{max(left_s, 0.0):.2f} s are left and a step takes {step_s:.2f} s"
        return _stay(state, going, took)
    if in_place(state, going):
        if "replace" in state.spec.protection.skip_rungs:
            return _stay(state, going, "replace is left out by protection.skip_rungs")
        return _drain(state, going)
    fitting = room(state) if avoided_nodes(state) else num_places(state, shunned_nodes(state))
    if fitting < state.spec.workers.min:
        without = f"{plural(fitting, 'worker')} can run without"
        return _stay(state, going, f"{without} and workers.min is {state.spec.workers.min}")
    return _decide_others(state, going, left_s, step_s) or _decide_homes(state, going)


def leavers(state: JobState) -> tuple[int, ...]:
    """Members of the gang that should leave it, ascending."""
    found = [number for number in state.leaving_workers if number in state.positions]
    for node in shunned_nodes(state):
        found += [number for number in state.workers.on_node(node) if number in state.positions]
    living = {number for number in found if number in state.workers}
    return tuple(sorted(living))


def in_place(state: JobState, going: Collection[int]) -> bool:
    """Whether each can be replaced on its node, in its memory."""
    shunned = shunned_nodes(state)
    return all(state.workers[number].node not in shunned for number in going)


def pauses(drain: Drain | None) -> bool:
    """Whether a gang ends with everything in memory, and another one goes on at once."""
    return drain is not None and drain.purpose in ("grow", "leave")


def decide_regroup(state: JobState, step: int) -> Regroup:
    """All members have paused behind the same step."""
    assert state.drain is not None, "draining has a purpose"
    going = leavers(state) if state.drain.purpose == "leave" else ()
    if going and in_place(state, going):
        return Regroup(state.now_s, state.drain.reason, "replace", step, going)
    return Regroup(state.now_s, state.drain.reason, "failover", step)


def apply_regroup(state: JobState, decision: Regroup) -> Outcome:
    """The pause counts as an outage; only who leaves is a cause of it."""
    leaves = state.drain is not None and state.drain.purpose == "leave"
    outage = Outage(
        decision.at_s,
        causes=(decision.reason,) if leaves else (),
        members=len(state.members),
        is_planned=decision.rung != "checkpoint",
    )
    state = no_longer_exposed(replace(state, outage=outage, failed_hires=0), decision.at_s)
    if decision.rung == "checkpoint":  # by an earlier version
        return state, ()
    fenced = tuple(state.workers[number] for number in decision.leavers if number in state.workers)
    state = replace(
        with_ended(counted(state, regroupings=1), state.ended),
        rung=decision.rung,
        settled_step=decision.step,
        settled_in=state.generation,
        drain=None,
    )
    state = with_status(state, decision.leavers, WorkerStatus.LEAVING)
    return state, kills(fenced, decision.reason)


def apply_stay(state: JobState, decision: Stay) -> Outcome:
    """It is not decided again until there is more room. To be ready, the gang writes a checkpoint,
    unless what goes is only distrusted."""
    going = [number for number in decision.workers if number in state.workers]
    goes = _deadline_s(state, going) < float("inf")
    asked = state.checkpoint_asked or goes
    return replace(
        state, staying=decision.workers, stayed_s=decision.at_s, checkpoint_asked=asked
    ), ()


def let_go(state: JobState) -> Outcome:
    """A gang trains without those who were to leave, or whose nodes are too small: they end."""
    there = {
        number for node in avoided_nodes(state) for number in state.workers.on_node(node)
    }.union(worker.number for worker in surplus(state))
    numbers = [
        number
        for number in sorted(there)
        if number not in state.positions
        and state.workers[number].status is not WorkerStatus.LEAVING
    ]
    gone = tuple(state.workers[number] for number in numbers)
    state = with_status(state, tuple(worker.number for worker in gone), WorkerStatus.LEAVING)
    return state, kills(gone, "the gang trains without this node")


def _decide_others(
    state: JobState, going: tuple[int, ...], left_s: float, step_s: float
) -> Gather | Fence | LookAgain | None:
    """Start those who take over, as long as there is time to wait for them."""
    wanted = min(len(state.members), state.spec.workers.replicas, room(state))
    if left_s < 2 * step_s or state.failed_hires:
        return None
    if num_staying(state) < wanted:
        return decide_gather(state, why(state, going))
    starting = decide_starting(state)
    if isinstance(starting, LookAgain):  # or until it is time to go without them
        last_s = _deadline_s(state, going) - 2 * step_s
        return LookAgain(min(starting.at_s, max(last_s, state.now_s)))
    return starting


def _decide_homes(state: JobState, going: tuple[int, ...]) -> Protect | Stay | Drain | LookAgain:
    """Give units that only those who leave are homes of another one, then pause."""
    assert state.job is not None, "no job was submitted"
    assert state.plan is not None, "a gang that trains has a plan"
    if state.protect is not None:  # it takes effect within a step or two, and that is progress
        return LookAgain(state.now_s + SETTLE_S)
    places = frozenset(state.positions[number] for number in going)
    alone = confined(state.plan, places)
    if not alone:
        return _drain(state, going)
    inventory = state.job.inventory
    better = restore_protection(state.plan, state.job.spec, inventory, leaving=places)
    if overfull_nodes(state, better):
        better = evacuate(state.plan, inventory, places)
    overfull = overfull_nodes(state, better)
    if confined(better, places) or overfull:
        because = f"no other member can keep {plural(len(alone), 'unit')}"
        return _stay(state, going, because + (f": {in_words(overfull[0])}" if overfull else ""))
    reason = f"{plural(len(alone), 'unit')} get a home elsewhere: {why(state, going)}"
    return protect_with(state, better, len(alone), reason)


def _drain(state: JobState, going: tuple[int, ...]) -> Drain:
    return Drain(state.now_s, state.generation, state.next_command, "leave", why(state, going))


def _stay(state: JobState, going: tuple[int, ...], because: str) -> Stay:
    reason = f"{why(state, going)}; {workers_named(going)} train on all the same: {because}"
    return Stay(state.now_s, going, reason)


def why(state: JobState, going: Collection[int]) -> str:
    """Why members leave, as a sentence."""
    causes = []
    for node in sorted({state.workers[number].node for number in going}):
        leaving = state.leaving.get(node)
        if leaving is not None:
            causes.append(f"node {node} goes away ({leaving.evidence})")
        elif node in shunned_nodes(state):
            causes.append(f"node {node} is in quarantine")
    alone = [number for number in going if number in state.leaving_workers]
    if alone:
        told = listed(sorted({state.leaving_workers[number].evidence for number in alone}))
        were = "was" if len(alone) == 1 else "were"
        causes.append(f"{workers_named(alone)} {were} told to end ({told})")
    return ", and ".join(causes)


def _deadline_s(state: JobState, going: Collection[int]) -> float:
    """When the first of them may be gone."""
    deadlines = [
        leaving.deadline_s
        for number in going
        for leaving in (
            state.leaving_workers.get(number),
            state.leaving.get(state.workers[number].node),
        )
        if leaving is not None
    ]
    return min(deadlines, default=float("inf"))

"""Nodes, workers and room: who is there, and how many more could be."""

import heapq

from elasticmoe.controller.avoided import (
    avoided_nodes,
    limits,
    next_end_s,
    num_staying,
    num_wanted,
    with_limits,
)
from elasticmoe.controller.casualties import (
    add_casualties,
    death_of,
    decide_fence_silent,
    is_needed,
    noted,
)
from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import Casualty, Fence, Gather, LookAgain, Stop
from elasticmoe.controller.ending import decide_stop
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.recovery import backoff_s
from elasticmoe.controller.state import (
    START_PATIENCE_S,
    JobState,
    Node,
    Outcome,
    Worker,
    WorkerStatus,
    counted,
    having,
    ignored,
    stale,
    with_status,
)
from elasticmoe.controller.vaults import with_report, without_node
from elasticmoe.controller.wording import listed, plural, workers_named
from elasticmoe.messages.commands import KillWorkers, StartWorkers
from elasticmoe.messages.events import NodeLost, NodeUp, WorkerDied
from elasticmoe.messages.worker import WorkerReady


def node_up(state: JobState, event: NodeUp) -> Outcome:
    """A node is there, new or again."""
    node = Node(
        event.node, event.domain, event.host, event.capacity, event.memory_bytes,
        event.num_devices,
    )  # fmt: skip
    known = state.nodes.get(event.node)
    if known == node:
        return state, ()
    most = {name: one for name, one in state.limits.most.items() if name != event.node}
    return replace(
        state,
        nodes={**state.nodes, event.node: node},
        limits=replace(state.limits, most=most),
        capacity_changed_s=event.at_s,
    ), ()


def node_lost(state: JobState, event: NodeLost) -> Outcome:
    """A node is gone with all its workers."""
    if event.node not in state.nodes:
        return stale(state)
    lost = [state.workers[number] for number in state.workers.on_node(event.node)]
    casualties = [
        Casualty("node_lost", worker.number, event.node, event.evidence)
        for worker in lost
        if worker.status is not WorkerStatus.LEAVING
    ]
    state = replace(
        state,
        nodes={name: node for name, node in state.nodes.items() if name != event.node},
        leaving={name: one for name, one in state.leaving.items() if name != event.node},
    )
    state = without_node(counted(state, nodes_lost=1), event.node)
    return _without(state, tuple(lost), tuple(casualties)), ()


def worker_died(state: JobState, event: WorkerDied) -> Outcome:
    """A worker's process has ended."""
    worker = state.workers.get(event.worker)
    if worker is None:
        return stale(state)
    if worker.status is not WorkerStatus.STARTING:
        state = with_report(state, event.worker, event.node, event.copies)
    if worker.status is WorkerStatus.LEAVING:  # it has been answered, or will be, as what it said
        told = tuple(
            replace(casualty, log=casualty.log or event.log)
            if casualty.worker == event.worker
            else casualty
            for casualty in state.casualties
        )
        return _without(replace(state, casualties=told), (worker,), ()), ()
    casualty = death_of(state, event)
    if casualty.code:
        state = noted(state, casualty.step, casualty.code)
    return _without(state, (worker,), (casualty,)), ()


def hire_failed(state: JobState, numbers: tuple[int, ...], node: str, reason: str) -> Outcome:
    """Workers could not be started."""
    lost = [
        worker
        for worker in having(state, WorkerStatus.STARTING)
        if worker.number in numbers or (not numbers and worker.node == node)
    ]
    casualties = tuple(
        Casualty("stuck", worker.number, worker.node, f"could not be started: {reason}")
        for worker in lost
    )
    return _without(state, tuple(lost), casualties), ()


def worker_ready(state: JobState, report: WorkerReady) -> Outcome:
    """A worker's process is up."""
    worker = state.workers.get(report.worker)
    if worker is None:
        return stale(state) if report.worker < state.next_worker else ignored(state)
    if worker.status is not WorkerStatus.STARTING:
        return stale(state)
    ready = replace(worker, status=WorkerStatus.IDLE, pid=report.pid, since_s=state.now_s)
    return replace(state, workers=state.workers.with_workers((ready,))), ()


def _without(
    state: JobState, lost: tuple[Worker, ...], casualties: tuple[Casualty, ...]
) -> JobState:
    """Forget workers; whose loss matters becomes a casualty to answer."""
    gone = [worker.number for worker in lost]
    mattering = tuple(one for one in casualties if is_needed(state, one.worker))
    hires = sum(
        worker.status is not WorkerStatus.LEAVING and worker.number not in state.positions
        for worker in lost
    )
    failed_starts = dict(state.failed_starts)
    for worker in lost:
        if worker.status is WorkerStatus.STARTING:
            failed_starts[worker.node] = failed_starts.get(worker.node, 0) + 1
    state = replace(
        state,
        workers=state.workers.without(gone),
        lost_members=(*state.lost_members, *(one for one in gone if one in state.positions)),
        silent=state.silent.without(gone),
        leaving_workers=state.leaving_workers.without(gone),
        failed_starts=failed_starts,
    )
    state = add_casualties(counted(state, workers_lost=len(lost)), mattering)
    if hires and state.phase in (Phase.FORMING, Phase.TRAINING, Phase.DRAINING):
        failed = state.failed_hires + 1
        wait_s = backoff_s(failed, max(state.spec.protection.restart_backoff_s, 1.0))
        state = replace(state, failed_hires=failed, grow_after_s=state.now_s + wait_s)
    return state


def free_places(state: JobState) -> dict[str, int]:
    """Workers that could be started, per node."""
    there = state.workers.by_node  # a gang that waits to grow asks at every event: no calls here
    free = {
        name: max(node.capacity - len(there.get(name, ())), 0) for name, node in state.nodes.items()
    }
    for name, most in limits(state).items():
        if name not in free:  # it was kept away from, and is gone: all others are as they were
            continue
        free[name] = min(free[name], max(most - len(there.get(name, ())), 0))
    return {**free, **dict.fromkeys(avoided_nodes(state), 0)}


def free_on(state: JobState, node: str) -> int:
    """Workers that could be started on a node; none, if the job keeps away from it."""
    known = state.nodes.get(node)
    if known is None or node in avoided_nodes(state):
        return 0
    places = min(known.capacity, limits(state).get(node, known.capacity))
    return max(places - len(state.workers.on_node(node)), 0)


def room(state: JobState) -> int:
    """Living workers and those that could be started, on nodes that are not avoided and within the
    limits."""
    return num_staying(state) + sum(free_places(state).values())


def plan_hires(state: JobState, count: int) -> tuple[tuple[int, str], ...]:
    """Number new workers and spread them: each goes to the node with the fewest, to one that had
    too little memory before only if no other has room."""
    free, small = free_places(state), state.limits.most
    used = {name: len(state.workers.on_node(name)) for name in free if free[name]}
    nodes = [(name in small, used[name], name) for name in used]
    heapq.heapify(nodes)
    hires: list[tuple[int, str]] = []
    while nodes and len(hires) < count:
        is_small, taken, name = heapq.heappop(nodes)
        hires.append((state.next_worker + len(hires), name))
        if taken + 1 < used[name] + free[name]:
            heapq.heappush(nodes, (is_small, taken + 1, name))
    return tuple(hires)


def decide_gather(state: JobState, reason: str) -> Gather:
    """Have as many workers as are wanted and fit."""
    target = min(num_wanted(state), room(state))
    missing = target - num_staying(state)
    return Gather(state.now_s, target, plan_hires(state, missing), reason)


def decide_waiting(state: JobState) -> Gather | Fence | Stop | LookAgain | None:
    """Begin once there is room for all, or room for enough has been stable for a while."""
    if state.stops:
        return decide_stop(state)
    silent = decide_fence_silent(state)
    if silent is not None:
        return silent
    workers = state.spec.workers
    fitting = room(state)
    if limits(state) and min(fitting, num_wanted(state)) <= num_staying(state):  # they do not fit
        end_s = next_end_s(state)
        return None if end_s is None else LookAgain(end_s)
    if fitting >= workers.replicas:
        return decide_gather(state, f"there is room for the {workers.replicas} workers wanted")
    if fitting < workers.min:
        return None
    settled_s = state.capacity_changed_s + workers.settle_s
    if state.now_s < settled_s:
        return LookAgain(settled_s)
    return decide_gather(
        state, f"there is room for {fitting} of {workers.replicas} workers wanted, enough to begin"
    )


def decide_starting(state: JobState) -> Fence | LookAgain | None:
    """Give up on workers that do not become ready."""
    first = state.workers.first(WorkerStatus.STARTING)
    if first is None:
        return None
    end_s = max(first.since_s, state.since_s) + START_PATIENCE_S  # lower numbers started earlier
    if state.now_s < end_s:
        return LookAgain(end_s)
    begun_s = state.now_s - START_PATIENCE_S
    late = tuple(
        worker.number
        for worker in having(state, WorkerStatus.STARTING)
        if max(worker.since_s, state.since_s) <= begun_s or worker is first
    )
    reason = f"{workers_named(late)} not ready {START_PATIENCE_S:g} s after the start"
    return Fence(state.now_s, late, reason)


def apply_gather(state: JobState, decision: Gather) -> Outcome:
    """Start the missing workers."""
    state = with_limits(state, dict(decision.limits))
    hired = {
        number: Worker(number, node, WorkerStatus.STARTING, decision.at_s)
        for number, node in decision.hires
    }
    state = replace(
        state,
        workers=state.workers.with_workers(hired.values()),
        next_worker=max([state.next_worker, *(number + 1 for number in hired)]),
    )
    return state, starts(tuple(hired.values()))


def apply_fence(state: JobState, decision: Fence) -> Outcome:
    """Kill workers; in a phase that waits for them they are casualties too."""
    fenced = tuple(state.workers[number] for number in decision.workers if number in state.workers)
    answering = state.phase is Phase.GATHERING
    if state.phase in (Phase.GATHERING, Phase.BREAKING):
        named = {one.worker for one in state.casualties if one.kind != "parked"}
        late = "did not start in time" if answering else "did not leave its generation in time"
        text = decision.text or f"{late} and was killed"
        stuck = tuple(
            Casualty("stuck", worker.number, worker.node, text)
            for worker in fenced
            if worker.number not in named
        )
        state = add_casualties(state, stuck)
    state = with_status(state, decision.workers, WorkerStatus.LEAVING)
    return state, kills(fenced, decision.reason)


def starts(workers: tuple[Worker, ...]) -> tuple[StartWorkers, ...]:
    """One command per node."""
    return tuple(StartWorkers(node, numbers) for node, numbers in _by_node(workers))


def kills(workers: tuple[Worker, ...], reason: str) -> tuple[KillWorkers, ...]:
    """One command per node."""
    return tuple(KillWorkers(node, numbers, reason) for node, numbers in _by_node(workers))


def gathered(decision: Gather) -> str:
    """A sentence about the workers that are started."""
    if not decision.hires:
        return decision.reason
    nodes = sorted({node for _, node in decision.hires})
    who = workers_named([number for number, _ in decision.hires])
    where = (
        f"node {nodes[0]}"
        if len(nodes) == 1
        else (f"nodes {listed(nodes)}" if len(nodes) <= 4 else plural(len(nodes), "node"))
    )
    return f"starting {who} on {where}: {decision.reason}"


def _by_node(workers: tuple[Worker, ...]) -> list[tuple[str, tuple[int, ...]]]:
    found: dict[str, list[int]] = {}
    for worker in workers:
        found.setdefault(worker.node, []).append(worker.number)
    return [(node, tuple(sorted(numbers))) for node, numbers in sorted(found.items())]

"""Who takes the place of a dead member, or reads what it left: a worker of its node."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from elasticmoe.controller.avoided import avoided_nodes
from elasticmoe.controller.capacity import free_on
from elasticmoe.controller.casualties import repeated_failure
from elasticmoe.controller.copies import has_progress, suppliable
from elasticmoe.controller.decisions import Gather
from elasticmoe.controller.snapshots import find_snapshot
from elasticmoe.controller.state import LIVING, JobState, WorkerStatus, having
from elasticmoe.controller.vaults import shortage, usable
from elasticmoe.controller.wording import described, workers_named
from elasticmoe.messages.worker import Copies

FAILED_STARTS: Final = 2
"""Workers that died on a node before they were ready: no more are started there for this fault."""


@dataclass(frozen=True, slots=True)
class Replacements:
    """How the dead members of the current generation can be replaced."""

    found: tuple[tuple[int, int], ...]
    """(dead member, worker of its node that is there already)."""
    hires: tuple[tuple[int, str], ...]
    """(number, node) of workers that must be started first."""
    refusal: str
    """Why not all of them can be; empty: they can."""


def dead_members(state: JobState) -> tuple[int, ...]:
    """Members of the current generation that will not be in the next one, ascending."""
    leaving = state.workers.having(WorkerStatus.LEAVING)
    ending = [worker.number for worker in leaving if worker.number in state.positions]
    return tuple(sorted({*state.lost_members, *ending}))


def find_replacements(state: JobState) -> Replacements:
    """Match every dead member with a worker of its node that is in no generation, or a new one."""
    assert state.plan is not None, "without a generation nobody is a member"
    dead: dict[str, list[int]] = {}
    for number in dead_members(state):
        dead.setdefault(state.plan.members[state.positions[number]].node, []).append(number)
    found: list[tuple[int, int]] = []
    hires: list[tuple[int, str]] = []
    refusals: list[str] = []
    for node, numbers in sorted(dead.items()):
        waiting = _outsiders(state, node)
        lacking = 0
        for number in numbers:
            outsider = next(waiting, None)
            if outsider is None:
                lacking += 1
            else:
                found.append((number, outsider))
        hires += [(state.next_worker + len(hires) + n, node) for n in range(lacking)]
        refusals.append(_refusal(state, node, lacking))
    return Replacements(tuple(found), tuple(hires), next(filter(None, refusals), ""))


def can_start(state: JobState, node: str) -> bool:
    """Whether a worker can be started on a node, or one starts there already."""
    there = [state.workers[number].status for number in state.workers.on_node(node)]
    if WorkerStatus.STARTING in there:
        return True
    return free_on(state, node) > 0 and state.failed_starts.get(node, 0) < FAILED_STARTS


def find_deserted(state: JobState, step: int, *, is_snapshot: bool = False) -> tuple[str, ...]:
    """Nodes where nobody is ready and whose vaults hold what no other node has: somebody must be
    started there, because a vault is read on its own node only.

    Args:
        step: committed steps to go on from.
        is_snapshot: they are those of a snapshot that is gone back to.

    Returns:
        A few nodes that together make the memory whole, as far as workers can be started there.
    """
    assert state.job is not None, "no job was submitted"
    ready = {worker.node for worker in having(state, WorkerStatus.IDLE)}
    if is_snapshot:
        return _with_parts_of_snapshot(state, step, ready)
    if all(node in ready for _, node, _ in usable(state)):
        return ()
    if not shortage(state, step, frozenset(ready)):
        return ()
    left: dict[str, list[Copies]] = {}
    there, has_counters = set[int](), False
    for _, node, copies in usable(state):
        if node not in ready:
            left.setdefault(node, []).append(copies)
            continue
        there.update(*suppliable(copies, step))
        has_counters = has_counters or has_progress(copies, step)
    deserted = []
    for node in sorted(left):
        brings = set[int]().union(*(units for one in left[node] for units in suppliable(one, step)))
        counts = not has_counters and any(has_progress(one, step) for one in left[node])
        if (counts or brings - there) and can_start(state, node):
            deserted.append(node)
            there |= brings
            has_counters = has_counters or counts
    return tuple(deserted)


def _with_parts_of_snapshot(state: JobState, step: int, ready: set[str]) -> tuple[str, ...]:
    holding = {
        node for _, node, copies in usable(state) if step in [one.step for one in copies.snapshots]
    }
    found: list[str] = []
    for node in sorted(holding - ready):
        if find_snapshot(state, frozenset({*ready, *found}), step) == step:
            break
        if can_start(state, node):
            found.append(node)
    return tuple(found)


def decide_early_start(state: JobState) -> Gather | None:
    """Start replacements as soon as a death is known, while the survivors still park.

    If it turns out that they are not needed, they are spare workers.
    """
    protection = state.spec.protection
    if not state.lost_members or "replace" in protection.skip_rungs:
        return None
    if state.attempts >= protection.max_restarts or repeated_failure(state) is not None:
        return None
    replacements = find_replacements(state)
    if replacements.refusal or not replacements.hires:
        return None
    return replacing(state, replacements, described(state.casualties))


def replacing(state: JobState, replacements: Replacements, why: str) -> Gather:
    """Start the workers that are missing."""
    workers = state.workers.count(*LIVING) + len(replacements.hires)
    reason = f"{why}; {workers_named(state.lost_members)} can be replaced in place"
    return Gather(state.now_s, workers, replacements.hires, reason)


def _outsiders(state: JobState, node: str) -> Iterator[int]:
    """Workers of a node that are in no generation, those that are ready first."""
    there = [state.workers[number] for number in state.workers.on_node(node)]
    for status in (WorkerStatus.IDLE, WorkerStatus.STARTING):
        for worker in there:
            if worker.status is status and worker.number not in state.positions:
                yield worker.number


def _refusal(state: JobState, node: str, lacking: int) -> str:
    if node not in state.nodes:
        return f"node {node} is gone"
    if lacking and node in avoided_nodes(state):
        return f"node {node} gets no workers"
    if lacking > free_on(state, node):
        return f"there is no room on node {node}"
    if lacking and state.failed_starts.get(node, 0) >= FAILED_STARTS:
        return f"workers do not start on node {node}"
    return ""

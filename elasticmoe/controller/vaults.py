"""What is known of the workers' memory: who reported it, where it is, and when it is given up."""

from collections.abc import Iterable, Iterator

from elasticmoe.controller.changing import replace
from elasticmoe.controller.copies import (
    Settled,
    count_missing,
    has_progress,
    settle_step,
)
from elasticmoe.controller.number_map import NumberMap
from elasticmoe.controller.state import JobState, KnownVault, Worker, WorkerStatus, having
from elasticmoe.messages.commands import ForgetVaults
from elasticmoe.messages.worker import Copies, GangEnded


def with_report(state: JobState, owner: int, node: str, copies: Copies | None) -> JobState:
    """Note what a vault holds; a report that says nothing does not outdate one that did.

    Who was told to take over a dead worker's vault and now reports copies has done so.
    """
    known = state.vaults.get(owner)
    if copies is None and known is not None:
        return state
    vaults = state.vaults.with_item(owner, KnownVault(node, copies))
    if copies is not None and copies.generation >= state.memory_since:
        memory = state.form.memory if state.form else None
        taken_over = [
            dead
            for heir, dead in (memory.heirs if memory else ())
            if heir == owner and dead in vaults
        ]
        vaults = vaults.without(taken_over)
    state = replace(state, vaults=vaults)
    if copies is not None and copies.generation == state.generation:
        furthest = max([copies.prepared, copies.voted, *(step for step, _ in copies.whole)])
        return reopened(state, furthest)
    return state


def reopened(state: JobState, step: int, *, in_step: bool = True) -> JobState:
    """Let the step be decided anew if the generation has trained before all its members were
    heard: then all of them have joined it, and what was before is history.

    Args:
        step: a step that was at least prepared in the current generation.
        in_step: whether the generation was in the middle of one.
    """
    settled_step = state.settled_step
    unheard = settled_step is not None and state.generation > state.settled_in
    if not unheard or settled_step is None or step <= settled_step:
        return state
    outage = replace(state.outage, in_step=in_step) if state.outage else None
    return replace(state, settled_step=None, memory_since=state.generation, outage=outage)


def without_node(state: JobState, node: str) -> JobState:
    """A node is gone with all vaults on it."""
    gone = [owner for owner, vault in state.vaults.items() if vault.node == node]
    return replace(state, vaults=state.vaults.without(gone)) if gone else state


def bequeathed(state: JobState, heirs: tuple[tuple[int, int], ...]) -> JobState:
    """Note who was told to take over whose vault."""
    bound = [
        (dead, replace(state.vaults[dead], heir=heir))
        for heir, dead in heirs
        if dead in state.vaults
    ]
    return replace(state, vaults=state.vaults.with_items(bound)) if bound else state


def with_ended(state: JobState, numbers: Iterable[int]) -> JobState:
    """Members that came to the end of their gang hold all units they are homes of, whole.

    They wait and report no more, so that it is written down what their end says.

    Args:
        numbers: some of `state.ended`.
    """
    ended = [
        state.workers[number]
        for number in numbers
        if number in state.workers and state.workers[number].status is WorkerStatus.IDLE
    ]
    if state.plan is None or not ended:
        return state
    if not state.homed:
        units: dict[int, list[int]] = {}
        for unit, homes in enumerate(state.plan.homes):
            for position in homes:
                units.setdefault(position, []).append(unit)
        state = replace(state, homed=NumberMap({at: tuple(held) for at, held in units.items()}))
    reports = [(worker.number, KnownVault(worker.node, _at_end(state, worker))) for worker in ended]
    state = replace(state, vaults=state.vaults.with_items(reports))
    return reopened(state, max(state.ended[worker.number] for worker in ended), in_step=False)


def with_snapshots(state: JobState, report: GangEnded) -> JobState:
    """Note the snapshots of a member that came to the end of its gang; what else it holds is
    written down if the gang breaks then."""
    worker = state.workers.get(report.worker)
    if worker is None or not report.snapshots:
        return state
    step = report.step
    copies = Copies(report.worker, report.generation, step, step, step, whole=())
    known = KnownVault(worker.node, replace(copies, snapshots=report.snapshots))
    return replace(state, vaults=state.vaults.with_item(report.worker, known))


def _at_end(state: JobState, worker: Worker) -> Copies:
    step = state.ended[worker.number]
    held = state.homed.get(state.positions[worker.number], ())
    known = state.vaults.get(worker.number)
    snapshots = known.copies.snapshots if known is not None and known.copies is not None else ()
    return Copies(
        worker=worker.number,
        generation=state.generation,
        step=step,
        prepared=step,
        voted=step,
        whole=((step, held),) if held else (),
        snapshots=snapshots,
    )


def given_up(state: JobState) -> tuple[JobState, tuple[ForgetVaults, ...]]:
    """All reports are outdated, and the vaults of the dead of no use any more."""
    dead: dict[str, list[int]] = {}
    for owner, vault in state.vaults.items():
        if owner not in state.workers and vault.node in state.nodes:
            dead.setdefault(vault.node, []).append(owner)
    commands = tuple(ForgetVaults(node, tuple(dead[node])) for node in sorted(dead))
    state = replace(
        state, vaults=state.vaults.without(state.vaults), forgotten=commands or state.forgotten
    )
    return state, commands


def settled(state: JobState) -> Settled | None:
    """Which step to go on from in memory: decided once per outage, over all copies that survive."""
    if state.settled_step is not None:
        return Settled(state.settled_step, False, "it was decided before", state.settled_step)
    evidence = [vault.copies for vault in state.vaults.values() if is_current(state, vault)]
    return settle_step((one for one in evidence if one is not None), state.committed_step)


def is_current(state: JobState, vault: KnownVault) -> bool:
    """Whether a vault holds the present history, not one that was given up."""
    return vault.copies is not None and vault.copies.generation >= state.memory_since


def usable(state: JobState) -> Iterator[tuple[int, str, Copies]]:
    """Vaults that nobody works in: of the dead, and of workers that wait. Owner, node, copies."""
    others = [status for status in WorkerStatus if status is not WorkerStatus.IDLE]
    working = {worker.number for worker in having(state, *others)}
    for owner, vault in state.vaults.items():
        if owner in working:
            continue
        if vault.copies is not None and is_current(state, vault):
            yield owner, vault.node, vault.copies


def shortage(state: JobState, step: int, nodes: frozenset[str]) -> str:
    """What of a step's state is not in the memory of some nodes; empty: it is all there.

    Args:
        step: committed steps.
        nodes: a vault can be read by workers of its own node only.
    """
    assert state.job is not None, "no job was submitted"
    there = [copies for _, node, copies in usable(state) if node in nodes]
    first, missing = count_missing(there, step, len(state.job.inventory.units))
    if missing:
        more = f" and {missing - 1} more" if missing > 1 else ""
        return f"no whole copy of unit {first}{more} at step {step}"
    if not any(has_progress(copies, step) for copies in there):
        return f"no copy of the routing bias and counters of step {step}"
    return ""

"""Snapshots in host memory: when to take them, and whether one can be gone back to."""

from collections.abc import Iterable
from math import inf, sqrt
from typing import Final

from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import LookAgain, TakeSnapshot
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Progress
from elasticmoe.controller.state import JobState, Outcome
from elasticmoe.controller.vaults import usable
from elasticmoe.messages.commands import InstructGang
from elasticmoe.messages.worker import Copies

UNMEASURED_S: Final = 1.0
"""What a snapshot is thought to cost before one was measured."""
LONGEST_INTERVAL_S: Final = 3600.0
UNMEASURED_EXPOSURE_S: Final = 60.0
"""How long a unit is thought to lack a home after the loss of a node, before that was measured."""


def decide_snapshot(state: JobState) -> TakeSnapshot | LookAgain | None:
    """Take one as soon as a gang trains, and then whenever the interval is over."""
    due = look_for_snapshot(state)
    if due is None or state.now_s < due.at_s:
        return due
    reason = "the gang has no snapshot yet"
    if state.snapshots.taken_s is not None:
        reason = f"one is due every {interval_s(state):.3g} s"
    return TakeSnapshot(state.now_s, state.generation, state.next_command, reason)


def look_for_snapshot(state: JobState) -> LookAgain | None:
    """When the next one is due; none if none is wanted, or one is being taken."""
    snapshots, training = state.snapshots, state.phase is Phase.TRAINING
    wanted = training and state.spec.protection.takes_snapshots and snapshots.asked is None
    if not wanted or state.plan is None:
        return None
    if len({member.node for member in state.plan.members}) < 2:
        return None  # there is no other memory to keep them in
    if snapshots.taken_s is None:
        return LookAgain(state.now_s)
    return LookAgain(snapshots.taken_s + interval_s(state))


def apply_take_snapshot(state: JobState, decision: TakeSnapshot) -> Outcome:
    """Instruct the gang."""
    snapshots = replace(state.snapshots, asked=decision.number)
    state = replace(state, snapshots=snapshots, next_command=decision.number + 1)
    return state, snapshot_commands(state)


def snapshot_commands(state: JobState) -> tuple[InstructGang, ...]:
    """What the gang was told and has not done yet; said again after a restart."""
    asked = state.snapshots.asked
    return () if asked is None else (InstructGang(state.generation, asked, "snapshot"),)


def snapshot_taken(state: JobState, entry: Progress) -> JobState:
    """Note that the gang has taken its snapshot, if it has, and what one costs."""
    snapshots = state.snapshots
    if entry.snapshot_s:
        snapshots = replace(snapshots, cost_s=entry.snapshot_s)
    if snapshots.asked is not None and entry.instructed >= snapshots.asked:
        at_s = entry.arrivals[0] if entry.arrivals else entry.at_s
        snapshots = replace(snapshots, asked=None, taken_s=at_s)
    return replace(state, snapshots=snapshots)


def interval_s(state: JobState) -> float:
    """Time between two snapshots, s: what they cost together with what is redone is least.

    Source: Young 1974, doi:10.1145/361147.361115: sqrt(2 x cost x mean time between the failures
    that a snapshot is needed for).
    """
    protection = state.spec.protection
    if protection.snapshot_interval_s is not None:
        return protection.snapshot_interval_s
    cost_s = state.snapshots.cost_s or UNMEASURED_S
    return min(sqrt(2 * cost_s / unrecoverable_rate(state)), LONGEST_INTERVAL_S)


def unrecoverable_rate(state: JobState) -> float:
    """Losses per second that no home survives.

    Nodes are lost at the rate that was expected, corrected by what happened to this job (the mean
    of a gamma distribution that begins with one loss in `node_mtbf_h`). With r homes per unit,
    r - 1 more nodes of the same copyset must go before protection is restored.
    """
    protection, nodes = state.spec.protection, max(len(state.nodes), 1)
    node_seconds = nodes * max(state.now_s - state.submitted_s, 0.0)
    lost = state.tally.nodes_lost
    rate = (1 + lost) / (protection.node_mtbf_h * 3600.0 + node_seconds)
    exposure_s = state.tally.exposed_s / lost if lost and state.tally.exposed_s else 0.0
    again = min(rate * (exposure_s or UNMEASURED_EXPOSURE_S), 1.0)
    return nodes * rate * again ** (protection.redundancy - 1)


def find_snapshot(state: JobState, nodes: frozenset[str], most: float = inf) -> int | None:
    """Committed steps of the newest snapshot that is whole in the memory of some nodes.

    Args:
        nodes: a vault can be read by workers of its own node only.
        most: of a later step than this one none is wanted.
    """
    assert state.job is not None, "no job was submitted"
    there = [copies for _, node, copies in usable(state) if node in nodes]
    steps = {one.step for copies in there for one in copies.snapshots if one.step <= most}
    num_units = len(state.job.inventory.units)
    whole = (step for step in sorted(steps, reverse=True) if is_whole(there, step, num_units))
    return next(whole, None)


def is_whole(copies: Iterable[Copies], step: int, num_units: int) -> bool:
    """Whether every unit of a snapshot is there, or can be made from a parity."""
    there = bytearray(num_units)
    parities: list[tuple[int, ...]] = []
    for vault in copies:
        for snapshot in vault.snapshots:
            if snapshot.step == step:
                parities += snapshot.parities
                for unit in snapshot.whole:
                    there[unit] = 1
    for group in parities:
        lacking = [unit for unit in group if not there[unit]]
        if len(lacking) == 1:
            there[lacking[0]] = 1
    return all(there)


def as_of_snapshot(copies: Copies, step: int) -> Copies:
    """What a vault can supply of a snapshot, as if that were its state."""
    found = [snapshot for snapshot in copies.snapshots if snapshot.step == step]
    return replace(
        copies,
        step=step if found else -1,
        prepared=0,
        voted=0,
        whole=tuple((step, snapshot.whole) for snapshot in found),
        torn=(),
        snapshots=tuple(found),
    )

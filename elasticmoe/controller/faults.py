"""From the first sign of a fault to the decision how to go on."""

from math import inf

from elasticmoe.controller import vaults
from elasticmoe.controller.avoided import surplus, with_limits
from elasticmoe.controller.capacity import free_places, kills
from elasticmoe.controller.casualties import decide_fence_silent, last_update, repeated_failure
from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import (
    Break,
    Casualty,
    Fence,
    Gather,
    GiveUp,
    LookAgain,
    Quarantine,
    Recover,
    Stop,
    Wait,
)
from elasticmoe.controller.ending import decide_stop
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.protecting import no_longer_exposed
from elasticmoe.controller.quarantine import decide_quarantine, suspected
from elasticmoe.controller.recovery import MOST_RETRIES, Damage, decide_recovery
from elasticmoe.controller.replacing import (
    can_start,
    dead_members,
    decide_early_start,
    find_replacements,
)
from elasticmoe.controller.snapshots import find_snapshot
from elasticmoe.controller.state import (
    LIVING,
    PARK_PATIENCE_S,
    REAP_PATIENCE_S,
    SEAL_PATIENCE_S,
    SETTLE_S,
    STALLED_PATIENCE_S,
    FirstError,
    JobState,
    Outage,
    Outcome,
    WorkerStatus,
    counted,
    having,
    with_status,
)
from elasticmoe.controller.vaults import given_up, settled, shortage, with_ended
from elasticmoe.controller.wording import described, is_cause, workers_named
from elasticmoe.messages.commands import BreakGeneration, Command
from elasticmoe.messages.worker import STEPS_SKIPPED
from elasticmoe.plan.memory import Overfull
from elasticmoe.spec.job import Rung


def decide_break(state: JobState, evidence: tuple[Casualty, ...]) -> Break:
    """End the generation at the first sign: never count on the fault to reach everybody."""
    return Break(state.now_s, state.generation, evidence, described(evidence))


def decide_breaking(
    state: JobState,
) -> Fence | Gather | Quarantine | Recover | Wait | GiveUp | Stop | LookAgain:
    """Wait until every member is accounted for, kill who is stuck, then choose a rung."""
    if state.stops:
        return decide_stop(state, described(state.casualties))
    at_once = decide_fence_silent(state) or decide_early_start(state) or _decide_waiting(state)
    if at_once is not None:
        return at_once
    cause_is_known = any(map(is_cause, state.casualties))
    if not cause_is_known and state.now_s < state.since_s + SETTLE_S:
        return LookAgain(state.since_s + SETTLE_S)
    suspect = _find_suspect(state)
    if suspect is not None:
        reason = f"{workers_named((suspect,))} looks worst after {MOST_RETRIES} retries"
        return Fence(state.now_s, (suspect,), reason, "could not be trained with and was killed")
    quarantine = decide_quarantine(state)
    if quarantine is not None:
        return quarantine
    decision = decide_recovery(survey(state))
    loses = isinstance(decision, GiveUp) or decision.redo_steps > 0
    sealing = any(seal.generation == state.generation for seal in state.sealing)
    if loses and sealing and state.now_s < state.since_s + SEAL_PATIENCE_S:
        return LookAgain(state.since_s + SEAL_PATIENCE_S)
    return decision


def survey(
    state: JobState,
    refused_rungs: tuple[tuple[Rung, str], ...] = (),
    crowded: Overfull | None = None,
) -> Damage:
    """Everything that a recovery is decided upon.

    Args:
        refused_rungs: those that turned out not to work, and why.
        crowded: a node that has too little memory for any layout that was made.
    """
    protection, workers = state.spec.protection, state.spec.workers
    dead = dead_members(state)
    nodes, left = _nodes_of_members(state, set(dead))
    readable = left | _deserted(state, left)
    snapshot_step = find_snapshot(state, readable, _newest_wanted(state))
    refused = _refused(state, snapshot_step)
    usable = [checkpoint for checkpoint in state.checkpoints if checkpoint.uri not in refused]
    kept = settled(state) if state.plan is not None else None
    lacking = shortage(state, kept.step, nodes) if kept else ""
    return Damage(
        at_s=state.now_s,
        casualties=state.casualties,
        members=len(state.members),
        dead=dead,
        irreplaceable=find_replacements(state).refusal if dead else "",
        settled=kept,
        in_step=state.outage is not None and state.outage.in_step,
        shortage=lacking,
        survivors_shortage=shortage(state, kept.step, readable)
        if kept and readable != nodes
        else lacking,
        snapshot_step=snapshot_step,
        distrusted=_distrusted(state),
        refused_rungs=refused_rungs,
        retries=state.retries,
        survivors=state.workers.count(*LIVING),
        free_places=sum(free_places(state).values()),
        wanted=workers.replicas,
        minimum=workers.min,
        committed_step=max(state.committed_step, kept.proven if kept else 0),
        newest=usable[-1] if usable else None,
        refused=refused,
        ever_saved=state.ever_saved,
        repeated=repeated_failure(state),
        attempts=state.attempts,
        max_restarts=protection.max_restarts,
        backoff_s=protection.restart_backoff_s,
        first_error=state.first_error or _first_error(state.casualties, refused_rungs),
        skip_rungs=protection.skip_rungs,
        crowded=crowded,
    )


def apply_break(state: JobState, decision: Break) -> Outcome:
    """Tell the survivors."""
    trained = state.phase is not Phase.FORMING
    outage = state.outage or Outage(
        decision.at_s, members=len(state.members), in_step=trained and not state.ended
    )
    state = no_longer_exposed(counted(state, faults=1), decision.at_s)
    state = replace(
        with_ended(state, state.ended),
        casualties=decision.evidence,
        drain=None,
        outage=outage,
    )
    peer_died = all(one.kind in ("died", "node_lost") for one in decision.evidence)
    return state, (BreakGeneration(decision.generation, decision.reason, peer_died),)


def apply_recover(state: JobState, decision: Recover) -> Outcome:
    """Note what the recovery was for; the next phase gathers workers."""
    from_memory = decision.rung != "checkpoint"
    state, commands = _answered(state, decision, from_memory=from_memory)
    is_retry = decision.rung == "retry"
    stalled = any(casualty.kind == "stalled" for casualty in decision.evidence)
    doublings = state.pace.doublings + stalled
    workers = state.spec.workers
    state = replace(
        state,
        rung=decision.rung,
        attempts=decision.attempt,
        retries=state.retries + 1 if is_retry else 0,
        retry_at_s=decision.retry_at_s,
        pace=replace(state.pace, doublings=doublings),
        grow_after_s=max(state.grow_after_s, decision.at_s + workers.settle_s),
    )
    return counted(state, recoveries=1, **{f"recoveries_{decision.rung}": 1}), commands


def apply_wait(state: JobState, decision: Wait) -> Outcome:
    """Nothing to do until nodes come."""
    state, commands = _answered(state, decision, from_memory=decision.from_memory)
    state = replace(state, rung="failover" if decision.from_memory else "checkpoint")
    state = with_limits(state, dict(decision.limits))
    # Nothing of theirs is needed, and others are to be started where there is more room.
    kept = state.vaults if decision.from_memory else ()
    gone = tuple(worker for worker in surplus(state) if worker.number not in kept)
    state = with_status(state, tuple(worker.number for worker in gone), WorkerStatus.LEAVING)
    return state, (*commands, *kills(gone, decision.reason))


def _decide_waiting(state: JobState) -> Fence | LookAgain | None:
    """Wait for members that have not parked, then kill them and wait for their end."""
    if state.workers.count(WorkerStatus.BUSY):
        patience_s = _park_patience_s(state)
        if state.now_s < state.since_s + patience_s:
            return LookAgain(state.since_s + patience_s)
        stuck = tuple(worker.number for worker in having(state, WorkerStatus.BUSY))
        return Fence(
            state.now_s, stuck, f"{workers_named(stuck)} did not park within {patience_s:.3g} s"
        )
    leaving = [
        worker for worker in having(state, WorkerStatus.LEAVING) if worker.number in state.positions
    ]
    if leaving:  # their deaths tell what they leave; if an agent is gone, that is told too
        reaped_s = max(max(one.since_s, state.since_s) for one in leaving) + REAP_PATIENCE_S
        if state.now_s < reaped_s:
            return LookAgain(reaped_s)
    return None


def _park_patience_s(state: JobState) -> float:
    if any(casualty.kind == "stalled" for casualty in state.casualties):
        return max(STALLED_PATIENCE_S, max(state.pace.intervals, default=0.0) / 2)
    if len(state.formed) < len(state.members):  # it loads state, or forms groups
        return PARK_PATIENCE_S
    return state.pace.patience_s(PARK_PATIENCE_S)


def _find_suspect(state: JobState) -> int | None:
    """Retries did not help: the member that is behind the others, else, of those whose
    communication failed first, one on the node with the fewest members."""
    skipped = "replace" in state.spec.protection.skip_rungs
    if state.retries < MOST_RETRIES or state.plan is None or dead_members(state) or skipped:
        return None
    entered = {
        number: vault.copies.collective
        for number, vault in state.vaults.items()
        if vault.copies is not None and number in state.positions
    }
    behind = [number for number in entered if entered[number] == min(entered.values())]
    if len(behind) == 1 < len(entered):
        return behind[0]
    signs = [one.worker for one in state.casualties if one.worker in state.positions]
    on_node = {number: len(state.workers.on_node(state.workers[number].node)) for number in signs}
    return min(signs, key=lambda number: (on_node[number], -number), default=None)


def _nodes_of_members(state: JobState, dead: set[int]) -> tuple[frozenset[str], frozenset[str]]:
    """Nodes of all members that are still there, and nodes on which a worker is ready."""
    members = state.plan.members if state.plan else ()
    every = frozenset(member.node for member in members if member.node in state.nodes)
    left = {member.node for member in members if member.worker not in dead}
    ready = {worker.node for worker in having(state, WorkerStatus.IDLE)}
    return every, frozenset(left | ready)


def _deserted(state: JobState, ready: frozenset[str]) -> frozenset[str]:
    """Other nodes with vaults, as far as a worker can be started there to read them."""
    others = {node for _, node, _ in vaults.usable(state)} - ready
    return frozenset(node for node in others if can_start(state, node))


def _answered(
    state: JobState, decision: Recover | Wait, *, from_memory: bool
) -> tuple[JobState, tuple[Command, ...]]:
    causes = (described(decision.evidence),) if decision.evidence else ()
    outage = state.outage or Outage(decision.at_s)
    if outage.in_step:
        kept = decision.step if from_memory and not decision.open_step else 0
        outage = replace(outage, in_step=False, open_step=decision.open_step, kept_step=kept)
        state = counted(state, open_steps_redone=int(decision.open_step > 0))
    state = suspected(state, decision.evidence)
    first = _first_error(decision.evidence) if decision.evidence else None
    commands: tuple[Command, ...] = ()
    # what is given up counts as committed until a generation goes back behind it
    committed = max(state.committed_step, decision.step + decision.redo_steps)
    high = max(state.high_step, decision.step)
    state = replace(state, committed_step=committed, high_step=high)
    if from_memory:
        is_new = state.settled_step is None
        state = replace(
            state,
            settled_step=decision.step,
            settled_in=state.generation if is_new else state.settled_in,
        )
    else:
        state, commands = given_up(replace(state, settled_step=None))
    state = replace(
        state,
        outage=replace(outage, causes=outage.causes + causes),
        first_error=state.first_error or first,
        checkpoints=tuple(
            checkpoint for checkpoint in state.checkpoints if checkpoint.uri not in decision.refused
        ),
        casualties=(),
        episode=state.episode + 1,
    )
    return state, commands


def _refused(state: JobState, snapshot_step: int | None) -> tuple[str, ...]:
    """The checkpoint that this generation could not load, if that is what went wrong; those with
    the very weights that no step changes any more, unless nothing else is left."""
    updated = last_update(state)
    if updated is not None:
        same = tuple(one.uri for one in state.checkpoints if one.step >= updated)
        others = snapshot_step is not None or len(same) < len(state.checkpoints)
        return same if others else ()
    start = state.form.checkpoint if state.form else None
    bad = any(casualty.code == "bad_checkpoint" for casualty in state.casualties)
    return (start,) if bad and start is not None else ()


def _newest_wanted(state: JobState) -> float:
    """No snapshot is wanted that is newer than what was decided, or that has the very weights that
    no step changes any more."""
    updated = last_update(state)
    if updated is not None:
        return updated - 1
    return inf if state.settled_step is None else state.settled_step


def _distrusted(state: JobState) -> str:
    """Why memory must not be gone on from: somebody did not find what should have been there, or
    nothing comes of what is there."""
    for casualty in state.casualties:
        if casualty.code in ("not_whole", STEPS_SKIPPED):
            return casualty.text
    return ""


def _first_error(
    casualties: tuple[Casualty, ...], refused_rungs: tuple[tuple[Rung, str], ...] = ()
) -> FirstError:
    """Where nobody was lost, a rung turned out not to work."""
    logs = [casualty.log for casualty in casualties if casualty.log]
    refusals = "; ".join(why for _, why in refused_rungs)
    return FirstError(described(casualties) if casualties else refusals, logs[0] if logs else "")

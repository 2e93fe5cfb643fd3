"""From the first sign of a fault to the decision how to go on."""

from dataclasses import replace

from elasticmoe.controller.capacity import free_places
from elasticmoe.controller.casualties import repeated_failure
from elasticmoe.controller.decisions import (
    Break,
    Casualty,
    Fence,
    GiveUp,
    LookAgain,
    Recover,
    Stop,
    Wait,
)
from elasticmoe.controller.ending import decide_stop
from elasticmoe.controller.recovery import Damage, decide_recovery
from elasticmoe.controller.state import (
    LIVING,
    PARK_PATIENCE_S,
    SEAL_PATIENCE_S,
    SETTLE_S,
    FirstError,
    JobState,
    Outage,
    Outcome,
    WorkerStatus,
    counted,
    having,
)
from elasticmoe.controller.wording import described, workers_named
from elasticmoe.messages.commands import BreakGeneration


def decide_break(state: JobState, evidence: tuple[Casualty, ...]) -> Break:
    """End the generation at the first sign: never count on the fault to reach everybody."""
    return Break(state.now_s, state.generation, evidence, described(evidence))


def decide_breaking(state: JobState) -> Fence | Recover | Wait | GiveUp | Stop | LookAgain:
    """Wait until every member is accounted for, kill who is stuck, then choose a rung."""
    if state.stops:
        return decide_stop(state, described(state.casualties))
    pending = having(state, WorkerStatus.BUSY, WorkerStatus.LEAVING)
    patience_s = (state.fenced_s if state.fenced_s is not None else state.since_s) + PARK_PATIENCE_S
    if pending and state.now_s < patience_s:
        return LookAgain(patience_s)
    if pending and state.fenced_s is None:
        stuck = tuple(worker.number for worker in pending)
        reason = f"{workers_named(stuck)} did not park within {PARK_PATIENCE_S:g} s"
        return Fence(state.now_s, stuck, reason)
    cause_is_known = any(casualty.kind != "parked" for casualty in state.casualties)
    if not cause_is_known and state.now_s < state.since_s + SETTLE_S:
        return LookAgain(state.since_s + SETTLE_S)
    sealing = any(seal.generation == state.generation for seal in state.sealing)
    if sealing and state.now_s < state.since_s + SEAL_PATIENCE_S:
        return LookAgain(state.since_s + SEAL_PATIENCE_S)
    return decide_recovery(survey(state))


def survey(state: JobState) -> Damage:
    """Everything that a recovery is decided upon."""
    protection, workers = state.spec.protection, state.spec.workers
    refused = _refused(state)
    usable = [checkpoint for checkpoint in state.checkpoints if checkpoint.uri not in refused]
    return Damage(
        at_s=state.now_s,
        casualties=state.casualties,
        survivors=len(having(state, *LIVING)),
        free_places=sum(free_places(state).values()),
        wanted=workers.replicas,
        minimum=workers.min,
        committed_step=state.committed_step,
        newest=usable[-1] if usable else None,
        refused=refused,
        ever_saved=state.ever_saved,
        repeated=repeated_failure(state),
        attempts=state.attempts,
        max_restarts=protection.max_restarts,
        backoff_s=protection.restart_backoff_s,
        first_error=state.first_error or _first_error(state.casualties),
    )


def apply_break(state: JobState, decision: Break) -> Outcome:
    """Tell the survivors."""
    state = replace(
        counted(state, faults=1),
        casualties=decision.evidence,
        fenced_s=None,
        drain=None,
        outage=state.outage or Outage(decision.at_s),
    )
    return state, (BreakGeneration(decision.generation, decision.reason),)


def apply_recover(state: JobState, decision: Recover) -> Outcome:
    """Note what the recovery was for; the next phase gathers workers."""
    state = _answered(state, decision)
    state = replace(state, attempts=decision.attempt, retry_at_s=decision.retry_at_s)
    return counted(state, recoveries=1), ()


def apply_wait(state: JobState, decision: Wait) -> Outcome:
    """Nothing to do until nodes come."""
    return _answered(state, decision), ()


def _answered(state: JobState, decision: Recover | Wait) -> JobState:
    causes = (described(decision.evidence),) if decision.evidence else ()
    outage = state.outage or Outage(decision.at_s)
    first = _first_error(decision.evidence) if decision.evidence else None
    return replace(
        state,
        outage=replace(outage, causes=outage.causes + causes),
        first_error=state.first_error or first,
        checkpoints=tuple(
            checkpoint for checkpoint in state.checkpoints if checkpoint.uri not in decision.refused
        ),
        casualties=(),
        fenced_s=None,
        episode=state.episode + 1,
    )


def _refused(state: JobState) -> tuple[str, ...]:
    """The checkpoint that this generation could not load, if that is what went wrong."""
    start = state.form.checkpoint if state.form else None
    bad = any(casualty.code == "bad_checkpoint" for casualty in state.casualties)
    return (start,) if bad and start is not None else ()


def _first_error(casualties: tuple[Casualty, ...]) -> FirstError:
    logs = [casualty.log for casualty in casualties if casualty.log]
    return FirstError(described(casualties), logs[0] if logs else "")

"""From ready workers to a generation that trains."""

import json
from dataclasses import replace

from elasticmoe.controller.capacity import decide_gather, decide_starting, room
from elasticmoe.controller.decisions import (
    Break,
    Casualty,
    Fence,
    Form,
    Gather,
    GiveUp,
    LookAgain,
    Recover,
    Stop,
    Train,
    Wait,
)
from elasticmoe.controller.ending import decide_stop
from elasticmoe.controller.faults import decide_break, survey
from elasticmoe.controller.recovery import decide_recovery, origin
from elasticmoe.controller.state import (
    FORM_PATIENCE_S,
    LIVING,
    PARK_PATIENCE_S,
    JobState,
    Outage,
    Outcome,
    WorkerStatus,
    counted,
    having,
    ignored,
    stale,
    with_status,
)
from elasticmoe.controller.wording import listed, plural, workers_named
from elasticmoe.errors import PlanError
from elasticmoe.messages.commands import FormGeneration
from elasticmoe.messages.worker import GangFormed
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.types import Member


def gang_formed(state: JobState, report: GangFormed) -> Outcome:
    """A member has joined."""
    if report.generation != state.generation or report.worker in state.formed:
        return stale(state)
    if report.worker not in state.members:
        return ignored(state)
    return replace(state, formed=state.formed | {report.worker}), ()


def decide_gathering(
    state: JobState,
) -> Gather | Fence | Form | Recover | Wait | Stop | GiveUp | LookAgain | None:
    """Start what is missing, wait until all are ready, form."""
    if state.stops:
        return decide_stop(state)
    if state.casualties:
        leaving = having(state, WorkerStatus.LEAVING)
        reaped_s = max((worker.since_s + PARK_PATIENCE_S for worker in leaving), default=0.0)
        if state.now_s < reaped_s:  # its death brings the place of its log, and frees its own
            return LookAgain(reaped_s)
        return decide_recovery(survey(state))
    if state.now_s < state.retry_at_s:
        return LookAgain(state.retry_at_s)
    workers = state.spec.workers
    fitting = room(state)
    if fitting < workers.min:
        return _decide_wait(state, fitting)
    if len(having(state, *LIVING)) < min(workers.replicas, fitting):
        return decide_gather(state, _missing(state, fitting))
    if having(state, WorkerStatus.STARTING):
        return decide_starting(state)
    return _decide_form(state)


def decide_forming(state: JobState) -> Train | Break | Stop | LookAgain:
    """Train once everybody has joined."""
    if state.stops:
        return decide_stop(state)
    if state.casualties:
        return decide_break(state, state.casualties)
    absent = [worker for worker in state.members if worker not in state.formed]
    if not absent:
        return Train(state.now_s, state.generation, _trains(state))
    patience_s = state.since_s + FORM_PATIENCE_S
    if state.now_s < patience_s:
        return LookAgain(patience_s)
    text = f"did not join generation {state.generation} within {FORM_PATIENCE_S:g} s"
    nodes = {number: worker.node for number, worker in state.workers.items()}
    return decide_break(
        state, tuple(Casualty("stuck", worker, nodes[worker], text) for worker in absent)
    )


def apply_form(state: JobState, decision: Form) -> Outcome:
    """Open the generation; committed steps behind its start are given up."""
    redo = max(state.committed_step - decision.step, 0)
    outage = state.outage or Outage(decision.at_s)
    state = with_status(state, decision.workers, WorkerStatus.BUSY)
    state = replace(
        counted(state, redone_steps=redo),
        generation=decision.generation,
        timeline=decision.timeline,
        form=decision,
        committed_step=decision.step,
        formed=frozenset(),
        ended={},
        parts={},
        unsaved_steps={},
        drain=None,
        outage=replace(outage, redo_steps=outage.redo_steps + redo),
    )
    return state, (form_command(decision),)


def form_command(decision: Form) -> FormGeneration:
    """What a decision to form asks of the world."""
    return FormGeneration(
        generation=decision.generation,
        plan=decision.plan,
        store_node=decision.store_node,
        checkpoint=decision.checkpoint,
        first_command=decision.first_command,
        reason=decision.reason,
    )


def apply_train(state: JobState, decision: Train) -> Outcome:
    """The outage is over."""
    assert state.outage is not None, "forming a generation begins an outage"
    is_first = state.generation == 1 and not state.outage.causes  # nothing ran that could stop
    lasted_s = 0.0 if is_first else decision.at_s - state.outage.since_s
    return replace(counted(state, outage_s=lasted_s), outage=None), ()


def _decide_form(state: JobState) -> Form | GiveUp:
    ready = sorted(
        having(state, WorkerStatus.IDLE),
        key=lambda worker: (state.nodes[worker.node].domain, worker.node, worker.number),
    )[: state.spec.workers.replicas]
    members = tuple(
        Member(worker.number, worker.node, state.nodes[worker.node].domain) for worker in ready
    )
    assert state.job is not None, "no job was submitted"
    try:
        plan = make_plan(state.job.spec, state.job.inventory, members)
    except PlanError as error:
        return GiveUp(state.now_s, error.code, "", f"no plan for {len(members)} workers: {error}")
    start = state.newest
    step = start.step if start else 0
    return Form(
        at_s=state.now_s,
        generation=state.generation + 1,
        timeline=state.timeline + (step < state.committed_step),
        plan=json.loads(json.dumps(plan.to_json())),  # as the journal will give it back
        workers=tuple(member.worker for member in members),
        store_node=members[0].node,
        step=step,
        checkpoint=start.uri if start else None,
        first_command=state.next_command,
        reason=f"{plural(len(members), 'worker')} start from {origin(start)}",
    )


def _decide_wait(state: JobState, fitting: int) -> Wait:
    step = state.newest.step if state.newest else 0
    reason = (
        f"{plural(fitting, 'worker')} can run and workers.min is {state.spec.workers.min}: "
        "waiting for nodes"
    )
    return Wait(state.now_s, step, max(state.committed_step - step, 0), (), (), reason)


def _missing(state: JobState, fitting: int) -> str:
    wanted = state.spec.workers.replicas
    target = min(wanted, fitting)
    missing = target - len(having(state, *LIVING))
    fewer = f", room for no more of the {wanted} wanted" if target < wanted else ""
    return f"{missing} missing of {target}{fewer}"


def _trains(state: JobState) -> str:
    """What the story tells when a gang trains: one plain line, also after a fault."""
    assert state.form is not None, "decided while forming"
    assert state.outage is not None, "forming a generation begins an outage"
    count, outage = plural(len(state.members), "worker"), state.outage
    next_step = state.form.step + 1
    if not outage.causes:
        return f"{count} train from step {next_step} ({workers_named(state.members)})"
    took_s = state.now_s - outage.since_s
    tries = f" on try {state.attempts}" if state.attempts > 1 else ""
    loss = (
        f"{plural(outage.redo_steps, 'step')} redone; nothing else lost"
        if outage.redo_steps
        else "nothing lost"
    )
    causes = listed(list(dict.fromkeys(outage.causes))[:3])
    return (
        f"{causes}; all went back to {origin(state.newest)} and {count} trained on "
        f"after {took_s:.2f} s{tries}; {loss}"
    )

"""From an opened generation to one that trains."""

from elasticmoe.controller.avoided import with_limits
from elasticmoe.controller.changing import replace
from elasticmoe.controller.checkpoints import missed_step
from elasticmoe.controller.decisions import Break, Casualty, Form, LookAgain, Stop, Train
from elasticmoe.controller.ending import decide_stop, ends_now
from elasticmoe.controller.faults import decide_break
from elasticmoe.controller.leaving import leavers, let_go
from elasticmoe.controller.number_map import NumberMap
from elasticmoe.controller.sentences import trains
from elasticmoe.controller.state import (
    FORM_PATIENCE_S,
    RECALL_PATIENCE_S,
    JobState,
    Outage,
    Outcome,
    WorkerStatus,
    counted,
    ignored,
    stale,
    with_status,
)
from elasticmoe.controller.vaults import bequeathed, given_up
from elasticmoe.messages.commands import FormGeneration
from elasticmoe.messages.worker import GangFormed
from elasticmoe.plan.protection import single_homed
from elasticmoe.plan.types import Plan


def gang_formed(state: JobState, report: GangFormed) -> Outcome:
    """A member has joined."""
    if report.generation != state.generation or report.worker in state.formed:
        return stale(state)
    if report.worker not in state.positions:
        return ignored(state)
    return replace(state, formed=state.formed.with_item(report.worker, None)), ()


def decide_forming(state: JobState) -> Train | Break | Stop | LookAgain:
    """Train once everybody has joined."""
    if ends_now(state):
        return decide_stop(state)
    if state.casualties:
        return decide_break(state, state.casualties)
    if len(state.formed) == len(state.members):
        return Train(state.now_s, state.generation, trains(state))
    from_memory = state.form is not None and state.form.memory is not None
    patience_s = RECALL_PATIENCE_S if from_memory else FORM_PATIENCE_S
    if state.now_s < state.since_s + patience_s:
        return LookAgain(state.since_s + patience_s)
    absent = [worker for worker in state.members if worker not in state.formed]
    text = f"did not join generation {state.generation} within {patience_s:g} s"
    return decide_break(
        state,
        tuple(Casualty("stuck", worker, state.workers[worker].node, text) for worker in absent),
    )


def apply_form(state: JobState, decision: Form) -> Outcome:
    """Open the generation; committed steps behind its start are given up."""
    given = max(state.committed_step - decision.step, 0)
    outage = state.outage or Outage(decision.at_s)
    fewer = len(state.members) / len(decision.workers)
    state = with_status(state, decision.workers, WorkerStatus.BUSY)
    memory = decision.memory
    state = replace(
        bequeathed(counted(state, steps_rolled_back=given), memory.heirs if memory else ()),
        generation=decision.generation,
        timeline=decision.timeline,
        form=decision,
        plan=Plan.from_json(decision.plan),
        positions=NumberMap({worker: place for place, worker in enumerate(decision.workers)}),
        homed=NumberMap(),
        lost_members=(),
        committed_step=decision.step,
        formed=NumberMap(),
        ended=NumberMap(),
        parts={},
        unsaved_steps={},
        drain=None,
        protect=None,
        snapshots=replace(state.snapshots, asked=None, taken_s=None),
        memory_since=state.memory_since if memory else decision.generation,
        settled_step=decision.step if memory else None,
        pace=state.pace.scaled(fewer) if fewer > 1 else state.pace,
        outage=replace(outage, redo_steps=outage.redo_steps + given),
    )
    return with_limits(state, dict(decision.limits)), (form_command(decision),)


def form_command(decision: Form) -> FormGeneration:
    """What a decision to form asks of the world."""
    return FormGeneration(
        generation=decision.generation,
        plan=decision.plan,
        store_node=decision.store_node,
        checkpoint=decision.checkpoint,
        first_command=decision.first_command,
        reason=decision.reason,
        memory=decision.memory,
    )


def apply_train(state: JobState, decision: Train) -> Outcome:
    """The outage is over, and what vaults held before it is of no use any more. A checkpoint whose
    writing it cut off, or that was due when it began, is written soon. A gang that paused for some
    to leave, and goes on as it was, cannot do without them."""
    outage, plan = state.outage, state.plan
    assert outage is not None, "forming a generation begins an outage"
    assert plan is not None, "a generation that was formed has a plan"
    is_first = state.generation == 1 and not outage.causes  # nothing ran that could stop
    lasted_s = 0.0 if is_first else decision.at_s - outage.since_s
    state, kills = let_go(counted(state, outage_s=lasted_s))
    state, commands = given_up(state)
    exposed = single_homed(plan, state.spec.protection.redundancy)
    in_vain = outage.is_planned and outage.causes and state.rung == "retry"
    state = replace(
        state,
        outage=None,
        rung=None,
        settled_step=None,
        memory_since=state.generation,
        exposed_since_s=decision.at_s if exposed else None,
        pace=state.pace.begun(decision.at_s),
        checkpoint_asked=state.checkpoint_asked or missed_step(state) > 0,
        staying=leavers(state) if in_vain else (),
        stayed_s=decision.at_s,
    )
    return state, (*kills, *commands)

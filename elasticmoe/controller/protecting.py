"""Units that lost a home get a new one while the gang trains."""

from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import Protect
from elasticmoe.controller.number_map import NumberMap
from elasticmoe.controller.state import JobState, Outcome, counted
from elasticmoe.controller.wording import plural
from elasticmoe.messages.commands import InstructGang
from elasticmoe.plan.protection import restore_protection, single_homed
from elasticmoe.plan.types import Plan


def decide_protect(state: JobState) -> Protect | None:
    """Give every unit its homes back, unless the gang was told to already."""
    if state.exposed_since_s is None or state.protect is not None:
        return None
    if state.form is not None and state.form.unprotected:  # there is no room for more homes
        return None
    assert state.job is not None, "no job was submitted"
    assert state.plan is not None, "a gang that trains has a plan"
    redundancy = state.spec.protection.redundancy
    better = restore_protection(state.plan, state.job.spec, state.job.inventory)
    units = len(single_homed(state.plan, redundancy)) - len(single_homed(better, redundancy))
    if units <= 0:
        return None
    reason = f"{plural(units, 'unit')} {'gets' if units == 1 else 'get'} another home"
    return protect_with(state, better, units, reason)


def protect_with(state: JobState, better: Plan, units: int, reason: str) -> Protect:
    """Have the gang that trains go over to a plan with other homes."""
    return Protect(
        at_s=state.now_s,
        generation=state.generation,
        number=state.next_command,
        plan=better.to_json(),
        units=units,
        reason=reason,
    )


def apply_protect(state: JobState, decision: Protect) -> Outcome:
    """Instruct the gang."""
    state = replace(state, protect=decision, next_command=decision.number + 1)
    return state, protect_commands(state)


def protect_commands(state: JobState) -> tuple[InstructGang, ...]:
    """What the gang was told and has not done yet; said again after a restart."""
    if state.protect is None:
        return ()
    decision = state.protect
    return (InstructGang(decision.generation, decision.number, "protect", decision.plan),)


def protected(state: JobState, instructed: int, at_s: float) -> JobState:
    """Note that the gang has gone over to the plan with all homes, if it has.

    Args:
        instructed: the newest command that took effect.
        at_s: when that was heard.
    """
    if state.protect is None or instructed < state.protect.number:
        return state
    plan = Plan.from_json(state.protect.plan)
    return replace(no_longer_exposed(state, at_s), plan=plan, homed=NumberMap(), protect=None)


def no_longer_exposed(state: JobState, at_s: float) -> JobState:
    """Count the time in which units lacked a home; it ends when they have it, or with the gang."""
    if state.exposed_since_s is None:
        return state
    lasted_s = max(at_s - state.exposed_since_s, 0.0)
    return replace(counted(state, exposed_s=lasted_s), exposed_since_s=None)

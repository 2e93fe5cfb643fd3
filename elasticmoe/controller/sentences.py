"""What the story tells when a gang trains: one plain line, also after a fault."""

from elasticmoe.controller.recovery import origin
from elasticmoe.controller.state import JobState, Outage
from elasticmoe.controller.wording import listed, plural, workers_named
from elasticmoe.plan.protection import single_homed

MOST_CAUSES = 3


def trains(state: JobState) -> str:
    """What happened, what was done, how long it took and what it cost."""
    assert state.form is not None, "decided while forming"
    assert state.outage is not None, "forming a generation begins an outage"
    outage = state.outage
    if not outage.causes:
        count = plural(len(state.members), "worker")
        return f"{count} train from step {state.form.step + 1} ({workers_named(state.members)})"
    took = f"{state.now_s - outage.since_s:.2f} s"
    tries = f" on try {state.attempts}" if state.attempts > 1 else ""
    causes = listed(list(dict.fromkeys(outage.causes))[:MOST_CAUSES])
    cost = "; ".join(filter(None, (_open_step(outage), _loss(outage), _exposed(state))))
    return f"{causes}; {_cure(state, took)}{tries}; {cost}"


def _cure(state: JobState, took: str) -> str:
    assert state.form is not None, "decided while forming"
    count = plural(len(state.members), "worker")
    if state.form.memory is None:
        return f"all went back to {origin(state.newest)} and {count} trained on after {took}"
    if state.form.memory.is_snapshot:
        there = f"the snapshot of step {state.form.step} in memory"
        return f"all went back to {there} and {count} trained on after {took}"
    moves = state.form.memory.moves
    if state.rung == "retry" and moves:
        units = plural(len({unit for unit, _, _ in moves}), "unit")
        return f"{units} repaired from another home, {count} went on from memory after {took}"
    if state.rung == "replace":
        return f"replaced from {_whose_memory(state)} memory in {took}"
    if state.rung == "failover" and not state.form.newcomers and state.outage is not None:
        gone = state.outage.members - len(state.members)
        if gone > 0:
            return f"{count} went on without {'it' if gone == 1 else 'them'} after {took}"
    return f"{count} went on from memory after {took}"


def _whose_memory(state: JobState) -> str:
    """Whose memory the replacements started from."""
    assert state.form is not None, "decided while forming"
    heirs = [heir for heir, _ in state.form.memory.heirs] if state.form.memory else []
    if not set(state.form.newcomers) <= set(heirs):
        return "their peers'" if len(state.form.newcomers) > 1 else "its peers'"
    if len(heirs) == 1:
        return "its node's"
    nodes = {state.workers[heir].node for heir in heirs if heir in state.workers}
    return "their node's" if len(nodes) == 1 else "their nodes'"


def _open_step(outage: Outage) -> str:
    if outage.redo_steps:
        return ""
    if outage.is_planned and not outage.open_step:
        return "no step redone"
    if outage.open_step:
        return f"step {outage.open_step} redone"
    return f"step {outage.kept_step} kept" if outage.kept_step else ""


def _loss(outage: Outage) -> str:
    if outage.redo_steps:
        return f"{plural(outage.redo_steps, 'step')} redone; nothing else lost"
    return "nothing lost"


def _exposed(state: JobState) -> str:
    assert state.plan is not None, "decided while forming"
    redundancy = state.spec.protection.redundancy
    exposed = len(single_homed(state.plan, redundancy))
    if not exposed:
        return ""
    lack = "one home" if redundancy == 2 else "too few homes"
    have = "has" if exposed == 1 else "have"
    if state.form is not None and state.form.unprotected:
        return f"{plural(exposed, 'unit')} {have} {lack}: no node has memory for more"
    return f"{plural(exposed, 'unit')} {have} {lack} until protection is restored"

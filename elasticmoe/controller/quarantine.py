"""Nodes with repeated faults of their own get no workers for a while."""

from collections.abc import Sequence
from typing import Final

from elasticmoe.controller.avoided import num_places, shunned_nodes
from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import Casualty, Quarantine
from elasticmoe.controller.state import JobState, Outcome, Quarantined, Suspicion, counted
from elasticmoe.controller.wording import described, plural

OWN: Final = ("silent", "died", "stuck")
"""Signs, beside memory that was found corrupted, that a worker's machine may be to blame. Not
its own errors, which follow the work; nor the loss of a node, of which nothing is left."""
LONGEST_S: Final = 86_400.0
"""However often: hardware gets repaired, and not everybody tells the job."""


def suspect_of(casualties: Sequence[Casualty]) -> str:
    """The one node on which workers had faults, while those of all others were well.

    Faults on several nodes at once have a cause that none of these nodes is to blame for.

    >>> bad = Casualty("parked", 3, "b", "unit 7 did not match its hash", code="corrupted")
    >>> suspect_of([bad, Casualty("parked", 0, "a", "connection closed")])
    'b'
    >>> suspect_of([bad, Casualty("died", 0, "a", "killed by signal 9")])
    ''
    """
    own = [one for one in casualties if one.kind in OWN or one.code == "corrupted"]
    nodes = {one.node for one in own if one.worker >= 0}
    return nodes.pop() if len(nodes) == 1 else ""


def decide_quarantine(state: JobState) -> Quarantine | None:
    """Keep away from a node upon its k-th fault within a while.

    Nothing is done about its present workers here: the fault is answered as any other, and the
    gang moves off the node once it trains, between two steps.
    """
    node, protection = suspect_of(state.casualties), state.spec.protection
    if not node or node not in state.nodes or not protection.quarantine_faults:
        return None
    known = state.quarantines.get(node)
    if known is not None and known.until_s > state.now_s:
        return None
    since_s = state.now_s - protection.quarantine_window_s
    faults = [one for one in state.suspicions if one.node == node and one.at_s >= since_s]
    count = len(faults) + 1
    if count < protection.quarantine_faults:
        return None
    lasts_s = min(2 * known.lasts_s if known else protection.quarantine_s, LONGEST_S)
    places = num_places(state, {*shunned_nodes(state), node})
    spared = places < state.spec.workers.min
    begun_s = faults[0].at_s if faults else state.now_s
    happened = (
        f"node {node} had {plural(count, 'fault')} of its own in {state.now_s - begun_s:.0f} s, "
        f"the last one: {described(state.casualties)}"
    )
    answer = (
        f"it is kept, because {plural(places, 'worker')} could run without it and workers.min is "
        f"{state.spec.workers.min}"
        if spared
        else f"it gets no workers for {lasts_s:.0f} s"
    )
    until_s = state.now_s + lasts_s
    return Quarantine(state.now_s, node, until_s, spared, f"{happened}; {answer}")


def apply_quarantine(state: JobState, decision: Quarantine) -> Outcome:
    """Note it; its faults so far are answered with that."""
    lasts_s = decision.until_s - decision.at_s
    quarantined = Quarantined(decision.until_s, lasts_s, decision.spared)
    state = replace(
        counted(state, nodes_quarantined=int(not decision.spared)),
        quarantines={**state.quarantines, decision.node: quarantined},
        suspicions=tuple(one for one in state.suspicions if one.node != decision.node),
    )
    return state, ()


def suspected(state: JobState, casualties: Sequence[Casualty]) -> JobState:
    """Note whose fault an outage may have been; one outage counts once."""
    node, known = suspect_of(casualties), None
    if node:
        known = state.quarantines.get(node)
    if not node or (known is not None and known.until_s > state.now_s):
        return state
    since_s = state.now_s - state.spec.protection.quarantine_window_s
    recent = tuple(one for one in state.suspicions if one.at_s >= since_s)
    return replace(state, suspicions=(*recent, Suspicion(state.now_s, node)))

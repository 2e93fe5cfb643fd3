"""Which nodes the job keeps away from: those that go away soon, and those in quarantine."""

from collections.abc import Set as AbstractSet

from elasticmoe.controller.state import LIVING, JobState

LEFT_S = 60.0
"""A node that is still there so long after its deadline was not taken away: it is used again."""


def avoided_nodes(state: JobState) -> frozenset[str]:
    """Nodes that are to have no workers.

    None, if without them fewer than `workers.min` could run: a node that will be gone in half a
    minute, or that fails now and then, is better than no training.
    """
    shunned = shunned_nodes(state)
    if not shunned:
        return shunned
    return shunned if num_places(state, shunned) >= state.spec.workers.min else frozenset()


def num_places(state: JobState, without: AbstractSet[str]) -> int:
    """Workers that fit on all nodes but some."""
    return sum(node.capacity for name, node in state.nodes.items() if name not in without)


def shunned_nodes(state: JobState) -> frozenset[str]:
    """Nodes that should have no workers, whether or not the job can do without them."""
    if not state.leaving and not state.quarantines:
        return frozenset()
    return frozenset(name for name in state.nodes if end_s(state, name) > state.now_s)


def end_s(state: JobState, node: str) -> float:
    """Until when a node is kept away from; 0: it is not."""
    leaving, quarantined = state.leaving.get(node), state.quarantines.get(node)
    return max(
        leaving.deadline_s + LEFT_S if leaving else 0.0,
        quarantined.until_s if quarantined and not quarantined.spared else 0.0,
    )


def next_end_s(state: JobState) -> float | None:
    """When the next node may be used again; none: all may be."""
    return min((end_s(state, name) for name in shunned_nodes(state)), default=None)


def last_end_s(state: JobState) -> float:
    """When a node was last given back that was kept away from; 0: none was."""
    ends = (end_s(state, name) for name in {*state.leaving, *state.quarantines} & {*state.nodes})
    return max((end for end in ends if end <= state.now_s), default=0.0)


def num_staying(state: JobState) -> int:
    """Living workers on nodes that are not avoided."""
    living = state.workers.count(*LIVING)
    for name in avoided_nodes(state):
        there = (state.workers[number] for number in state.workers.on_node(name))
        living -= sum(worker.status in LIVING for worker in there)
    return living

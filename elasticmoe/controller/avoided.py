"""Which nodes the job keeps away from: those that go away soon, and those in quarantine; and of
how many workers no more are tried on a node."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from elasticmoe.controller.changing import replace
from elasticmoe.controller.state import LIVING, JobState, Limits, Worker, having

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


def limits(state: JobState) -> Mapping[str, int]:
    """Most workers of a node, where more were found to need memory that some node has not.

    Found anew once other nodes are used than when it was found.
    """
    if not state.limits.most or state.limits.nodes != _used_nodes(state):
        return {}
    return state.limits.most


def with_limits(state: JobState, found: Mapping[str, int]) -> JobState:
    """Note limits beside those that hold; none: nothing changes."""
    if not found:
        return state
    holding = limits(state)
    most = {**holding, **{name: min(one, holding.get(name, one)) for name, one in found.items()}}
    return replace(state, limits=Limits(most, _used_nodes(state)))


def surplus(state: JobState) -> tuple[Worker, ...]:
    """Living workers beyond the limits: of each node those that are not in the gang, and of these
    those that keep no state."""
    found: list[Worker] = []
    for name, most in limits(state).items():
        there = [state.workers[number] for number in state.workers.on_node(name)]
        living = [worker for worker in there if worker.status in LIVING]

        def use(worker: Worker) -> tuple[bool, bool, int]:
            number = worker.number
            return number not in state.positions, number not in state.vaults, number

        found += sorted(living, key=use)[most:]
    return tuple(found)


def num_staying(state: JobState) -> int:
    """Living workers on nodes that are not avoided, within the limits."""
    living = state.workers.count(*LIVING)
    avoided = avoided_nodes(state)
    for name in avoided:
        there = (state.workers[number] for number in state.workers.on_node(name))
        living -= sum(worker.status in LIVING for worker in there)
    return living - sum(worker.node not in avoided for worker in surplus(state))


def staying(state: JobState) -> tuple[Worker, ...]:
    """Living workers on nodes that are not avoided, within the limits, ascending."""
    avoided, beyond = avoided_nodes(state), {worker.number for worker in surplus(state)}
    living = having(state, *LIVING)
    return tuple(one for one in living if one.node not in avoided and one.number not in beyond)


def num_wanted(state: JobState) -> int:
    """Workers to have, if there is room: `workers.replicas`; up to `workers.max` if so many are
    there and some node has too little memory for its share: then others take a part of it."""
    workers = state.spec.workers
    if num_staying(state) < workers.replicas or not limits(state):
        return workers.replicas
    return workers.max


def _used_nodes(state: JobState) -> frozenset[str]:
    return frozenset(state.nodes) - shunned_nodes(state)

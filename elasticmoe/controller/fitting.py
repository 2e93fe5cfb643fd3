"""Whether a layout fits into the memory of the nodes, as far as is known."""

from elasticmoe.controller.avoided import last_end_s
from elasticmoe.controller.changing import replace
from elasticmoe.controller.state import JobState
from elasticmoe.plan.experts import master_bytes
from elasticmoe.plan.memory import Overfull, find_overfull, host_bytes, plan_memory
from elasticmoe.plan.protection import restore_protection, single_homed
from elasticmoe.plan.types import Plan


def overfull_node(state: JobState, plan: Plan) -> Overfull | None:
    """The node that a layout fills beyond what it has; none: everything fits.

    A node that does not say how much it has is never too small.
    """
    return find_overfull(_needed(state, plan), _there(state))


def overfull_by_protection(state: JobState, plan: Plan) -> Overfull | None:
    """The node that has no room for the homes that units still lack; none: they fit.

    Where they would fit all together on any one node nobody looks closer.
    """
    redundancy = state.spec.protection.redundancy
    exposed = single_homed(plan, redundancy)
    if not exposed:
        return None
    assert state.job is not None, "no job was submitted"
    units, wanted = state.job.inventory.units, min(redundancy, len(plan.members))
    lacking = sum(units[unit].numel * (wanted - len(plan.homes[unit])) for unit in exposed)
    home_bytes = 4 * master_bytes(state.spec)  # weight, two moments, reduced gradient
    if find_overfull(_needed(state, plan), _there(state), lacking * home_bytes) is None:
        return None
    return overfull_node(state, restore_protection(plan, state.spec, state.job.inventory))


def in_words(overfull: Overfull) -> str:
    """What is missing where.

    >>> in_words(Overfull("b", 3 * 2**30, 2**31))
    'node b would need 3.000 GiB of memory and has 2.000 GiB'
    """
    needed, there = overfull.needed_bytes / 2**30, overfull.there_bytes / 2**30
    return f"node {overfull.node} would need {needed:.3f} GiB of memory and has {there:.3f} GiB"


def crowded_nodes(state: JobState) -> frozenset[str]:
    """Nodes that were found too small, if no room has come since."""
    room_came_s = max(state.capacity_changed_s, last_end_s(state))
    return frozenset(state.crowded) if room_came_s <= state.crowded_s else frozenset()


def with_crowded(state: JobState, nodes: tuple[str, ...]) -> JobState:
    """Note nodes that a layout did not fit on; none: nothing changes."""
    if not nodes:
        return state
    crowded = tuple(sorted(crowded_nodes(state).union(nodes)))
    return replace(state, crowded=crowded, crowded_s=state.now_s)


def _needed(state: JobState, plan: Plan) -> dict[str, int]:
    assert state.job is not None, "no job was submitted"
    spec = state.spec
    accelerated = any(node.num_devices for node in state.nodes.values())
    on_cpu = spec.workers.device == "cpu" or not accelerated
    use = plan_memory(spec, state.job.inventory, plan)
    return host_bytes(plan, use, homes_on_host=on_cpu, device_is_host=on_cpu)


def _there(state: JobState) -> dict[str, int]:
    return {name: node.memory_bytes for name, node in state.nodes.items()}

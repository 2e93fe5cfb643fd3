"""Whether a layout fits into the memory of the nodes, as far as is known."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from elasticmoe.controller.state import JobState, Worker
from elasticmoe.plan.experts import master_bytes
from elasticmoe.plan.memory import Overfull, find_overfull, host_bytes, plan_memory
from elasticmoe.plan.protection import restore_protection, single_homed
from elasticmoe.plan.types import Member, Plan


def overfull_nodes(
    state: JobState, plan: Plan, needed: Mapping[str, int] | None = None
) -> tuple[Overfull, ...]:
    """The nodes that a layout fills beyond what they have, the worst first; none: everything fits.

    A node that does not say how much it has is never too small.

    Args:
        needed: `needed_bytes`, if it is known already.
    """
    return find_overfull(needed or needed_bytes(state, plan), _there(state))


def overfull_by_protection(
    state: JobState, plan: Plan, needed: Mapping[str, int] | None = None
) -> Overfull | None:
    """The node that has no room for the homes that units still lack; none: they fit.

    Where they would fit all together on any one node nobody looks closer.

    Args:
        needed: `needed_bytes`, if it is known already.
    """
    redundancy = state.spec.protection.redundancy
    exposed = single_homed(plan, redundancy)
    if not exposed:
        return None
    assert state.job is not None, "no job was submitted"
    units, wanted = state.job.inventory.units, min(redundancy, len(plan.members))
    lacking = sum(units[unit].numel * (wanted - len(plan.homes[unit])) for unit in exposed)
    # weight, two moments, reduced gradient; the last is received, and maybe sent from there, too
    home_bytes = 6 * master_bytes(state.spec)
    there = needed or needed_bytes(state, plan)
    if not find_overfull(there, _there(state), lacking * home_bytes):
        return None
    restored = restore_protection(plan, state.spec, state.job.inventory)
    return next(iter(overfull_nodes(state, restored)), None)


def in_words(overfull: Overfull) -> str:
    """What is missing where.

    >>> in_words(Overfull("b", 3 * 2**30, 2**31))
    'node b would need 3.000 GiB of memory and has 2.000 GiB'
    """
    needed, there = overfull.needed_bytes / 2**30, overfull.there_bytes / 2**30
    return f"node {overfull.node} would need {needed:.3f} GiB of memory and has {there:.3f} GiB"


class Crowded:
    """What did not fit, while a layout was looked for."""

    def __init__(self, ready: tuple[Worker, ...]) -> None:
        self._ready = ready
        self.node: Overfull | None = None
        """What lacked most in the first layout."""
        self.first_limits = dict[str, int]()
        """How many workers of overfull nodes were tried in the second layout. With more workers on
        other nodes so many may fit."""
        self.limits = dict[str, int]()
        """How many of them were tried last."""

    def leave_out(
        self,
        workers: tuple[Worker, ...],
        strangers: AbstractSet[int],
        overfull: tuple[Overfull, ...],
        can_do_without: Callable[[tuple[Worker, ...]], bool] = lambda _: False,
    ) -> tuple[Worker, ...]:
        """Have one worker less on every node that is overfull; on some of them, if it has to be one
        with state.

        Args:
            strangers: numbers of those that bring nothing.
            can_do_without: whether the others have all that some workers bring.

        Returns:
            Who is left: the same as before if nobody can be left out.
        """
        names = [one.node for one in overfull]
        last = {one.node: one for one in workers if one.number in strangers}
        going = [last[name] for name in names if name in last]
        if not going:
            last = {one.node: one for one in workers}
            going = [last[name] for name in names]
            while going and not can_do_without(tuple(going)):
                going = going[: len(going) // 2]
        left_out = {one.number for one in going} or strangers
        fewer = tuple(worker for worker in workers if worker.number not in left_out)
        kept = Counter(worker.node for worker in fewer)
        found = {name: kept[name] for name in names}
        if self.node is None:
            self.node, self.first_limits = overfull[0], found
        self.limits |= found
        return fewer

    def limits_of(self, members: Sequence[Member]) -> dict[str, int]:
        """The limits that also keep out whoever was ready and is no member."""
        if self.node is None:
            return {}
        kept = Counter(member.node for member in members)
        ready = Counter(worker.node for worker in self._ready)
        return self.limits | {name: kept[name] for name in ready if kept[name] < ready[name]}


def needed_bytes(state: JobState, plan: Plan) -> dict[str, int]:
    """Host memory that a layout takes, by node."""
    assert state.job is not None, "no job was submitted"
    spec = state.spec
    accelerated = any(node.num_devices for node in state.nodes.values())
    on_cpu = spec.workers.device == "cpu" or not accelerated
    use = plan_memory(spec, state.job.inventory, plan)
    return host_bytes(plan, use, homes_on_host=on_cpu, device_is_host=on_cpu)


def _there(state: JobState) -> dict[str, int]:
    return {name: node.memory_bytes for name, node in state.nodes.items()}

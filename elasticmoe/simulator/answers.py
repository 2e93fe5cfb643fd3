"""Every fault that hits a gang is answered by a decision, and soon."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from elasticmoe.controller.pace import FEWEST_INTERVALS, FIRST_FACTOR
from elasticmoe.controller.state import UNMEASURED_BOUND_S
from elasticmoe.simulator.faults import Fired
from elasticmoe.simulator.gang import Gang
from elasticmoe.simulator.nodes import Node, Process
from elasticmoe.simulator.training import process_of
from elasticmoe.simulator.world import LateLoss, World

ANSWER_S: Final = 1.0
"""From a fault's evidence to the brain's first decision, of the time with a controller."""
LATEST_LOSS: Final = 1.3
"""The evidence of a lost node comes so many times later than usual, at most."""
ALARMS: Final = 4.0
"""Alarms that found everybody alive have made the brain so many times more patient, at most."""


@dataclass(frozen=True, slots=True)
class _Due:
    until_s: float
    """Of the time in which there was a controller."""
    fired: Fired


class Answers:
    """Knows which faults a decision is due for, and by when."""

    def __init__(self, noticed: Callable[[str], None]) -> None:
        """
        Args:
            noticed: is told of every fault that was not answered in time.
        """
        self._noticed = noticed
        self._due: list[_Due] = []
        self._broken = 0
        """Newest generation whose end was decided."""
        self._stepped = (0, 0.0)
        """Generation and time of the newest step."""
        self._steps = 0
        self._slowest_s = 0.0
        self._is_blind = False
        """An agent was cut off when somebody looked last: not all evidence comes through."""

    def expect(self, world: World, fired: Fired) -> None:
        """A fault has fired: if it hit members of a gang, the brain must decide something."""
        self._is_blind |= fired.kind == "partition"
        if fired.generation <= self._broken:
            return
        gang = world.gang
        assert gang is not None, "a generation was hit"
        evident_s = self._evident_s(world, gang, fired)
        if evident_s is not None:
            self._add(world, gang, fired, evident_s)

    def lost(self, world: World, kind: LateLoss, node: Node) -> None:
        """A node is lost some time after its fault has fired: if it has members of the gang, the
        brain must decide something."""
        gang = world.gang
        is_hit = gang is not None and not gang.ended and node.name in gang.nodes
        if gang is None or not is_hit or gang.generation <= self._broken:
            return
        if world.nodes.get(node.name) is node:
            fired = Fired(world.now_s, kind, f"node {node.name}", gang.generation)
            self._add(world, gang, fired, LATEST_LOSS * world.costs.node_lost_s)

    def answered(self, generation: int) -> None:
        """A generation's end was decided."""
        self._broken = max(self._broken, generation)
        self._due = [due for due in self._due if due.fired.generation > generation]

    def stepped(self, world: World, gang: Gang) -> None:
        """All members have applied a step."""
        generation, at_s = self._stepped
        if gang.generation == generation:
            self._slowest_s = max(self._slowest_s, world.now_s - at_s)
        self._stepped, self._steps = (gang.generation, world.now_s), self._steps + 1

    def check(self, world: World) -> None:
        """Look for answers that are late. While an agent is cut off nobody can tell."""
        if not self._due:
            return
        if world.keeper.state.is_final or (world.gang is not None and world.gang.ended):
            self._due = []
            return
        up_s = world.now_s - world.downtime_s
        if any(node.cut and not node.given_up for node in world.nodes.values()):
            self._is_blind = True
            return
        if self._is_blind:  # what only that agent knew is told now, or found out
            self._is_blind = False
            first_s = up_s + ANSWER_S
            self._due = [replace(due, until_s=max(due.until_s, first_s)) for due in self._due]
        late = [due for due in self._due if due.until_s < up_s]
        if late:
            fired = late[0].fired
            self._noticed(f"{fired.kind} of {fired.whom} at {fired.at_s:.3f} s was never answered")
            self._due = [due for due in self._due if due.until_s >= up_s]

    def _add(self, world: World, gang: Gang, fired: Fired, evident_s: float) -> None:
        costs = world.costs  # a report of every member may have come just before
        wait_s = evident_s + ANSWER_S + costs.controller_restart_s
        wait_s += len(gang.workers) * costs.decide_s
        self._due.append(_Due(world.now_s - world.downtime_s + wait_s, fired))

    def _evident_s(self, world: World, gang: Gang, fired: Fired) -> float | None:
        """Until a fault is evident to the controller, at most; none: it hit no member, asks for no
        answer, or not yet (`lost`)."""
        costs = world.costs
        match fired.kind:
            case "crash" | "fail" | "cut":
                return 0.0 if self._has_lost(world, gang) else None
            case "hang":
                return costs.silence_s if self._has_lost(world, gang) else None
            case "stall":
                return self._stall_s(world, gang) if gang.trains else None
            case "lose_node" | "vanish_node" | "lose_domain" | "agent":
                is_hit = None in self._processes(world, gang)  # a node without members is no loss
                return LATEST_LOSS * costs.node_lost_s if is_hit else None
            case _:
                return None

    def _has_lost(self, world: World, gang: Gang) -> bool:
        """Whether somebody has left, in whatever way, or will never come."""
        if gang.left:
            return True
        return any(one is None or one.hung for one in self._processes(world, gang))

    def _processes(self, world: World, gang: Gang) -> list[Process | None]:
        return [process_of(world, gang, member) for member in range(len(gang.workers))]

    def _stall_s(self, world: World, gang: Gang) -> float:
        """The stall bound comes from measured steps: the brain knows none before it has seen some,
        among them a first one and one that saved."""
        job = world.job
        if self._steps < job.checkpoint.interval_steps + FEWEST_INTERVALS:
            return UNMEASURED_BOUND_S
        shrunk = max(job.workers.replicas / len(gang.workers), 1.0)
        return min(ALARMS * FIRST_FACTOR * shrunk * self._slowest_s, UNMEASURED_BOUND_S)

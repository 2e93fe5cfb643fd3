"""The brain heeds what memory nodes have, uses the room there is, and does not go in circles."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from elasticmoe.controller.decisions import (
    Break,
    Decision,
    Form,
    Gather,
    Protect,
    Quarantine,
    Recover,
    Regroup,
    Wait,
)
from elasticmoe.messages.events import Event, NodeLeaving, NodeLost, NodeUp, TermBegan
from elasticmoe.plan.memory import find_overfull
from elasticmoe.plan.types import Plan
from elasticmoe.simulator.faults import Fired
from elasticmoe.simulator.memory import needed_bytes, spread_bytes
from elasticmoe.simulator.nodes import Node
from elasticmoe.simulator.world import World

MOST_TURNS: Final = 4
"""Pauses of the gang, and beginnings of a wait, upon one change: one for each way in which a layout
can turn out too large, which is then known."""
PATIENCE_S: Final = 20.0
"""From room that suffices to a gang that trains: settling, stuck workers and starts included."""
MARGIN: Final = 1.2
"""A node that has so many times what the whole job needs has room for any share of it."""
SPREAD_MARGIN: Final = 1.1
"""Shares differ, and nobody looks for the best node for each: so much more than its share in one
layout each node must have before there is room in every sense."""
LOOK_S: Final = 0.5
"""Between two looks at all nodes."""


@dataclass(frozen=True, slots=True)
class _Half:
    name: str
    domain: str
    capacity: int


class Room:
    """Watches decisions about memory and room."""

    def __init__(self, noticed: Callable[[str], None]) -> None:
        """
        Args:
            noticed: is told of every promise that was broken.
        """
        self._noticed = noticed
        self._needed: dict[str, int] = {}
        """By node, of the newest layout that was looked at."""
        self._turns = dict.fromkeys(
            ("the gang paused", "the job began to wait", "workers were started"), 0
        )
        """Since something changed that a decision can come of."""
        self._left: set[str] = set()
        """Nodes that go away or are in quarantine."""
        self._is_idle = True
        """There is no gang, and the one before, if there was one, is accounted for."""
        self._from_memory = False
        self._begin_s = 0.0
        """When something last happened that takes a while to answer."""
        self._is_roomy = False
        """There was room whenever somebody looked since."""
        self._looked_s = 0.0
        self._whole_bytes = 0
        """What all of the job needs; 0: not known yet."""

    def decided(self, world: World, decision: Decision) -> None:
        """The brain has decided something."""
        match decision:
            case Form():
                self._check_fit(world, decision.plan, f"generation {decision.generation}")
                self._is_idle = False  # one that does not come to train is broken off
            case Protect():
                self._check_fit(world, decision.plan, "the plan with more homes")
            case Break():
                self._is_idle = False
                self._changed(world.now_s)
            case Quarantine():
                self._left |= set() if decision.spared else {decision.node}
                self._changed(world.now_s)
            case Regroup():
                self._is_idle, self._from_memory = True, decision.rung != "checkpoint"
                self._turn("the gang paused")
            case Recover():
                self._is_idle, self._from_memory = True, decision.rung != "checkpoint"
                self._begin_s = max(world.now_s, decision.retry_at_s)
            case Wait():
                self._is_idle, self._from_memory = True, decision.from_memory
                self._turn("the job began to wait")
            case Gather():
                self._turn("workers were started")
            case _:
                pass

    def heard(self, world: World, event: Event) -> None:
        """The brain has taken in an event."""
        if isinstance(event, NodeLeaving):
            self._left.add(event.node)
        is_change = isinstance(event, NodeUp | NodeLost | NodeLeaving | TermBegan)
        if self._is_idle and (is_change or world.now_s >= self._looked_s + LOOK_S):
            self._looked_s = world.now_s
            self._check_going(world)
        if is_change:
            self._changed(world.now_s)

    def struck(self, fired: Fired) -> None:
        """A fault has fired; a machine that comes is heard of when its agent is there."""
        if fired.kind != "node_up":
            self._changed(fired.at_s)

    def _changed(self, at_s: float) -> None:
        self._turns, self._begin_s = dict.fromkeys(self._turns, 0), max(self._begin_s, at_s)

    def _turn(self, what: str) -> None:
        self._turns[what] += 1
        if self._turns[what] > MOST_TURNS:
            self._noticed(f"{what} {self._turns[what]} times, and no node came or went")
            self._turns[what] = 0

    def _check_fit(self, world: World, plain: dict[str, object], what: str) -> None:
        """No node is given more than it says it has, unless it kept as much before."""
        there = {name: node.memory_bytes for name, node in world.nodes.items()}
        if not any(there.values()):
            return
        needed = needed_bytes(world.job, world.inventory, Plan.from_json(plain))
        overfull = find_overfull(needed, there)
        if overfull and needed != self._needed:
            worst = overfull[0]
            self._noticed(
                f"{what} needs {worst.needed_bytes} bytes on node {worst.node}, which has "
                f"{worst.there_bytes}"
            )
        self._needed = needed

    def _check_going(self, world: World) -> None:
        """A job does not wait for long where there is room."""
        can_tell = world.keeper.up and not any(
            node.cut and not node.given_up for node in world.nodes.values()
        )
        room = self._room(world) if can_tell and not world.keeper.state.is_final else ""
        if room and not self._is_roomy:
            self._begin_s = max(self._begin_s, world.now_s)
        self._is_roomy = bool(room)
        if room and world.now_s > self._begin_s + PATIENCE_S:
            self._noticed(f"nobody trains since {self._begin_s:.3f} s, and {room}")
            self._is_idle = False

    def _room(self, world: World) -> str:
        """What room there is; empty: there may be none. Who has state in memory may need a layout
        that keeps much of it where it is: only room for everybody counts then."""
        there = [
            node for name, node in world.nodes.items() if node.reachable and name not in self._left
        ]
        workers = world.job.workers
        places = sum(node.capacity for node in there if self._is_ample(world, node))
        if places >= (workers.replicas if self._from_memory else workers.min):
            return f"there is room for {places} workers on nodes with ample memory"
        if self._from_memory or sum(node.capacity for node in there) < workers.replicas:
            return ""
        needed = spread_bytes(world.job, world.inventory, there)
        ample = {node.name: int(node.memory_bytes / SPREAD_MARGIN) for node in there}
        if not find_overfull(needed, ample):
            return f"{workers.replicas} workers fit on {len(there)} nodes if they are spread"
        return ""

    def _is_ample(self, world: World, node: Node) -> bool:
        if not node.memory_bytes:
            return True
        if not self._whole_bytes:
            halves = [_Half(name, name, world.job.workers.replicas) for name in ("one", "other")]
            found = spread_bytes(world.job, world.inventory, halves)
            self._whole_bytes = int(MARGIN * sum(found.values()))
        return node.memory_bytes >= self._whole_bytes

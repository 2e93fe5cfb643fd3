"""The pretend world: a clock, machines, and what passes between agents and the controller.

Nothing here decides anything. `hands` carries out commands, `forming` and `training` let gangs
live, `leaving` lets workers break off and die, `faults` does harm.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Protocol

import numpy as np

from elasticmoe.controller.changing import replace
from elasticmoe.controller.state import JobState
from elasticmoe.messages.commands import Command
from elasticmoe.messages.events import Event, NodeLost, NodeUp, Reported, TermBegan
from elasticmoe.messages.worker import WorkerReady, WorkerReport
from elasticmoe.plan.types import Inventory
from elasticmoe.simulator.costs import Costs
from elasticmoe.simulator.gang import Gang
from elasticmoe.simulator.keeper import CrashedError, Keeper, Watcher
from elasticmoe.simulator.lineage import Lineage
from elasticmoe.simulator.nodes import Node, Process
from elasticmoe.spec.job import JobSpec

RETRY_S: Final = 0.5
"""How often the controller looks for agents that are not attached."""

LateLoss = Literal["preempt", "partition"]
"""Faults that take a node some time after they fired."""


class Truth(Watcher, Protocol):
    """Is told what really happens, beside what is reported."""

    def noticed(self, text: str) -> None:
        """Something broke a promise of the protocol."""
        ...

    def opened(self, gang: Gang) -> None:
        """A generation is to be formed."""
        ...

    def voted(self, gang: Gang, version: int) -> None:
        """A step's barrier is complete: the first member passes the vote."""
        ...

    def committed(self, gang: Gang, version: int) -> None:
        """A step was applied by all members."""
        ...

    def snapshotted(self, gang: Gang) -> None:
        """All members begin to copy what they have."""
        ...

    def joined(self, gang: Gang) -> None:
        """All members have all they need: the gang's version is what they go on from."""
        ...

    def lost(self, kind: LateLoss, node: Node) -> None:
        """What a fault announced, or what was waited for, has come: a node is lost."""
        ...


class Deeds(Protocol):
    """What is done in the world; see `hands`."""

    def act(self, world: "World", command: Command) -> None:
        """Carry out a command."""
        ...

    def end_agent(self, world: "World", node: Node) -> None:
        """End an agent, and with it its workers and their vaults."""
        ...


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint, sealed or still in parts."""

    step: int
    version: int


class World:
    """Everything there is, and what will happen next."""

    def __init__(
        self,
        job: JobSpec,
        inventory: Inventory,
        costs: Costs,
        rng: np.random.Generator,
        truth: Truth,
        deeds: Deeds,
    ) -> None:
        self.job, self.inventory, self.costs, self.rng = job, inventory, costs, rng
        self.truth, self.deeds = truth, deeds
        self.now_s = 0.0
        self.over = False
        self.lineage = Lineage()
        self.nodes: dict[str, Node] = {}
        self.gang: Gang | None = None
        """The newest generation that was opened."""
        self.parts: dict[tuple[int, int], dict[int, int]] = {}
        """(generation, step) -> worker -> version of its durable part."""
        self.saved: dict[str, Saved] = {}
        """Sealed checkpoints by URI."""
        self.seal_failures = 0
        """So many manifests from now on cannot be written."""
        self.downtime_s = 0.0
        """So long there was no controller, in all."""
        self.on_phase: list[Callable[[Gang], None]] = []
        """Asked at the begin of every step."""
        self.keeper = Keeper(
            lambda command: deeds.act(self, command),
            lambda action: self.at(costs.decide_s, action),
            self._controller_died,
            truth,
            lambda: self.now_s,
        )
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    # -- time

    def at(self, delay_s: float, action: Callable[[], object]) -> None:
        """Let something happen later."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._count, action))

    def run(self, until_s: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let things happen until a time, until the job is over, or until `stop` holds."""
        while self._queue and not self.over and self._queue[0][0] <= until_s and not stop():
            self.now_s, _, action = heapq.heappop(self._queue)
            action()

    def between(self, shortest: float, longest: float) -> float:
        """A random number."""
        return shortest + (longest - shortest) * float(self.rng.random())

    # -- from agents to the controller

    def process(self, worker: int) -> Process | None:
        """A worker's process, if it lives."""
        for node in self.nodes.values():
            process = node.processes.get(worker)
            if process is not None and not process.dead:
                return process
        return None

    def report(self, process: Process, report: WorkerReport, delay_s: float = 0.0) -> None:
        """Have a worker say something, if it lives and is awake then, in the order of its words."""
        node = process.node

        def speak() -> None:
            if not process.dead and not process.hung:
                self.say(node, process.number, Reported(0.0, node.name, report))

        self.at(delay_s, speak)

    def say(self, node: Node, worker: int, event: Event) -> None:
        """Send an event from an agent; those of one worker keep their order."""
        arrival_s = self.now_s + self.between(1.0, 2.0) * self.costs.link_s
        arrival_s = max(arrival_s, node.arrival_s.get(worker, 0.0))
        node.arrival_s[worker] = arrival_s
        self.at(arrival_s - self.now_s, lambda: self.deliver(node, event))

    def deliver(self, node: Node, event: Event) -> None:
        """Hand an agent's event to the controller, or keep it until there is one."""
        if not node.runs:
            return
        waits = node.cut or not node.attached or not self.keeper.up or node.backlog
        if node.given_up and not node.cut and self.keeper.up:
            self.deeds.end_agent(self, node)
        elif waits:
            node.backlog.append(event)
        elif self.post(event):
            node.recent.append(event)
        else:
            node.backlog.append(event)

    def post(self, event: Event) -> bool:
        """Give the controller an event; whether it answered."""
        try:
            self.keeper.post(replace(event, at_s=self.now_s))
        except CrashedError:
            return False
        return True

    def flush(self, node: Node) -> None:
        """Deliver what an agent kept, in order."""
        while node.backlog and node.reachable and self.keeper.up:
            if not self.post(node.backlog[0]):
                return
            node.recent.append(node.backlog.pop(0))

    # -- from the controller to agents

    def tell(self, name: str, action: Callable[[Node], None]) -> bool:
        """Call an agent; whether the controller knows one of this name. Calls keep their order."""
        node, term = self.nodes.get(name), self.keeper.term
        if node is None or not node.attached or node.given_up:
            return False

        def arrive() -> None:
            if not node.runs or node.given_up or term < node.term:
                return
            if node.cut:
                node.held.append((term, lambda: action(node)))
                return
            node.term = term
            action(node)

        self.at(self.costs.link_s, arrive)
        return True

    # -- nodes come and go

    def bring_up(self, name: str, domain: str, capacity: int, memory_bytes: int = 0) -> None:
        """A machine arrives; its agent is ready a little later."""
        known = self.nodes.get(name)
        if known is not None and known.runs and not known.given_up:
            return
        node = self.nodes[name] = Node(name, domain, capacity, memory_bytes)
        self.at(self.costs.agent_place_s if self.now_s else 0.0, lambda: self.attach(node))

    def attach(self, node: Node) -> None:
        """Let the controller know a node, as soon as there is one."""
        if self.over or not node.runs or node.given_up or node.attached:
            return
        if not self.keeper.up or node.cut:
            self.at(RETRY_S, lambda: self.attach(node))
            return
        node.attached, node.term = True, self.keeper.term
        self.post(_up(node))
        self.flush(node)

    def lose(self, node: Node, evidence: str) -> None:
        """The controller finds that a node is gone; without a controller the next one does."""
        if self.over or not self.keeper.up or not node.attached or node.given_up:
            return
        node.given_up, node.attached = True, False
        self.post(NodeLost(0.0, node.name, evidence))

    # -- controllers come and go

    def _controller_died(self) -> None:
        for node in self.nodes.values():  # nobody answered the last batch: it comes again
            node.backlog[:0] = node.recent
            node.recent.clear()
        down_s = self.costs.controller_restart_s
        self.downtime_s += down_s
        self.at(down_s, self._take_over)

    def _take_over(self) -> None:
        if self.over or self.keeper.up:
            return
        commands = self.keeper.take_over()
        state, term = self.keeper.state, self.keeper.term
        if not self.post(TermBegan(self.now_s, term, "simulated")):
            return
        for name in state.nodes:
            if not self._find_again(name):
                return
        for node in list(self.nodes.values()):
            if node.name not in state.nodes and not node.given_up:
                node.attached = False
                self.at(RETRY_S, partial(self.attach, node))
        for command in commands:
            self.keeper.act(command)

    def _find_again(self, name: str) -> bool:
        """Attach a node's agent again, or declare it lost; false if the controller died of it."""
        node = self.nodes.get(name)
        if node is None or not node.reachable:
            if node is not None and node.attached:
                node.given_up, node.attached = True, False
            return self.post(NodeLost(0.0, name, "its agent did not survive the controller"))
        node.term = self.keeper.term
        facts: list[Event] = [_up(node)]
        facts += [
            Reported(0.0, name, WorkerReady(process.number, 1000 + process.number))
            for process in node.living()
            if process.ready
        ]
        for fact in facts:
            if not self.post(fact):
                return False
        self.flush(node)
        return self.keeper.up

    @property
    def state(self) -> JobState:
        """What the brain knows."""
        return self.keeper.state


def _up(node: Node) -> NodeUp:
    return NodeUp(0.0, node.name, node.domain, node.name, node.capacity, node.memory_bytes)

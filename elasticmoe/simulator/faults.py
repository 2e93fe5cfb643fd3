"""Harm, as data: what happens, when, and to whom."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from elasticmoe.controller.record import Decided, Record
from elasticmoe.messages.events import NodeLeaving, Reported
from elasticmoe.messages.worker import WorkerFailed
from elasticmoe.simulator import leaving
from elasticmoe.simulator.gang import Gang
from elasticmoe.simulator.nodes import Node, Process
from elasticmoe.simulator.world import World

Kind = Literal[
    "crash",
    "hang",
    "stall",
    "fail",
    "cut",
    "lose_node",
    "vanish_node",
    "lose_domain",
    "preempt",
    "agent",
    "partition",
    "slow",
    "controller",
    "seal",
    "node_up",
]
"""crash, hang, stall, fail: one worker ends, stops, makes no progress, ends with its own error.
cut: the gang's connections break, everybody lives. lose_node, vanish_node: a machine ends, with and
without resets that its peers see. lose_domain: all machines of a failure domain end together.
preempt: a machine's end is announced, and comes. agent: an agent ends, its machine lives.
partition: an agent and the controller do not hear each other. slow: a node's workers take longer.
controller: it dies behind a record. seal: manifests cannot be written. node_up: one arrives."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them."""

    kind: Kind
    at_s: float
    """Not before."""
    pick: float = 0.0
    """Which of those that it could hit, 0 to 1."""
    phase: str = ""
    """Not empty: in the first step that begins then, in this phase (compute, prepare, vote, apply,
    publish)."""
    share: float = 0.5
    """How far into the phase."""
    after: str = ""
    """Not empty: behind the first decision of this class that is taken then."""
    delay_s: float = 0.0
    """So long behind it."""
    lasts_s: float = 0.0
    """hang, partition, slow: for so long (0: for good); preempt: from the notice to the end."""
    records: int = 0
    """controller: so many records later."""
    acts: int = 0
    """controller: so many commands of its last turn are still carried out."""
    node: str = ""
    """A certain node; empty: `pick` says which."""
    domain: str = ""
    """node_up: where it arrives."""
    capacity: int = 0
    """node_up: workers that fit."""
    memory_bytes: int = 0
    """node_up: what it has; 0: it does not say."""


@dataclass(frozen=True, slots=True)
class Fired:
    """A fault that happened."""

    at_s: float
    kind: Kind
    whom: str
    generation: int
    """That it hit; 0: no gang."""


class Injector:
    """Lets faults happen when their time has come."""

    def __init__(self, world: World, fired: Callable[[Fired], None]) -> None:
        """
        Args:
            fired: is told of every fault that really hit something.
        """
        self._world, self._fired = world, fired
        self._after: list[Fault] = []
        self._stopped = False
        world.on_phase.append(self._step_began)
        self._in_phase: list[Fault] = []

    def plan(self, faults: Sequence[Fault]) -> None:
        """Let faults happen at their times."""
        for fault in faults:
            self._world.at(max(fault.at_s - self._world.now_s, 0.0), partial(self._due, fault))

    def stop(self) -> None:
        """Let nothing more happen."""
        self._stopped = True

    def recorded(self, record: Record) -> None:
        """A record was written: faults that wait for a decision of its class come behind it."""
        if not self._after or not isinstance(record.body, Decided):
            return
        name = type(record.body.decision).__name__
        for fault in [fault for fault in self._after if fault.after == name]:
            self._after.remove(fault)
            self._world.at(fault.delay_s, partial(self._strike, fault))

    def _due(self, fault: Fault) -> None:
        if fault.after:
            self._after.append(fault)
        elif fault.phase:
            self._in_phase.append(fault)
        else:
            self._strike(fault)

    def _step_began(self, gang: Gang) -> None:
        waiting, self._in_phase = self._in_phase, []
        for fault in waiting:
            self._world.at(_moment(gang, fault), partial(self._strike, fault))

    def _strike(self, fault: Fault) -> None:
        if self._world.over or self._stopped:
            return
        whom = STRIKE[fault.kind](self._world, fault)
        if whom:
            gang = self._world.gang
            generation = gang.generation if gang is not None and not gang.ended else 0
            self._fired(Fired(self._world.now_s, fault.kind, whom, generation))


def _moment(gang: Gang, fault: Fault) -> float:
    phases = gang.phases
    assert phases is not None, "a step begins"
    ends = {
        "compute": (0.0, phases.agree),
        "prepare": (phases.agree, phases.prepare),
        "vote": (phases.prepare, phases.vote + phases.spread),
        "apply": (phases.vote, phases.primaries),
        "publish": (phases.primaries, phases.apply),
    }
    first, end = ends[fault.phase]
    return first + fault.share * (end - first)


def _victim(world: World, fault: Fault) -> Process | None:
    """A worker of the gang, if one trains; else any."""
    if fault.node:
        node = world.nodes.get(fault.node)
        there = node.living() if node is not None else []
        return there[int(fault.pick * len(there)) % len(there)] if there else None
    gang = world.gang
    if gang is not None and not gang.ended:
        members = [(member.node, member.worker) for member in gang.plan.members]
        start = int(fault.pick * len(members)) % len(members)
        for name, worker in (*members[start:], *members[:start]):
            node = world.nodes.get(name)
            process = node.processes.get(worker) if node else None
            if process is not None and not process.dead:
                return process
    found = [process for node in world.nodes.values() for process in node.living()]
    return found[int(fault.pick * len(found)) % len(found)] if found else None


def _node(world: World, fault: Fault) -> Node | None:
    if fault.node:
        node = world.nodes.get(fault.node)
        return node if node is not None and node.runs else None
    found = [node for node in world.nodes.values() if node.runs and not node.given_up]
    return found[int(fault.pick * len(found)) % len(found)] if found else None


def _crash(world: World, fault: Fault) -> str:
    process = _victim(world, fault)
    if process is None:
        return ""
    leaving.die(world, process, "killed by signal 9")
    return f"worker {process.number}"


def _hang(world: World, fault: Fault) -> str:
    process = _victim(world, fault)
    if process is None or process.hung or not process.ready:
        return ""
    leaving.hang(world, process, fault.lasts_s)
    return f"worker {process.number}"


def _stall(world: World, fault: Fault) -> str:
    process = _victim(world, fault)
    if process is None or process.gang is None or process.hung or process.stuck:
        return ""
    leaving.stall(world, process)
    return f"worker {process.number}"


def _fail(world: World, fault: Fault) -> str:
    """A worker's own error: it says so and ends; the number of its step is part of its code, so
    that no two of them are the same failure."""
    process = _victim(world, fault)
    gang = process.gang if process is not None else None
    if process is None or gang is None or process.hung or process.stuck:
        return ""
    code = f"error_{int(fault.pick * 1e6)}"
    report = WorkerFailed(gang.generation, process.number, gang.step, code, "simulated")
    world.say(process.node, process.number, Reported(0.0, process.node.name, report))
    leaving.die(world, process, "exit status 1")
    return f"worker {process.number}"


def _cut(world: World, fault: Fault) -> str:
    gang = world.gang
    if gang is None or gang.ended:
        return ""
    hit = [
        process
        for node in world.nodes.values()
        for process in node.living()
        if process.gang is gang
    ]
    chosen = hit[int(fault.pick * len(hit)) % len(hit) :][:2] if hit else []
    for process in chosen:
        leaving.break_off(world, process, "connection reset by peer")
    return ", ".join(f"worker {process.number}" for process in chosen)


def _lose_node(world: World, fault: Fault, *, seen: bool = True) -> str:
    node = _node(world, fault)
    if node is None:
        return ""
    lose(world, node, seen=seen)
    return f"node {node.name}"


def _lose_domain(world: World, fault: Fault) -> str:
    first = _node(world, fault)
    if first is None:
        return ""
    lost = [node for node in world.nodes.values() if node.domain == first.domain and node.runs]
    if len(lost) == sum(node.runs for node in world.nodes.values()):
        lost = lost[:-1]
    for node in lost:
        lose(world, node, seen=True)
    return f"domain {first.domain} ({len(lost)} nodes)" if lost else ""


def _preempt(world: World, fault: Fault) -> str:
    node = _node(world, fault)
    if node is None or not node.attached or not world.keeper.up:
        return ""
    world.post(NodeLeaving(0.0, node.name, world.now_s + fault.lasts_s, "Ray drains it"))

    def end() -> None:
        if node.runs:
            lose(world, node, seen=True)
            world.truth.lost("preempt", node)

    world.at(fault.lasts_s, end)
    return f"node {node.name}"


def lose(world: World, node: Node, *, seen: bool) -> None:
    """A machine ends; the evidence comes a little later."""
    leaving.end_node(world, node, seen=seen)
    node.alive = False
    delay_s = world.costs.node_lost_s * world.between(0.7, 1.3)
    world.at(delay_s, lambda: world.lose(node, "Ray says that the node is dead"))


def _agent(world: World, fault: Fault) -> str:
    node = _node(world, fault)
    if node is None:
        return ""
    leaving.end_node(world, node, seen=True)
    node.agent = False
    world.at(world.costs.node_lost_s, lambda: world.lose(node, "its agent's process is gone"))
    back_s = world.costs.node_lost_s + world.costs.agent_place_s
    world.at(back_s, partial(_bring_back, world, node))
    return f"agent of node {node.name}"


def _bring_back(world: World, node: Node) -> None:
    """Another agent on the same machine."""
    world.bring_up(node.name, node.domain, node.capacity, node.memory_bytes)


def _partition(world: World, fault: Fault) -> str:
    node = _node(world, fault)
    if node is None or node.cut or not node.attached:
        return ""
    node.cut = True
    costs = world.costs
    world.at(costs.lease_s, lambda: _lease_ends(world, node))
    world.at(costs.agent_patience_s, lambda: _patience_ends(world, node))
    if fault.lasts_s:
        world.at(fault.lasts_s, lambda: _heal(world, node))
    return f"node {node.name}"


def _lease_ends(world: World, node: Node) -> None:
    if node.cut and node.runs:
        world.lose(node, f"no word from its agent for {world.costs.lease_s:g} s")
        world.truth.lost("partition", node)


def _patience_ends(world: World, node: Node) -> None:
    if node.cut and node.runs:
        leaving.end_node(world, node, seen=True)
        node.agent = False


def _heal(world: World, node: Node) -> None:
    """The link works again: what waited is delivered, unless the node was given up meanwhile."""
    if not node.cut:
        return
    node.cut = False
    if node.given_up or not node.runs:
        if node.runs:
            leaving.end_node(world, node, seen=True)
            node.agent = False
        if node.alive and world.nodes.get(node.name) is node:
            _bring_back(world, node)
        return
    held, node.held = node.held, []
    for term, action in held:
        if term >= node.term:
            node.term = term
            action()
    world.flush(node)


def _slow(world: World, fault: Fault) -> str:
    node = _node(world, fault)
    if node is None:
        return ""
    node.slow = 2.0 + 4.0 * fault.share

    def again() -> None:
        node.slow = 1.0

    world.at(fault.lasts_s or 1.0, again)
    return f"node {node.name}"


def _controller(world: World, fault: Fault) -> str:
    keeper = world.keeper
    if not keeper.up or keeper.crash_at >= 0:
        return ""
    keeper.crash_at = len(keeper.records) + fault.records
    keeper.acts_before_crash = fault.acts
    return f"controller behind record {keeper.crash_at}"


def _seal(world: World, fault: Fault) -> str:
    world.seal_failures += 1
    return "the next manifest"


def _node_up(world: World, fault: Fault) -> str:
    name = fault.node or f"extra-{int(fault.pick * 1e6)}"
    known = world.nodes.get(name)
    if known is not None and known.runs and not known.given_up:
        return ""
    world.bring_up(name, fault.domain or name, fault.capacity or 1, fault.memory_bytes)
    return f"node {name}"


STRIKE: dict[str, Callable[[World, Fault], str]] = {
    "crash": _crash,
    "hang": _hang,
    "stall": _stall,
    "fail": _fail,
    "cut": _cut,
    "lose_node": _lose_node,
    "vanish_node": lambda world, fault: _lose_node(world, fault, seen=False),
    "lose_domain": _lose_domain,
    "preempt": _preempt,
    "agent": _agent,
    "partition": _partition,
    "slow": _slow,
    "controller": _controller,
    "seal": _seal,
    "node_up": _node_up,
}

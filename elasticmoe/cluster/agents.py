"""The controller's view of the agents: find room, place and attach them, notice their loss."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import ray
from ray._private.state import available_resources_per_node
from ray._private.state import state as ray_state
from ray.exceptions import RayError

from elasticmoe.cluster.agent_actor import Hello, place_agent
from elasticmoe.cluster.connect import reason_of
from elasticmoe.cluster.line import until_gone
from elasticmoe.cluster.run import (
    NAMESPACE,
    RayNode,
    Run,
    Seat,
    decide_grants,
    local_seat,
    worker_resources,
)
from elasticmoe.errors import ClusterError
from elasticmoe.telemetry.log import get_log

log = get_log(__name__)

LOOK_INTERVAL_S: Final = 0.5
"""How often Ray is asked for its nodes while workers are missing."""
IDLE_LOOK_INTERVAL_S: Final = 2.0
"""The same while none are: for notices, which come tens of seconds ahead. A Ray of our own has
one node, that nobody drains: it is not asked again before a worker may be missing."""
NO_DEADLINE_S: Final = 30.0
"""Whoever drains a node without saying until when waits about so long before it goes."""
LEASE_TICKS: Final = 8
"""An agent that was silent at so many ticks in a row is lost. Ticks, not seconds: if this process
itself was held up, the agents' reports wait in its queue."""
TICK_S: Final = 0.5
ATTACH_TIMEOUT_S: Final = 30.0
"""From the order to an agent's first answer; Ray starts a process for it."""

FIND_TIMEOUT_S: Final = 10.0
"""The same of one that was there before: Ray itself takes long to say that a node is cut off, and
the others wait for their controller."""


@dataclass(slots=True)
class Agent:
    """An agent that was attached."""

    seat: Seat
    handle: Any
    incarnation: str
    line: tuple[str, int]
    """Where its process can be held on to."""
    silent_ticks: int = 0
    watching: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Agents:
    """All agents of a run."""

    run: Run
    term: int
    on_up: Callable[[str, list[bytes]], Awaitable[None]]
    """A node's agent is attached: its name and facts."""
    on_lost: Callable[[str, str], Awaitable[None]]
    """A node is lost: its name and the evidence."""
    on_leaving: Callable[[str, float, str], Awaitable[None]]
    """A node goes away soon: its name, the seconds left, the evidence."""
    shunned: Callable[[], frozenset[str]]
    """Nodes that the job keeps away from: their seats are to be found elsewhere."""
    by_node: dict[str, Agent] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    """Incarnations that were declared lost, and must end themselves."""
    placing: dict[str, tuple[Seat, asyncio.Task[None]]] = field(default_factory=dict)
    """Asked for, not attached yet."""
    draining: dict[str, float] = field(default_factory=dict)
    """Ray's ids of the nodes that are being drained, and until when (Unix time; 0: unknown)."""
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    """Workers may be missing since the last look."""
    _claiming: list[asyncio.Task[None]] = field(default_factory=list)

    async def look(self) -> None:
        """Find nodes, place agents where workers are missing, drop those whose node is gone."""
        plain_nodes = await asyncio.to_thread(ray.nodes)
        found = [RayNode.from_ray(plain) for plain in plain_nodes if plain["Alive"]]
        nodes = {node.id for node in found}
        for name, agent in list(self.by_node.items()):
            if agent.seat.node.id not in nodes:
                await self._lose(name, "Ray says that the node is dead")
        await self._look_for_drains()
        found = [node for node in found if node.id not in self.draining]
        for seat in await self._missing_seats(found):
            self.placing[seat.name] = (seat, asyncio.ensure_future(self._place(seat)))

    async def _look_for_drains(self) -> None:
        """Learn of preemption notices: whoever gets one has Ray drain the node."""
        before = self.draining
        self.draining = await asyncio.to_thread(draining_nodes)
        for name, agent in list(self.by_node.items()):
            node_id = agent.seat.node.id
            until_s = self.draining.get(node_id)
            if until_s is not None and before.get(node_id) != until_s:
                left_s = until_s - time.time() if until_s else NO_DEADLINE_S
                await self.on_leaving(name, left_s, "Ray drains it")

    async def find_again(self, names: list[str]) -> None:
        """After a restart of the controller: attach the agents that are still there.

        Args:
            names: of the nodes on record. An agent that was being placed when the last controller
                died is on none, and holds its node's room: it is attached as well.
        """
        nodes = {plain["NodeID"]: RayNode.from_ray(plain) for plain in ray.nodes()}
        prefix = self.run.agent_name("")
        there = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        placed = {
            actor["name"].removeprefix(prefix)
            for actor in there
            if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
        }
        for name in placed - set(names):
            self._claiming.append(asyncio.ensure_future(self._claim(name, nodes)))
        await asyncio.gather(*(self._find(name, nodes) for name in names))

    async def _find(self, name: str, nodes: dict[str, RayNode]) -> None:
        try:
            handle = ray.get_actor(self.run.agent_name(name), NAMESPACE)
            asking: asyncio.Future[tuple[str, int]]
            asking = asyncio.ensure_future(handle.whereabouts.remote())
            node_id, capacity = await asyncio.wait_for(asking, FIND_TIMEOUT_S)
            await self._attach(Seat(nodes[node_id], name, capacity, {}), handle, FIND_TIMEOUT_S)
        except TimeoutError:
            await self.on_lost(name, f"its agent did not answer within {FIND_TIMEOUT_S:g} s")
        except (RayError, ValueError, KeyError) as error:
            reason = reason_of(error)
            await self.on_lost(name, f"its agent did not survive the controller: {reason}")

    async def keep_watch(self) -> None:
        """Look for nodes and count silence, for as long as the job runs.

        Side by side: as long as Ray's head is away, it does not answer, and agents are watched
        all the same.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_looking())
            group.create_task(self._keep_counting())

    async def _keep_looking(self) -> None:
        while True:
            self._room.clear()
            try:
                await self.look()
            except RayError as error:
                log.warning("not_looked", reason=reason_of(error))
            await asyncio.sleep(LOOK_INTERVAL_S)
            if self._is_full():
                pause_s = None if self.run.ours else IDLE_LOOK_INTERVAL_S - LOOK_INTERVAL_S
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), pause_s)

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for name, agent in list(self.by_node.items()):
                agent.silent_ticks += 1
                if agent.silent_ticks > LEASE_TICKS:
                    await self._lose(name, f"no word from its agent for {LEASE_TICKS * TICK_S:g} s")

    def heard(self, node: str, incarnation: str) -> bool | None:
        """Whether an agent belongs to the job; none if that is not known yet."""
        agent = self.by_node.get(node)
        if agent is not None and agent.incarnation == incarnation:
            agent.silent_ticks = 0
            return True
        return False if incarnation in self.given_up else None

    def call(self, node: str, method: str, *arguments: Any) -> Any:
        """Call an agent; returns an awaitable. Calls to one agent arrive in this order.

        Raises:
            ClusterError: the node has no agent.
        """
        agent = self.by_node.get(node)
        if agent is None:
            raise ClusterError(f"node {node} has no agent")
        return getattr(agent.handle, method).remote(self.term, *arguments)

    async def end_all(self, reason: str, timeout_s: float) -> None:
        """End all agents and their workers."""
        agents, self.by_node = list(self.by_node.values()), {}
        ends = [agent.handle.end.remote(self.term, reason) for agent in agents]
        if ends:
            await asyncio.wait([asyncio.ensure_future(end) for end in ends], timeout=timeout_s)
        for agent in agents:
            if agent.watching is not None:
                agent.watching.cancel()
            ray.kill(agent.handle)

    async def _missing_seats(self, nodes: list[RayNode]) -> list[Seat]:
        run = self.run
        if self._is_full():
            return []
        shunned = self._ids_of(self.shunned())
        nodes = [node for node in nodes if node.id not in shunned]
        if run.ours:
            return [local_seat(run, node) for node in nodes]
        each = worker_resources(run, nodes)
        available = await asyncio.to_thread(available_resources_per_node)
        free = {
            node.id: min(
                int(available.get(node.id, {}).get(name, 0) // amount)
                for name, amount in each.items()
            )
            for node in nodes
        }
        granted: dict[str, int] = {}
        for seat in self._seats():
            granted[seat.node.id] = granted.get(seat.node.id, 0) + seat.capacity
        grants = decide_grants(free, granted, self._wanted)
        by_id = {node.id: node for node in nodes}
        return [
            Seat(
                by_id[node_id],
                self._free_name(by_id[node_id]),
                count,
                {name: amount * count for name, amount in each.items()},
            )
            for node_id, count in grants.items()
        ]

    def _seats(self) -> list[Seat]:
        """Seats that the job counts on."""
        shunned = self.shunned()
        seats = [agent.seat for name, agent in self.by_node.items() if name not in shunned]
        return seats + [seat for seat, _ in self.placing.values()]

    @property
    def _wanted(self) -> int:
        workers = self.run.job.workers
        return workers.max if self.run.ours else workers.replicas + workers.spares

    def _is_full(self) -> bool:
        return sum(seat.capacity for seat in self._seats()) >= self._wanted

    def _ids_of(self, names: frozenset[str]) -> frozenset[str]:
        agents = (self.by_node.get(name) for name in names)
        return frozenset(agent.seat.node.id for agent in agents if agent is not None)

    def _free_name(self, node: RayNode) -> str:
        number = 1
        while _seat_name(node, number) in {*self.by_node, *self.placing}:
            number += 1
        return _seat_name(node, number)

    async def _place(self, seat: Seat) -> None:
        handle = None
        try:
            handle = place_agent(self.run, seat)
            await self._attach(seat, handle)
        except (RayError, TimeoutError, ValueError) as error:  # somebody else took the room
            log.warning("agent_not_placed", node=seat.name, reason=reason_of(error))
            if handle is not None:
                ray.kill(handle)
        finally:
            del self.placing[seat.name]
            self._room.set()

    async def _claim(self, name: str, nodes: dict[str, RayNode]) -> None:
        """Attach an agent that somebody else had placed; it may be starting still."""
        try:
            handle = ray.get_actor(self.run.agent_name(name), NAMESPACE)
            asking: asyncio.Future[tuple[str, int]]
            asking = asyncio.ensure_future(handle.whereabouts.remote())
            node_id, capacity = await asyncio.wait_for(asking, ATTACH_TIMEOUT_S)
            if name not in {*self.by_node, *self.placing}:
                await self._attach(Seat(nodes[node_id], name, capacity, {}), handle)
        except (RayError, ValueError, KeyError, TimeoutError) as error:  # it ends by itself
            log.warning("agent_not_claimed", node=name, reason=reason_of(error))

    async def _attach(self, seat: Seat, handle: Any, timeout_s: float = ATTACH_TIMEOUT_S) -> None:
        attaching = asyncio.ensure_future(handle.attach.remote(self.term))
        hello: Hello = await asyncio.wait_for(attaching, timeout_s)
        agent = Agent(seat, handle, hello.incarnation, hello.line)
        self.by_node[seat.name] = agent
        agent.watching = asyncio.ensure_future(self._watch(agent))
        await self.on_up(seat.name, hello.lines)

    async def _watch(self, agent: Agent) -> None:
        """Learn of an agent's end: from Ray, or from its own line where Ray takes long."""
        ray_says = asyncio.ensure_future(_until_ended(agent.handle))
        heard = partial(self.heard, agent.seat.name, agent.incarnation)
        line_says = asyncio.ensure_future(until_gone(*agent.line, heard))
        try:
            await asyncio.wait({ray_says, line_says}, return_when=asyncio.FIRST_COMPLETED)
            evidence = ray_says.result() if ray_says.done() else "its agent's process is gone"
        finally:
            ray_says.cancel()
            line_says.cancel()
        if self.by_node.get(agent.seat.name) is agent:
            await self._lose(agent.seat.name, evidence)

    async def _lose(self, name: str, evidence: str) -> None:
        agent = self.by_node.pop(name)
        self._room.set()
        self.given_up.add(agent.incarnation)
        if agent.watching is not None and agent.watching is not asyncio.current_task():
            agent.watching.cancel()
        ray.kill(agent.handle)
        await self.on_lost(name, evidence)


def draining_nodes() -> dict[str, float]:
    """Ray's ids of the nodes that are being drained, and until when (Unix time; 0: unknown).

    Ray tells an actor nothing of its own drain; its own libraries (Serve, Train) ask here too.
    """
    return {node: until_ms / 1000 for node, until_ms in ray_state.get_draining_nodes().items()}


async def _until_ended(handle: Any) -> str:
    try:
        await handle.watch.remote()
    except RayError:
        return "its agent's process is gone"
    return "its agent ended"


def _seat_name(node: RayNode, number: int) -> str:
    return node.name if number == 1 else f"{node.name}.{number}"

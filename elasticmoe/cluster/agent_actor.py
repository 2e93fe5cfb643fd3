"""The thin Ray shell around a node agent: a detached, named actor, one per seat."""

import asyncio
import logging
import os
import secrets
import sys
import threading
from dataclasses import dataclass, replace
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from elasticmoe.cluster.agent import Agent
from elasticmoe.cluster.agent_config import AgentConfig
from elasticmoe.cluster.connect import reason_of
from elasticmoe.cluster.line import open_line
from elasticmoe.cluster.memory import available_bytes
from elasticmoe.cluster.outbox import NotYetError
from elasticmoe.cluster.raylet import Raylet
from elasticmoe.cluster.run import NAMESPACE, Run, Seat
from elasticmoe.errors import ClusterError, ElasticMoEError
from elasticmoe.telemetry.log import get_log, start_logging

log = get_log(__name__)

CLAIM_TIMEOUT_S: Final = 60.0
"""An agent that no controller attached by then ends: it would hold its node's room for nobody."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What an agent answers to a controller that attaches it."""

    incarnation: str
    """Differs from every other agent's, also of the same name."""
    lines: list[bytes]
    """`Agent.facts`."""
    line: tuple[str, int]
    """Where a line to its process can be held; see `line.until_gone`."""


class AgentActor:
    """Runs an `Agent` in a Ray process; refuses controllers of an older term."""

    def __init__(
        self,
        config: AgentConfig,
        controller: str,
        ours: bool,
        claim_timeout_s: float = CLAIM_TIMEOUT_S,
    ) -> None:
        """Start at once whatever takes long.

        Args:
            config: this node's part of the job.
            controller: Ray name of the controller.
            ours: Ray was started for this job alone.
            claim_timeout_s: how long to wait for a controller that attaches it.
        """
        os.makedirs(config.log_dir, exist_ok=True)
        path = os.path.join(config.log_dir, f"agent-{config.node}.log")
        start_logging(open(path, "a", buffering=1))  # noqa: SIM115  (for the life of the process)
        logging.captureWarnings(True)
        self._raylet = Raylet(ours=ours)
        nice = _undo_niceness()
        gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
        config = replace(config, memory_bytes=available_bytes(), devices=gpus)
        self._agent = Agent(config, self._deliver)
        self._controller_name = controller
        self._controller: Any = None
        self._incarnation = secrets.token_hex(8)
        self._term = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._line = ("", 0)
        # Whoever asked for this agent may have died, and nobody else may know of it.
        self._unclaimed = threading.Timer(claim_timeout_s, os._exit, (0,))
        self._unclaimed.daemon = True
        self._unclaimed.start()
        if nice > 0:
            self._agent.notice(
                f"node {config.node}: workers run at niceness {nice}, which may not be undone "
                "here; any other busy process slows them. Set RAY_worker_niceness=0 for Ray"
            )

    async def attach(self, term: int) -> Hello:
        """Belong to a controller from now on."""
        self._heed(term)
        self._unclaimed.cancel()
        if not self._tasks:
            await self._agent.start()
            self._line = await open_line(self._agent.config.host, self._agent.is_answered)
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._raylet.end_with_it(self._agent.close)),
                loop.create_task(self._leave_when_over()),
            ]
            log.info("attached", term=term, node=self._agent.config.node)
        return Hello(self._incarnation, self._agent.facts(), self._line)

    async def whereabouts(self) -> tuple[str, int]:
        """Ray's id of this node, and the workers that were granted here."""
        return ray.get_runtime_context().get_node_id(), self._agent.config.capacity

    async def watch(self) -> None:
        """Return when the agent has ended; whoever waits for this learns of a crash at once."""
        await self._agent.over.wait()

    async def start_workers(self, term: int, workers: tuple[int, ...]) -> None:
        """See `Agent.start_workers`."""
        self._heed(term)
        await self._agent.start_workers(workers)

    async def kill_workers(self, term: int, workers: tuple[int, ...]) -> None:
        """See `Agent.kill_workers`."""
        self._heed(term)
        self._agent.kill_workers(workers)

    async def open_store(self, term: int, generation: int) -> tuple[str, int]:
        """See `Agent.open_store`."""
        self._heed(term)
        return await self._agent.open_store(generation)

    async def form(self, term: int, generation: int, lines: dict[int, bytes]) -> None:
        """See `Agent.form`."""
        self._heed(term)
        await self._agent.form(generation, lines)

    async def forget_vaults(self, term: int, workers: tuple[int, ...]) -> None:
        """See `Agent.forget_vaults`."""
        self._heed(term)
        self._agent.forget_vaults(workers)

    async def instruct(self, term: int, generation: int, line: bytes) -> None:
        """See `Agent.instruct`."""
        self._heed(term)
        self._agent.instruct(generation, line)

    async def break_generation(
        self, term: int, generation: int, members: tuple[int, ...], peer_died: bool
    ) -> None:
        """See `Agent.break_generation`."""
        self._heed(term)
        await self._agent.break_generation(generation, members, peer_died=peer_died)

    async def ask_clerk(self, term: int, request: dict[str, Any]) -> dict[str, Any]:
        """See `Agent.ask_clerk`."""
        self._heed(term)
        return await self._agent.ask_clerk(request)

    async def end(self, term: int, reason: str) -> None:
        """End all workers, then this process."""
        self._heed(term)
        await self._agent.end(reason)

    def _heed(self, term: int) -> None:
        if term < self._term:
            raise ClusterError(f"a controller of term {self._term} has taken over")
        self._term = term

    async def _deliver(self, lines: list[bytes]) -> bool:
        """Hand lines to the controller; see `Outbox`."""
        try:
            if self._controller is None:
                self._controller = ray.get_actor(self._controller_name, NAMESPACE)
            node = self._agent.config.node
            answer = await self._controller.post_reports.remote(node, self._incarnation, lines)
        except (RayError, ValueError, ElasticMoEError) as error:
            self._controller = None
            raise ConnectionError(reason_of(error)) from error
        if answer == "later":
            raise NotYetError("the controller begins, or cannot write its journal")
        if answer is None:
            raise ConnectionError("the controller does not know this agent yet")
        return answer

    async def _leave_when_over(self) -> None:
        await self._agent.over.wait()
        await asyncio.sleep(0.2)  # answers that are on their way
        log.info("left", node=self._agent.config.node)
        sys.stderr.flush()
        os._exit(0)


def place_agent(run: Run, seat: Seat, warm_parent: str | None = None) -> Any:
    """Ask Ray for an agent on a node, or find the one that is there; return its handle.

    The actor itself holds the seat's resources, so that they are free again however it ends.
    """
    config = AgentConfig(
        node=seat.name,
        domain=seat.node.domain if seat.node.domain != seat.node.name else seat.name,
        host="127.0.0.1" if run.ours else seat.node.host,
        capacity=seat.capacity,
        job=run.job_json,
        log_dir=str(run.log_dir),
        entry=run.entry,
        warm_parent=warm_parent,
        patience_s=run.patience_s,
    )
    return (
        ray.remote(AgentActor)
        .options(
            name=run.agent_name(seat.name),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=seat.resources.get("CPU", 0),
            num_gpus=seat.resources.get("GPU", 0),
            scheduling_strategy=NodeAffinitySchedulingStrategy(seat.node.id, soft=False),
        )
        .remote(config, run.controller_name, run.ours)
    )


def _undo_niceness() -> int:
    """Ray runs actors at niceness 15 and children inherit it; return what is left of it."""
    try:
        for thread in os.listdir("/proc/self/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), 0)
    except PermissionError:
        return os.getpriority(os.PRIO_PROCESS, 0)
    return 0

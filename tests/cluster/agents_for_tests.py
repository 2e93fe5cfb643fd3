"""An agent on this event loop, without Ray, and what it tells its controller."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from jobs_for_tests import tiny_job

from elasticmoe.cluster.agent import Agent
from elasticmoe.cluster.agent_config import AgentConfig
from elasticmoe.messages.codec import to_line
from elasticmoe.messages.worker import FormGang, FromMemory

PATIENCE_S = 30.0
"""A warm parent imports torch, which takes long on a machine that is busy."""


class Controller:
    """Keeps what an agent delivers, with the time it came."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, dict[str, Any]]] = []
        self.answers = True
        self.has_given_up = False

    async def deliver(self, lines: list[bytes]) -> bool:
        if not self.answers:
            raise ConnectionError("no controller")
        self.heard += [(time.monotonic(), json.loads(line)) for line in lines]
        return not self.has_given_up

    def kinds(self) -> list[str]:
        return [message["kind"] for _, message in self.heard]

    async def wait_for(self, kind: str, count: int = 1) -> list[tuple[float, dict[str, Any]]]:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            found = [(at, m) for at, m in self.heard if m["kind"] == kind]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.005)
        raise AssertionError(f"{kind} did not come; heard {self.kinds()}")


def run_with_agent(
    tmp_path: Path,
    scenario: Callable[[Agent, Controller], Awaitable[None]],
    **changes: Any,
) -> None:
    """Run a scenario against a fresh agent, and end the agent afterwards."""

    async def main() -> None:
        controller = Controller()
        fields = {
            "node": "here",
            "domain": "here",
            "host": "127.0.0.1",
            "capacity": 4,
            "job": tiny_job(tmp_path / "run").model_dump_json(),
            "log_dir": str(tmp_path / "logs"),
            "entry": "fake_worker:run_worker",
            **changes,
        }
        agent = Agent(AgentConfig(**fields), controller.deliver)
        await agent.start()
        try:
            await scenario(agent, controller)
        finally:
            await agent.end("the test is over")

    asyncio.run(main())


async def form(
    agent: Agent, generation: int, workers: tuple[int, ...], memory: FromMemory | None = None
) -> dict[int, bytes]:
    """Have local workers form a generation; return the lines, to repeat them."""
    host, port = await agent.open_store(generation)
    plan = {"members": [{"worker": worker} for worker in workers]}
    lines = {
        worker: to_line(FormGang(generation, member, plan, host, port, None, memory=memory))
        for member, worker in enumerate(workers)
    }
    await agent.form(generation, lines)
    return lines


async def two_that_train(agent: Agent, controller: Controller) -> dict[int, int]:
    """Have workers 1 and 2 form a generation and take some steps; return their pids."""
    await agent.start_workers((1, 2))
    ready = await controller.wait_for("WorkerReady", 2)
    await form(agent, 1, (1, 2))
    await controller.wait_for("StepDone", 3)
    return {message["worker"]: message["pid"] for _, message in ready}


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still there: {[p for p in pids if is_alive(p)]}"
        await asyncio.sleep(0.005)

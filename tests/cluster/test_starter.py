"""A process stands by on a node; a worker that is needed is that one."""

import asyncio
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import slow_worker
from agents_for_tests import PATIENCE_S, Controller, form, run_with_agent, two_that_train
from processes import name_of, parent_of

from elasticmoe.cluster.agent import Agent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


async def ready_to_be(agent: Agent, log_dir: Path) -> int:
    """Pid of the process that stands by, when it has said that it is ready."""
    pid = await standing_by(log_dir)
    standby = agent._starter._standby
    assert standby is not None
    assert select.select([standby.ours], [], [], PATIENCE_S)[0]
    return pid


async def standing_by(log_dir: Path) -> int:
    """Pid of the process that stands by: a sibling of the workers."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        for entry in Path("/proc").iterdir():
            pid = int(entry.name) if entry.name.isdecimal() else 0
            if pid and name_of(pid).startswith("standby-") and _is_ours(pid, log_dir):
                return pid
        await asyncio.sleep(0.01)
    raise AssertionError("nobody stands by")


def _is_ours(pid: int, log_dir: Path) -> bool:
    """Whether its warm parent writes to this test's logs."""
    try:
        return os.readlink(f"/proc/{parent_of(pid)}/fd/2").startswith(str(log_dir))
    except OSError:  # it has ended, or is an orphan
        return False


def test_a_replacement_is_the_process_that_stood_by_and_the_next_one_stands_by_then(
    tmp_path: Path,
) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        pids = await two_that_train(agent, controller)
        standby = await ready_to_be(agent, tmp_path / "logs")
        os.kill(pids[2], signal.SIGKILL)
        await controller.wait_for("WorkerParked")

        await agent.start_workers((3,))

        ready = (await controller.wait_for("WorkerReady", 3))[2][1]
        assert (ready["worker"], ready["pid"]) == (3, standby)
        assert name_of(standby) == "worker-3"
        assert os.readlink(f"/proc/{standby}/fd/2") == str(tmp_path / "logs" / "worker-3.log")
        await form(agent, 2, (1, 3))
        await controller.wait_for("GangFormed", 4)
        assert await standing_by(tmp_path / "logs") != standby
        os.kill(standby, signal.SIGKILL)
        died = (await controller.wait_for("WorkerDied", 2))[1][1]
        assert (died["worker"], died["evidence"]) == (3, "killed by signal 9")

    run_with_agent(tmp_path, scenario)


def test_a_process_that_stood_by_and_died_is_no_loss(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await two_that_train(agent, controller)
        standby = await ready_to_be(agent, tmp_path / "logs")
        os.kill(standby, signal.SIGKILL)

        await agent.start_workers((3,))

        def said(kind: str, worker: int) -> list[dict[str, Any]]:
            heard = [message for _, message in controller.heard if message["kind"] == kind]
            return [message for message in heard if message["worker"] == worker]

        def lives(worker: int) -> bool:
            return any(ready["pid"] != standby for ready in said("WorkerReady", worker))

        while not lives(3) and not said("WorkerDied", 3):
            await asyncio.sleep(0.005)
        if not lives(3):  # it was asked before its death was known
            await agent.start_workers((4,))
            while not lives(4):
                await asyncio.sleep(0.005)

    run_with_agent(tmp_path, scenario)


def test_a_process_that_is_not_ready_is_not_taken_and_goes_on_getting_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv(slow_worker.GATE, str(gate))

    async def scenario(agent: Agent, controller: Controller) -> None:
        await two_that_train(agent, controller)
        standby = await standing_by(tmp_path / "logs")

        await agent.start_workers((3,))

        ready = (await controller.wait_for("WorkerReady", 3))[2][1]
        assert ready["worker"] == 3
        assert ready["pid"] != standby
        assert name_of(standby).startswith("standby-")
        os.close(os.open(gate, os.O_WRONLY))  # it waits for this
        assert await ready_to_be(agent, tmp_path / "logs") == standby
        await agent.start_workers((4,))
        ready = (await controller.wait_for("WorkerReady", 4))[3][1]
        assert (ready["worker"], ready["pid"]) == (4, standby)

    run_with_agent(tmp_path, scenario, entry="slow_worker:run_worker")

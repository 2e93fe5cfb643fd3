"""The node agent without Ray: real processes, fake training."""

import asyncio
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from agents_for_tests import (
    PATIENCE_S,
    Controller,
    form,
    run_with_agent,
    two_that_train,
    until_gone,
)

from elasticmoe.cluster import outbox
from elasticmoe.cluster.agent import Agent

pytestmark = [pytest.mark.dist, pytest.mark.timeout(60)]


def test_a_killed_worker_is_reported_and_the_other_is_told_that_the_generation_is_over(
    tmp_path: Path,
) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        pids = await two_that_train(agent, controller)

        os.kill(pids[2], signal.SIGKILL)

        ((_, died),) = await controller.wait_for("WorkerDied")
        assert died["worker"] == 2
        assert died["evidence"] == "killed by signal 9"
        ((_, parked),) = await controller.wait_for("WorkerParked")
        assert parked["worker"] == 1
        assert "WorkerSilent" not in controller.kinds()  # nobody had to wait for its lease

    run_with_agent(tmp_path, scenario)


def test_a_worker_started_beside_a_warm_parent_is_ready_in_milliseconds(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        began_s = time.monotonic()
        await agent.start_workers((1,))
        cold_s = (await controller.wait_for("WorkerReady"))[0][0] - began_s
        began_s = time.monotonic()

        await agent.start_workers((2,))

        warm_s = (await controller.wait_for("WorkerReady", 2))[1][0] - began_s
        assert warm_s < cold_s / 4  # 0.03 s and 2 s where nothing else runs

    run_with_agent(tmp_path, scenario)


def test_a_crash_in_a_worker_is_reported_with_its_exit_status_and_log(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((7,))

        ((_, died),) = await controller.wait_for("WorkerDied")

        assert died["evidence"] == "exit status 1"
        assert '{"worker": 7}' in Path(died["log"]).read_text()

    run_with_agent(tmp_path, scenario, entry="fake_worker:crash_at_once")


def test_an_unimportable_worker_ends_with_the_import_error_as_evidence(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1,))

        ((_, died),) = await controller.wait_for("WorkerDied")

        assert "No module named 'no_such_module'" in died["evidence"]

    run_with_agent(tmp_path, scenario, entry="no_such_module:run_worker")


def test_workers_end_with_their_warm_parent_and_new_ones_can_be_started(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1, 2))
        ready = await controller.wait_for("WorkerReady", 2)

        agent._warm_process.kill()

        await controller.wait_for("WorkerDied", 2)
        await until_gone([message["pid"] for _, message in ready])
        await agent.start_workers((3,))
        await controller.wait_for("WorkerReady", 3)

    run_with_agent(tmp_path, scenario)


def test_an_agent_that_no_controller_speaks_to_ends_itself_and_its_workers(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1,))
        ((_, ready),) = await controller.wait_for("WorkerReady")

        controller.answers = False

        await asyncio.wait_for(agent.over.wait(), PATIENCE_S)
        await until_gone([ready["pid"]])

    run_with_agent(tmp_path, scenario, patience_s=0.5)


def test_an_agent_that_the_controller_has_given_up_ends_itself_at_its_first_word(
    tmp_path: Path,
) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1,))
        ((_, ready),) = await controller.wait_for("WorkerReady")

        controller.has_given_up = True

        await asyncio.wait_for(agent.over.wait(), PATIENCE_S)
        await until_gone([ready["pid"]])

    run_with_agent(tmp_path, scenario)


def test_an_agent_whose_reports_meet_a_bug_ends_itself_and_its_workers(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1,))
        ((_, ready),) = await controller.wait_for("WorkerReady")

        async def stumble(lines: list[bytes]) -> bool:
            raise RuntimeError("not foreseen")

        agent._outbox._deliver = stumble

        await asyncio.wait_for(agent.over.wait(), PATIENCE_S)
        await until_gone([ready["pid"]])

    run_with_agent(tmp_path, scenario)


def test_an_agent_seems_well_only_while_what_it_says_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "ANSWERED_S", 0.3)
    monkeypatch.setattr(outbox, "HEARTBEAT_S", 0.05)

    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1,))
        await controller.wait_for("WorkerReady")
        assert agent.is_answered()
        taken, has_answer = agent._outbox._deliver, asyncio.Event()

        async def take_no_notice(lines: list[bytes]) -> bool:
            await has_answer.wait()
            return await taken(lines)

        agent._outbox._deliver = take_no_notice
        async with asyncio.timeout(PATIENCE_S):
            while agent.is_answered():
                agent.facts()  # a controller that speaks to it is no answer
                await asyncio.sleep(0.01)
            has_answer.set()
            while not agent.is_answered():
                await asyncio.sleep(0.01)

    run_with_agent(tmp_path, scenario)


def test_a_terminated_worker_is_a_death_with_the_signal_as_evidence(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1,))
        ((_, ready),) = await controller.wait_for("WorkerReady")

        os.kill(ready["pid"], signal.SIGTERM)

        ((_, died),) = await controller.wait_for("WorkerDied")
        assert died["evidence"] == "killed by signal 15"
        assert died["copies"] is None

    run_with_agent(tmp_path, scenario)


async def until_connected(pid: int) -> None:
    """Wait until a process has a connection: the fake has no other than the store's."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not any(c.status == "ESTABLISHED" for c in psutil.Process(pid).net_connections("tcp")):
        assert time.monotonic() < deadline_s, "the worker never came to the store"
        await asyncio.sleep(0.005)


def test_closing_a_store_frees_a_worker_that_waits_in_it(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1,))
        await controller.wait_for("WorkerReady")
        await form(agent, 1, (1, 99))  # 99 will never come
        ((_, ready),) = await controller.wait_for("WorkerReady")
        await until_connected(ready["pid"])

        await agent.break_generation(1, (1, 99))

        await controller.wait_for("WorkerDied")  # the fake lets the store's error end it

    run_with_agent(tmp_path, scenario)

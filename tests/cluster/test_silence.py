"""A worker whose heart stops: real processes, real signals."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agents_for_tests import Controller, form, run_with_agent, two_that_train, until_gone

from elasticmoe.cluster.agent import Agent
from elasticmoe.cluster.worker_process import core_waits, is_stopped

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]


async def kill(agent: Agent, controller: Controller, worker: int, pid: int) -> None:
    """As the controller has it done; the agent says what it came to."""
    agent.kill_workers((worker,))
    ((_, died),) = await controller.wait_for("WorkerDied")
    assert (died["worker"], died["evidence"]) == (worker, "killed by signal 9")
    await until_gone([pid])


def test_a_stopped_worker_is_reported_the_others_are_told_and_it_can_be_killed(
    tmp_path: Path,
) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        pids = await two_that_train(agent, controller)

        stopped_s = time.monotonic()
        os.kill(pids[2], signal.SIGSTOP)

        ((silent_s, silent),) = await controller.wait_for("WorkerSilent")
        assert is_stopped(pids[2])
        assert silent["worker"] == 2
        assert "the process is stopped" in silent["evidence"]
        assert silent_s - stopped_s > 0.1
        ((_, parked),) = await controller.wait_for("WorkerParked")
        assert parked["worker"] == 1
        assert "WorkerDied" not in controller.kinds()

        await kill(agent, controller, 2, pids[2])
        assert controller.kinds().count("WorkerSilent") == 1

    run_with_agent(tmp_path, scenario)


def test_a_worker_that_runs_but_does_not_beat_is_reported_later(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        pids = await two_that_train(agent, controller)

        muted_s = time.monotonic()
        os.kill(pids[1], signal.SIGUSR1)

        ((silent_s, silent),) = await controller.wait_for("WorkerSilent")
        assert silent["worker"] == 1
        assert "its lease was" in silent["evidence"]
        assert silent_s - muted_s > 0.3
        parked = [message for _, message in await controller.wait_for("WorkerParked", 2)]
        assert sorted(message["worker"] for message in parked) == [1, 2]

    run_with_agent(tmp_path, scenario)


def test_a_worker_that_keeps_its_interpreters_lock_is_reported_and_killed_from_outside(
    tmp_path: Path,
) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        pids = await two_that_train(agent, controller)

        os.kill(pids[2], signal.SIGUSR2)

        ((_, silent),) = await controller.wait_for("WorkerSilent")
        assert silent["worker"] == 2
        assert "its lease was" in silent["evidence"]
        assert not is_stopped(pids[2])  # it sleeps in the kernel, with the lock
        ((_, parked),) = await controller.wait_for("WorkerParked")
        assert parked["worker"] == 1
        assert "WorkerDied" not in controller.kinds()

        await kill(agent, controller, 2, pids[2])

    run_with_agent(tmp_path, scenario)


def test_a_worker_that_goes_on_within_its_lease_is_not_reported(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1,))
        ((_, ready),) = await controller.wait_for("WorkerReady")
        await form(agent, 1, (1,))
        await controller.wait_for("StepDone", 3)

        for _ in range(5):
            os.kill(ready["pid"], signal.SIGSTOP)
            await asyncio.sleep(0.04)  # of the 0.1 s that a stopped one has at least
            while not is_stopped(ready["pid"]):
                await asyncio.sleep(0.001)
            os.kill(ready["pid"], signal.SIGCONT)
            await controller.wait_for("StepDone", controller.kinds().count("StepDone") + 2)

        assert "WorkerSilent" not in controller.kinds()

    run_with_agent(tmp_path, scenario)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.soak)])
def test_two_busy_processes_beside_four_workers_raise_no_alarm(
    tmp_path: Path, seconds: int
) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]

    async def scenario(agent: Agent, controller: Controller) -> None:
        await agent.start_workers((1, 2, 3, 4))
        await controller.wait_for("WorkerReady", 4)
        await form(agent, 1, (1, 2, 3, 4))
        await controller.wait_for("GangFormed", 4)

        await asyncio.sleep(seconds)

        await controller.wait_for("StepDone", 100)
        assert "WorkerSilent" not in controller.kinds()

    try:
        run_with_agent(tmp_path, scenario)
        assert all(process.poll() is None for process in busy)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_the_kernel_tells_what_every_thread_of_a_process_has_waited_for_a_core() -> None:
    waits = core_waits(os.getpid())

    assert waits[os.getpid()] >= 0
    assert len(waits) == len(os.listdir("/proc/self/task"))
    assert core_waits(0) == {}

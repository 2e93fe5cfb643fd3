"""Memory that outlives its process: real processes whose training is fake, but not their vaults."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from agents_for_tests import Controller, form, run_with_agent, until_gone

from elasticmoe.cluster.agent import Agent
from elasticmoe.errors import ClusterError
from elasticmoe.messages.worker import FromMemory

pytestmark = [pytest.mark.dist, pytest.mark.timeout(60)]
ENTRY = "fake_worker:run_with_vault"


async def started(agent: Agent, controller: Controller, workers: tuple[int, ...]) -> dict[int, int]:
    """Pids by worker, once all are ready."""
    before = len([kind for kind in controller.kinds() if kind == "WorkerReady"])
    await agent.start_workers(workers)
    ready = (await controller.wait_for("WorkerReady", before + len(workers)))[before:]
    return {message["worker"]: message["pid"] for _, message in ready}


async def killed(controller: Controller, pid: int, count: int = 1) -> dict[str, Any]:
    """Kill a process; its `WorkerDied`, the `count`-th that is reported."""
    os.kill(pid, signal.SIGKILL)
    return (await controller.wait_for("WorkerDied", count))[-1][1]


def test_the_vault_of_a_killed_worker_is_read_reported_and_inherited_by_its_replacement(
    tmp_path: Path,
) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        pids = await started(agent, controller, (1, 2))
        await form(agent, 1, (1, 2))
        await controller.wait_for("StepDone", 5)

        died = await killed(controller, pids[2])

        copies = died["copies"]
        assert (copies["worker"], copies["generation"]) == (2, 1)
        assert copies["step"] >= 1
        assert dict(map(tuple, copies["whole"]))[copies["step"]] == [0, 1, 2, 3, 4, 5]
        assert (copies["phase"], copies["collective"]) == ("compute", copies["step"])
        ((_, parked),) = await controller.wait_for("WorkerParked")
        assert parked["copies"]["worker"] == 1
        assert parked["copies"]["step"] == parked["committed_step"]

        await started(agent, controller, (3,))
        will = FromMemory(step=copies["step"], moves=(), progress_from=0, heirs=((3, 2),))
        await form(agent, 2, (1, 3), will)
        formed = {m["worker"]: m for _, m in (await controller.wait_for("GangFormed", 4))[2:]}
        assert formed[3]["seconds"]["vault_step"] == copies["step"]
        assert formed[1]["seconds"]["vault_step"] == parked["committed_step"]
        agent.forget_vaults((2,))
        assert os.path.exists(agent._vaults.path(3))

    run_with_agent(tmp_path, scenario, entry=ENTRY)


def test_a_survivor_reads_the_vault_of_a_dead_one_beside_its_own(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        pids = await started(agent, controller, (1, 2))
        await form(agent, 1, (1, 2))
        await controller.wait_for("StepDone", 3)
        step = (await killed(controller, pids[2]))["copies"]["step"]
        await controller.wait_for("WorkerParked")

        will = FromMemory(step=step, moves=(), progress_from=0, adopted=((1, 2),))
        await form(agent, 2, (1,), will)

        formed = (await controller.wait_for("GangFormed", 3))[-1][1]
        assert formed["seconds"]["adopted_step_2"] == step

    run_with_agent(tmp_path, scenario, entry=ENTRY)


def test_an_order_repeated_by_the_next_controller_is_taken_once(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        pids = await started(agent, controller, (1,))
        await form(agent, 1, (1,))
        await controller.wait_for("StepDone", 3)
        step = (await killed(controller, pids[1]))["copies"]["step"]
        await started(agent, controller, (2,))
        will = FromMemory(step=step, moves=(), progress_from=0, heirs=((2, 1),))
        lines = await form(agent, 2, (2,), will)
        formed = await controller.wait_for("GangFormed", 2)
        path = agent._vaults.path(2)

        await agent.form(2, lines)
        agent.forget_vaults((1, 2))  # 2 lives

        before = controller.kinds().count("StepDone")
        await controller.wait_for("StepDone", before + 3)
        assert await controller.wait_for("GangFormed", 2) == formed
        assert agent._vaults.path(2) == path

    run_with_agent(tmp_path, scenario, entry=ENTRY)


def test_nobody_is_told_to_form_when_a_vault_is_missing(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        await started(agent, controller, (1, 2))
        will = FromMemory(step=1, moves=(), progress_from=0, heirs=((2, 99),))

        with pytest.raises(ClusterError, match="worker 99"):
            await form(agent, 1, (1, 2), will)

        await form(agent, 1, (1, 2))
        await controller.wait_for("GangFormed", 2)

    run_with_agent(tmp_path, scenario, entry=ENTRY)


def test_vaults_outlive_the_warm_parent_and_no_process_inherits_them(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        pids = await started(agent, controller, (1, 2))
        await form(agent, 1, (1, 2))
        await controller.wait_for("StepDone", 3)

        agent._warm_process.kill()

        died = [message for _, message in await controller.wait_for("WorkerDied", 2)]
        assert all(message["copies"]["step"] >= 1 for message in died)
        await until_gone(list(pids.values()))
        (pid,) = (await started(agent, controller, (3,))).values()
        assert _memory_files(os.getpid()) >= {"vault-1", "vault-2", "pulse-3"}
        assert _memory_files(agent._warm_process.pid) == set()
        assert _memory_files(pid) == {"pulse-3"}  # mapped by path, not inherited

    run_with_agent(tmp_path, scenario, entry=ENTRY)


def test_nothing_is_left_of_the_dead_once_their_vaults_are_forgotten(tmp_path: Path) -> None:
    async def scenario(agent: Agent, controller: Controller) -> None:
        for worker in range(1, 4):
            pids = await started(agent, controller, (worker,))
            await form(agent, worker, (worker,))
            await controller.wait_for("GangFormed", worker)
            await killed(controller, pids[worker], worker)
            assert f"vault-{worker}" in _memory_files(os.getpid())

            agent.forget_vaults((worker,))

            assert _memory_files(os.getpid()) == set()

    run_with_agent(tmp_path, scenario, entry=ENTRY)


def _memory_files(pid: int) -> set[str]:
    """Names of vaults and pulses that a process has open."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except FileNotFoundError:
            continue  # the one with which this directory is read
        if target.startswith("/memfd:"):
            found.add(target.removeprefix("/memfd:").removesuffix(" (deleted)"))
    return found

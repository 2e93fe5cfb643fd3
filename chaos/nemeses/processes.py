"""Processes that are killed, stopped, or told to leave."""

import signal
import time
from typing import ClassVar, Final

import numpy as np

from chaos.errors import GoneError, NotFiredError
from chaos.live import LiveWorker
from chaos.nemeses.base import Aim, Answer, Blow, Nemesis, draw
from chaos.proc import Process, kill
from chaos.world import World

STOP_TIMEOUT_S: Final = 2.0
"""A stop takes effect at the next system call or scheduling."""


class OfWorkers(Nemesis):
    """Strikes members of the gang."""

    def obstacle(self, world: World, aim: Aim) -> str:
        """Somebody must fit the aim."""
        return "" if candidates(world, aim) else "no member of the gang fits the target"


class KillWorker(OfWorkers):
    """SIGKILL: the process is gone, its node and its memory in the agent's keeping are not."""

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Kill all victims, the first one's end not awaited before the second one's signal."""
        victims = draw(candidates(world, aim), aim, rng)
        held = [(victim, _hold(world, victim)) for victim in victims]
        sent = [process.send(signal.SIGKILL) for _, process in held]
        evidence = []
        for (victim, process), was_there in zip(held, sent, strict=True):
            if not was_there or not process.wait():
                raise NotFiredError(f"worker {victim.number} (pid {victim.pid}) was not killed")
            process.close()
            evidence.append(f"pid {victim.pid} ended after SIGKILL")
        return Blow(_names(victims), "; ".join(evidence))


class StopWorker(OfWorkers):
    """SIGSTOP: the process is there and does nothing, not even its heartbeat."""

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Stop all victims; whoever is still there at the end is continued."""
        victims = draw(candidates(world, aim), aim, rng)
        held = [(victim, _hold(world, victim)) for victim in victims]
        evidence = []
        for victim, process in held:
            process.send(signal.SIGSTOP)
            evidence.append(f"pid {victim.pid}: state {_stopped(process, victim.number)}")

        def undo() -> str:
            left = [str(process.pid) for _, process in held if process.send(signal.SIGCONT)]
            for _, process in held:
                process.close()
            return f"continued {', '.join(left)}" if left else "nobody is left to be continued"

        return Blow(_names(victims), "; ".join(evidence), undo)


class TerminateWorker(OfWorkers):
    """SIGTERM, as a notice; whoever is still there after `for_s` gets SIGKILL.

    A worker in a gang has somebody else take its place between two steps: none is redone.
    """

    for_s: float = 2.0

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Give notice."""
        victims = draw(candidates(world, aim), aim, rng)
        held = [_hold(world, victim) for victim in victims]
        told = [process.send(signal.SIGTERM) for process in held]
        if not all(told):
            raise NotFiredError(f"{_names(victims)}: gone before the notice")

        def undo() -> str:
            late = [str(process.pid) for process in held if process.send(signal.SIGKILL)]
            gone = [process.wait() for process in held]
            for process in held:
                process.close()
            if not all(gone):
                raise NotFiredError(f"{_names(victims)} outlived notice and SIGKILL")
            return f"killed after the notice: {', '.join(late)}" if late else "all left in time"

        pids = ", ".join(f"pid {process.pid}" for process in held)
        return Blow(_names(victims), f"SIGTERM to {pids}", undo)


class KillWarmParent(Nemesis):
    """SIGKILL to the process that a node's workers were forked from; they die with it."""

    def obstacle(self, world: World, aim: Aim) -> str:
        """A node with workers must fit the aim."""
        return "" if _warm_parents(world, aim) else "no warm parent on such a node"

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Kill one."""
        found = _warm_parents(world, aim)
        node, pid = found[int(rng.integers(len(found)))]
        return Blow((f"warm parent of {node}",), kill(pid, f"warm parent of {node}"))


class OfNodes(Nemesis):
    """Strikes what takes the memory of a node's workers along."""

    careless: bool = False
    """Also where units of training state have no home elsewhere, so that steps will be lost."""

    def nodes(self, world: World, aim: Aim) -> list[str]:
        """Nodes with members that fit, as the job names them."""
        found = {worker.node for worker in candidates(world, aim)}
        return sorted(node for node in found if self.careless or not world.live.only_homes(node))

    def obstacle(self, world: World, aim: Aim) -> str:
        """There must be such a node."""
        return (
            "" if self.nodes(world, aim) else "no such node, or units have their only homes there"
        )


class KillAgent(OfNodes):
    """SIGKILL to a node's agent; its workers and the memory it keeps go with it."""

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Kill the agents."""
        agents = world.agents()
        nodes = [node for node in self.nodes(world, aim) if node in agents]
        if not nodes:
            raise GoneError("no agent is up on such a node")
        victims = [(node, agents[node]) for node in draw(nodes, aim, rng)]
        evidence = [kill(pid, f"agent of {node}") for node, pid in victims]
        return Blow(tuple(f"agent of {node}" for node, _ in victims), "; ".join(evidence))


class KillController(Nemesis):
    """SIGKILL to the controller; Ray starts it again, and it replays its journal."""

    answer: ClassVar[Answer] = Answer.TERM

    def obstacle(self, world: World, aim: Aim) -> str:
        """It must be there."""
        return "" if world.controller_pid() else "no controller is up"

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Kill it."""
        pid = world.controller_pid()
        if pid is None:
            raise GoneError("no controller is up")
        return Blow(("the controller",), kill(pid, "the controller"))


def candidates(world: World, aim: Aim) -> list[LiveWorker]:
    """Living members of the newest generation that fit."""
    live = world.live
    members = live.members
    if aim.member is not None:
        numbers = live.form.workers if live.form else ()
        wanted = numbers[aim.member] if aim.member < len(numbers) else -1
        members = tuple(worker for worker in members if worker.number == wanted)
    return [
        worker
        for worker in members
        if (aim.worker is None or worker.number == aim.worker)
        and (aim.stage is None or live.stage_of(worker.number) == aim.stage)
        and fits_node(world, worker.node, aim)
    ]


def fits_node(world: World, node: str, aim: Aim) -> bool:
    """Whether a node is one that the scenario means, by its own name or the cluster's."""
    return aim.node is None or node.startswith(aim.node) or world.label_of(node) == aim.node


def _warm_parents(world: World, aim: Aim) -> list[tuple[str, int]]:
    found = {
        worker.node: parent
        for worker in candidates(world, aim)
        if (parent := world.warm_parent_of(worker.pid)) is not None
    }
    return sorted(found.items())


def _hold(world: World, worker: LiveWorker) -> Process:
    process = Process.open(worker.pid)
    if process is None or process.wait(0) or not world.owns(worker.pid):
        raise GoneError(f"worker {worker.number} (pid {worker.pid}) is gone already")
    return process


def _stopped(process: Process, worker: int) -> str:
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while (state := process.state) not in ("T", "t"):
        if not state or time.monotonic() > deadline_s:
            raise NotFiredError(f"worker {worker} (pid {process.pid}) did not stop: state {state}")
        time.sleep(0.001)
    return state


def _names(workers: list[LiveWorker]) -> tuple[str, ...]:
    return tuple(f"worker {worker.number}" for worker in workers)

"""What is done to a contestant, and proof that it happened."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from benchmarks.crew import CrewError
from benchmarks.recovery_sides import Ours, OursOnNodes, Side, wait_for_end
from benchmarks.recovery_timeline import Kill, is_after
from chaos.cluster import Cluster
from chaos.errors import ChaosError
from chaos.proc import Process
from chaos.sockets import drop, used_connections

PROOF_TIMEOUT_S: Final = 5.0
"""A signal is taken at the next system call; a loop begins behind the kernel that computes."""
ANSWER_TIMEOUT_S: Final = 120.0


class Fault(Protocol):
    """One kind of fault."""

    def strike(self, side: Side, place: int) -> float:
        """Do it to the worker at this place; returns the Unix time at which it began.

        Raises:
            CrewError: there is no proof that it happened.
        """
        ...

    def undo(self, side: Side, kill: Kill) -> None:
        """Do what the side needs to come back to its full strength; at once, or behind its answer.

        Raises:
            CrewError: the answer did not come, or was another one than this fault must have.
        """
        ...


class KillWorker:
    """SIGKILL: the process is gone."""

    def strike(self, side: Side, place: int) -> float:
        """See `Fault`."""
        pid = side.victims()[place]
        at_s = time.time()
        os.kill(pid, signal.SIGKILL)
        if not wait_for_end(pid):
            raise CrewError(f"{side.name}: process {pid} survived its kill")
        return at_s

    def undo(self, side: Side, kill: Kill) -> None:
        """Whoever started it starts another one."""


KILL: Final = KillWorker()


class StopWorker:
    """SIGSTOP: the process is there and does nothing, not even its heartbeat."""

    def strike(self, side: Side, place: int) -> float:
        """See `Fault`."""
        pid = side.victims()[place]
        process = Process.open(pid)
        if process is None:
            raise CrewError(f"{side.name}: process {pid} is gone")
        at_s = time.time()
        process.send(signal.SIGSTOP)
        _await_proof(lambda: process.state == "T", f"{side.name}: process {pid} did not stop")
        process.close()
        return at_s

    def undo(self, side: Side, kill: Kill) -> None:
        """It is killed from outside, or stays as it is."""


class LoopWorker:
    """The training thread loops: the interpreter runs, the heart beats, nothing comes of it."""

    def strike(self, side: Side, place: int) -> float:
        """See `Fault`; the time is that at which the loop began, told by the worker."""
        assert isinstance(side, Ours), "only our workers can be made to loop"
        pid = side.victims()[place]
        told = side.directory / "logs" / f"loops-{pid}"
        os.kill(pid, signal.SIGUSR2)  # `looping_worker` waits for it
        _await_proof(lambda: _read(told) != "", f"{side.name}: process {pid} does not loop")
        return float(_read(told))

    def undo(self, side: Side, kill: Kill) -> None:
        """It is killed from outside."""
        _await_answer(side, kill)
        if not wait_for_end(kill.pid):
            raise CrewError(f"{side.name}: process {kill.pid} loops on")


class LoseNode:
    """Every process of a node is killed at once: its raylet, its agent, its workers."""

    def strike(self, side: Side, place: int) -> float:
        """See `Fault`."""
        cluster, node = _node_of(side, side.victims()[place])
        cluster.keep_away(node)
        pids = cluster.network.pids(node)
        at_s = time.time()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        if not all(map(wait_for_end, pids)) or cluster.network.pids(node):
            raise CrewError(f"{side.name}: node {node} outlives the kill of {len(pids)} processes")
        return at_s

    def undo(self, side: Side, kill: Kill) -> None:
        """Another node comes in its place."""
        assert isinstance(side, OursOnNodes)
        _await_answer(side, kill)
        for node in side.cluster.network.address:
            side.cluster.bring_back(node)


class CutNode:
    """A node's packets vanish, both ways; everybody lives, and no connection breaks."""

    def __init__(self) -> None:
        self._mend: Callable[[], str] | None = None

    def strike(self, side: Side, place: int) -> float:
        """See `Fault`."""
        cluster, node = _node_of(side, side.victims()[place])
        at_s = time.time()
        try:
            _, self._mend = cluster.network.drop(node, ("in", "out"))
        except ChaosError as error:
            raise CrewError(f"{side.name}: {error}") from None
        return at_s

    def undo(self, side: Side, kill: Kill) -> None:
        """The link is mended once the others go on."""
        assert self._mend is not None, "it was cut"
        try:
            _await_answer(side, kill)
        finally:
            self._mend()


class DropConnection:
    """One connection in use between two workers ends; nobody dies, and nobody must."""

    def __init__(self) -> None:
        self._before: list[int] = []

    def strike(self, side: Side, place: int) -> float:
        """See `Fault`."""
        self._before = side.victims()
        pid = self._before[place]
        found = [fd for peer in self._before if peer != pid for fd in used_connections(pid, peer)]
        if not found:
            raise CrewError(f"{side.name}: process {pid} is connected to none of its peers")
        at_s = time.time()
        try:
            drop(pid, found[place % len(found)])
        except ChaosError as error:
            raise CrewError(f"{side.name}: {error}") from None
        return at_s

    def undo(self, side: Side, kill: Kill) -> None:
        """Nothing is to be done, but all must be who they were."""
        _await_answer(side, kill)
        now = set(side.timeline.workers().values())
        if not set(self._before) <= now:
            raise CrewError(f"{side.name}: of {self._before} only {now} are left")


def _await_answer(side: Side, kill: Kill) -> None:
    side.timeline.wait(
        lambda: any(is_after(commit, kill) for commit in side.commits()),
        f"{side.name}: a step after a fault of worker {kill.victim}",
        ANSWER_TIMEOUT_S,
    )


def _node_of(side: Side, pid: int) -> tuple[Cluster, str]:
    """A worker's node; the other one if Ray has put the controller there and not on the head."""
    assert isinstance(side, OursOnNodes), "only our job runs on nodes"
    network = side.cluster.network
    free = [node for node in network.address if side.controller_pid not in network.pids(node)]
    return side.cluster, next((node for node in free if pid in network.pids(node)), free[0])


def _await_proof(is_there: Callable[[], bool], complaint: str) -> None:
    deadline_s = time.monotonic() + PROOF_TIMEOUT_S
    while not is_there():
        if time.monotonic() > deadline_s:
            raise CrewError(complaint)
        time.sleep(0.001)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""

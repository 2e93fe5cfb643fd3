"""Forked worker processes, their agent's end of the line, and the vaults it keeps."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist

from elasticmoe.messages.codec import by_name, from_line, to_line
from elasticmoe.messages.worker import FormGang, FromMemory, WorkerReport
from elasticmoe.plan.types import Plan
from elasticmoe.runtime.worker import run_worker
from elasticmoe.spec.job import JobSpec
from elasticmoe.vault.pulse import Pulse, create_pulse
from elasticmoe.vault.vault import create_vault

_REPORTS = by_name(WorkerReport)
_agents: list[socket.socket] = []
_stores: list[dist.TCPStore] = []


class Worker:
    """A forked worker process and the agent's end of its socket."""

    def __init__(self, job: JobSpec, number: int) -> None:
        ours, theirs = socket.socketpair()
        self.number = number
        self.vault = create_vault(str(number))
        pulse = create_pulse(str(number))
        self.pulse = Pulse(pulse)
        self.has_vault = False
        self.pid = os.fork()
        if self.pid == 0:
            for held in (ours, *_agents):  # a child of the warm parent has none of them
                if held.fileno() >= 0:
                    os.close(held.fileno())
            try:
                run_worker(theirs, job, number, "logs", f"/proc/self/fd/{pulse}")
            finally:
                os._exit(3)
        theirs.close()
        os.close(pulse)
        _agents.append(ours)
        self._socket = ours
        self._lines = ours.makefile("rb")

    def tell(self, command: Any) -> None:
        """Send a command."""
        self._socket.sendall(to_line(command))

    def reports(self) -> Iterator[Any]:
        """What the worker says, until it hangs up."""
        for line in self._lines:
            yield from_line(_REPORTS, line)

    def next(self, kind: type) -> Any:
        """The next report of a kind; others are passed over."""
        for report in self.reports():
            if isinstance(report, kind):
                return report
        raise AssertionError(f"worker {self.number} hung up before a {kind.__name__}")

    def hang_up(self) -> None:
        """What the worker sees when its agent dies."""
        self._lines.close()
        self._socket.close()

    @property
    def vault_path(self) -> str:
        """Where the worker opens its vault."""
        return f"/proc/{os.getpid()}/fd/{self.vault}"

    def kill(self) -> None:
        """SIGKILL, and wait until it is reaped."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Exit code, or minus the signal."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("the worker did not end")


def form(
    plan: Plan,
    workers: Sequence[Worker],
    generation: int,
    memory: FromMemory | None = None,
    **more: Any,
) -> None:
    """Tell workers, in the order of the plan's members, to form a generation."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    _stores.append(store)
    plain = json.loads(json.dumps(plan.to_json()))
    for member, worker in enumerate(workers):
        host, port = "127.0.0.1", store.port
        vault = worker.vault_path if not worker.has_vault else ""
        worker.has_vault = True
        worker.tell(
            FormGang(
                generation, member, plain, host, port, None, memory=memory, vault=vault, **more
            )
        )

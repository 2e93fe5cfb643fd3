"""Contestants as processes that take turns: each waits for orders, so that all stay warm."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

from elasticmoe.cluster.warm_parent import ENVIRONMENT

ROOT: Final = Path(__file__).resolve().parents[1]
START_TIMEOUT_S: Final = 180.0
ANSWER_TIMEOUT_S: Final = 900.0


class CrewError(RuntimeError):
    """A contestant failed; its own words are in the message."""


class Crew:
    """The processes of one contestant."""

    def __init__(
        self, name: str, commands: Sequence[Sequence[str]], size: int, **environment: str
    ) -> None:
        """Start the processes and wait until all workers have reported.

        Args:
            name: for people.
            commands: what to start; `--orders ADDRESS` is appended to each.
            size: workers that will report; a launcher may start several.
            environment: added to this process's own.
        """
        self.name = name
        self._home = tempfile.mkdtemp(prefix="crew-")
        address = f"{self._home}/orders"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(size)
            listener.settimeout(0.2)
            self._output = Path(self._home) / "output.txt"
            with self._output.open("ab") as output:
                self._processes = [
                    subprocess.Popen(
                        [*command, "--orders", address],
                        env=worker_environment(environment),
                        stdout=output,
                        stderr=output,
                    )
                    for command in commands
                ]
            self._workers = self._gather(listener, size)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Have every worker call a method; the answers in the order of their ranks."""
        for connection in self._workers:
            connection.send((method, arguments))
        answers = [self._answer(connection) for connection in self._workers]
        for ok, answer in answers:
            if not ok:
                raise CrewError(f"{self.name}: {answer}")
        return [answer for _, answer in answers]

    def take(self, steps: int, waves: int | None = None) -> list[float]:
        """Have everybody take steps; seconds of each on its slowest worker."""
        return [max(seconds) for seconds in zip(*self.call("take", steps, waves), strict=True)]

    def close(self) -> None:
        """End the processes."""
        for connection in getattr(self, "_workers", ()):
            connection.close()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait(30)
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _gather(self, listener: socket.socket, size: int) -> list[Connection]:
        found: dict[int, Connection] = {}
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(found) < size:
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                ended = [p for p in self._processes if p.poll() is not None]
                if ended or time.monotonic() > deadline:
                    said = self._said()
                    self.close()
                    state = f"ended with {ended[0].returncode}" if ended else "did not report"
                    raise CrewError(f"{self.name} {state} before it was ready\n{said}") from None
                continue
            accepted.setblocking(True)
            connection = Connection(accepted.detach())
            found[connection.recv()] = connection
        return [found[rank] for rank in sorted(found)]

    def _said(self) -> str:
        return self._output.read_text(errors="replace")[-5000:]

    def _answer(self, connection: Connection) -> tuple[bool, Any]:
        if not connection.poll(ANSWER_TIMEOUT_S):
            raise CrewError(f"{self.name}: no answer within {ANSWER_TIMEOUT_S:.0f} s")
        try:
            answer: tuple[bool, Any] = connection.recv()
        except EOFError:
            raise CrewError(f"{self.name}: a worker ended\n{self._said()}") from None
        return answer


def obey(worker: object, address: str, rank: int) -> None:
    """Be a worker: call methods as ordered until the benchmark hangs up, then end the process."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)
        connection = Connection(sock.detach())
    connection.send(rank)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            os._exit(0)  # collectives of a peer may be half-way; nothing is worth a clean end
        try:
            answer = (True, getattr(worker, method)(*arguments))
        except Exception as error:
            answer = (False, "".join(traceback.format_exception(error)))
        connection.send(answer)


def worker_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What our own workers run with, for everybody: one thread, and freed memory is kept.

    The allocator's settings save page faults in any loop that allocates the same tensors again and
    again, so a rival without them would not be at its best.
    """
    return {**user_environment(), **ENVIRONMENT, "MKL_NUM_THREADS": "1", **(extra or {})}


def user_environment() -> dict[str, str]:
    """This process's own, with the repository importable."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}

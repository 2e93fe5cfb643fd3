"""Finds and kills the real processes of a test, by a mark in their environment."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from elasticmoe.client import JobClient, JobEvent
from elasticmoe.cluster.jobs import JobHandle

MARK = "ELASTICMOE_TEST_MARK"
PATIENCE_S = 60.0
"""For what must happen, however slow the machine is. Never a measure of how quick something is."""
OURS = ("ControllerActor", "AgentActor", "elasticmoe.")
"""In the command lines of controller, agents, supervisor, warm parents and what these have forked.
Ray's own processes may take minutes to end where they cannot reach their head."""


class Processes:
    """Everything that this test has started, whatever became of its parents."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    def found(self) -> dict[int, str]:
        """Command lines of all living ones, by pid."""
        wanted = f"{MARK}={self.mark}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(entry.name)] = line.strip()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def named(self, text: str) -> list[int]:
        """Those whose command line contains a text."""
        return [pid for pid, line in self.found().items() if text in line]

    def workers(self) -> list[int]:
        """Forked training processes."""
        return sorted(pid for pid in self.found() if name_of(pid).startswith("worker-"))

    def wait_for_workers(self, count: int) -> list[int]:
        deadline_s = time.monotonic() + PATIENCE_S
        while len(workers := self.workers()) < count:
            assert time.monotonic() < deadline_s, f"only {workers} run"
            time.sleep(0.02)
        return workers

    def of_the_job(self) -> dict[int, str]:
        """Those that are not merely Ray's own."""
        return {pid: line for pid, line in self.found().items() if any(n in line for n in OURS)}

    def wait_until_gone(self, pids: Iterable[int]) -> None:
        """Wait for the end of some."""
        self._wait_for_the_end(lambda: set(pids) & set(self.found()))

    def wait_until_job_gone(self) -> None:
        """Wait for the end of all that are not merely Ray's own."""
        self._wait_for_the_end(self.of_the_job)

    def wait_until_none_left(self) -> None:
        """Wait for the end of all: Ray's own have a head that ends with the job."""
        self._wait_for_the_end(self.found)

    def _wait_for_the_end(self, left: Callable[[], Collection[int]]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while there := left():
            reap()
            assert time.monotonic() < deadline_s, f"left behind: {there}"
            time.sleep(0.02)

    def kill_all(self) -> None:
        for pid in self.found():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def reap() -> None:
    """Collect this process's own children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


class Follower:
    """Follows a job's events."""

    def __init__(self, handle: JobHandle) -> None:
        self.events: list[JobEvent] = []
        self._stream = JobClient(handle.url, handle.token).events()

    def until(self, wanted: Callable[[JobEvent], bool]) -> JobEvent:
        """Read on until an event is wanted."""
        for event in self._stream:
            self.events.append(event)
            if wanted(event):
                return event
        raise AssertionError(f"the job ended first: {self.events[-1]}")

    def until_kind(self, kind: str) -> JobEvent:
        return self.until(lambda event: event.kind == kind)

    def until_step(self, step: int, generation: int = 1) -> JobEvent:
        def there(event: JobEvent) -> bool:
            fields: Any = event.fields
            return (
                event.kind == "step"
                and fields["generation"] >= generation
                and fields["step"] >= step
            )

        return self.until(there)

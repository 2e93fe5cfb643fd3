"""Finds and kills the real processes of a test, by a mark in their environment."""

import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elasticmoe.client import JobClient, JobEvent
from elasticmoe.cluster.jobs import JobHandle

MARK = "ELASTICMOE_TEST_MARK"


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
        deadline_s = time.monotonic() + 10
        while len(workers := self.workers()) < count:
            assert time.monotonic() < deadline_s, f"only {workers} run"
            time.sleep(0.02)
        return workers

    def wait_until_none_left(self, timeout_s: float) -> float:
        """Wait for the end of all; return how long it took."""
        began_s = time.monotonic()
        while left := self.found():
            reap()
            assert time.monotonic() - began_s < timeout_s, f"left behind: {left}"
            time.sleep(0.02)
        return time.monotonic() - began_s

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

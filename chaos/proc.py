"""Processes by their pid: who they are, what state they are in, signals with proof."""

import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from chaos.errors import GoneError, NotFiredError

END_TIMEOUT_S: Final = 10.0
"""A killed process of many MB is gone within 30 ms; a machine that swaps takes longer."""
_SIGNAL_NAMES: Final = {number: number.name for number in signal.Signals}


@dataclass(frozen=True, slots=True)
class Process:
    """A process, held by a descriptor, so that its number cannot come to mean another one."""

    pid: int
    fd: int

    @classmethod
    def open(cls, pid: int) -> Self | None:
        """None if there is no such process any more."""
        try:
            return cls(pid, os.pidfd_open(pid))
        except (ProcessLookupError, OSError):
            return None

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; whether there still was somebody to get it, and not only their remains."""
        if self.wait(0):
            return False
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> bool:
        """Whether it ended within a time; it need not be a child, nor be reaped."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1e3))

    @property
    def state(self) -> str:
        """`R`, `S`, `T` (stopped), `Z`...; empty: gone."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return text.rpartition(")")[2].split()[0]


def kill(pid: int, what: str) -> str:
    """SIGKILL a process and wait for its end; returns the evidence.

    Raises:
        GoneError: it was gone already.
        NotFiredError: it outlives the signal.
    """
    process = Process.open(pid)
    if process is None:
        raise GoneError(f"{what} (pid {pid}) was gone before it could be killed")
    try:
        if not process.send(signal.SIGKILL):
            raise GoneError(f"{what} (pid {pid}) was gone before it could be killed")
        if not process.wait():
            raise NotFiredError(f"{what} (pid {pid}) outlived SIGKILL: state {process.state}")
    finally:
        process.close()
    return f"pid {pid} ended after SIGKILL"


def command_line(pid: int) -> str:
    """With blanks between the arguments; empty: gone."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return data.replace(b"\0", b" ").decode(errors="replace").strip()


def argument_of(pid: int, name: str) -> str | None:
    """The value of `--name=value` in a process's command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    prefix = f"--{name}="
    return next((word[len(prefix) :] for word in words if word.startswith(prefix)), None)


def parent_of(pid: int) -> int:
    """0: it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def pids() -> list[int]:
    """All processes."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def open_files(pid: int) -> Iterator[tuple[int, str]]:
    """A process's descriptors and what they lead to."""
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                yield int(entry.name), os.readlink(entry)
            except OSError:
                continue
    except OSError:
        return


def is_of_job(pid: int, job_dir: Path) -> bool:
    """Whether a process writes a log of this job: then, and only then, it may be struck."""
    logs = f"{(job_dir / 'logs').resolve()}/"
    return any(target.startswith(logs) for _, target in open_files(pid))


def kill_if_there(pid: int) -> None:
    """SIGKILL, and nothing said if it was gone already."""
    process = Process.open(pid)
    if process is not None:
        process.send(signal.SIGKILL)
        process.close()

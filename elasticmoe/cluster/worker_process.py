"""One forked worker as its agent sees it: its socket, its process handle, its end."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from elasticmoe.vault.pulse import Pulse

PF_EXITING: Final = 0x4
"""The kernel's flag of a thread that runs no code of its program any more."""
FINAL_POLL_S: Final = 2e-4
FINAL_TIMEOUT_S: Final = 0.02


@dataclass(slots=True)
class Worker:
    """A forked worker, from the request to its end."""

    number: int
    child: str
    """What the warm parent calls it."""
    log: str
    device: str | None
    writer: asyncio.StreamWriter
    reading: asyncio.Task[None]
    pidfd: int = -1
    pid: int = 0
    ready: bool = False
    is_watched: bool = False
    """Whether somebody waits for the end of its training thread."""
    is_final: bool = False
    """Whether none of its threads will run again."""
    is_dead: bool = False
    """Whether its death is being reported."""
    generation: int = 0
    """Newest generation that it was told to form."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def forked(self, pid: int) -> None:
        """Take a handle of its process, which no later process can be mistaken for (0: there is
        none yet)."""
        if pid:
            with suppress(ProcessLookupError):  # it has been reaped; that is being reported
                self.pid, self.pidfd = pid, os.pidfd_open(pid)

    def kill(self) -> None:
        """End it at once, whatever it does; a stopped process ends too."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return  # already reaped; its end is being reported
        else:
            self.writer.close()  # not forked yet: it will find its agent gone

    def watch_lifeline(self, pulse: Pulse, on_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have `on_end` run as soon as the training thread has ended; that the process is gone is
        known later. Once is enough."""
        if self.is_watched:
            return
        self.is_watched = True
        loop = asyncio.get_running_loop()

        def wait() -> None:
            if pulse.lifeline.wait_for_end():
                ending = on_end()
                try:
                    asyncio.run_coroutine_threadsafe(ending, loop)
                except RuntimeError:  # the agent has ended itself
                    ending.close()

        threading.Thread(target=wait, daemon=True, name=f"lifeline-{self.number}").start()

    async def until_final(self) -> str:
        """Wait, for a moment, until no thread of it will run again: it is as good as gone then,
        though the kernel has yet to take its memory apart, and close what it had open.

        Returns:
            How it was killed; empty if it was not, or is not seen to be.
        """
        for _ in range(round(FINAL_TIMEOUT_S / FINAL_POLL_S)):
            if all(_flags(thread) & PF_EXITING for thread in _threads(self.pid)):
                break
            await asyncio.sleep(FINAL_POLL_S)
        else:
            return ""
        evidence = _killed_by(self.pid)
        self.is_final = bool(evidence)
        if self.is_final:
            with suppress(OSError):  # read what it has sent, and then the end
                self.writer.get_extra_info("socket").shutdown(socket.SHUT_RD)
        return evidence

    async def until_gone(self) -> None:
        """Wait until no thread of it runs (its parent may not have reaped it yet)."""
        if self.pidfd < 0 or self.is_final:
            return
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self.pidfd, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(self.pidfd)

    def let_go(self) -> None:
        """Close what the agent holds of it; whoever waits for its end goes on."""
        self.reading.cancel()
        self.writer.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        self.ended.set()


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal (not by a debugger, which lets it go again)."""
    return _stat(Path(f"/proc/{pid}"))[:1] == ["T"]


def core_waits(pid: int) -> dict[int, float]:
    """For how long each thread of a process has been ready but without a core, seconds.

    A wait counts when it is over. Empty where the kernel does not tell.
    """
    waits = {}
    for thread in _threads(pid):
        try:
            stat = (thread / "schedstat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        waits[int(thread.name)] = int(stat.split()[1]) / 1e9
    return waits


def _stat(process: Path) -> list[str]:
    """The fields of proc_pid_stat(5) from the third on, of a process or a thread; empty: gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _flags(thread: Path) -> int:
    fields = _stat(thread)
    return int(fields[9 - 3]) if fields else PF_EXITING


def _killed_by(pid: int) -> str:
    """Which signal ends a process; empty if none does, or it is not known any more."""
    fields = _stat(Path(f"/proc/{pid}"))
    number = int(fields[52 - 3]) & 0x7F if fields else 0
    return f"killed by signal {number}" if number else ""


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []

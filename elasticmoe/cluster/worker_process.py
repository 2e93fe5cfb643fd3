"""One forked worker as its agent sees it: its socket, its process handle, its end."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from elasticmoe.vault.pulse import Pulse


@dataclass(slots=True)
class Worker:
    """A forked worker, from the request to its end."""

    number: int
    log: str
    device: str | None
    writer: asyncio.StreamWriter
    reading: asyncio.Task[None]
    pidfd: int = -1
    pid: int = 0
    ready: bool = False
    is_watched: bool = False
    """Whether somebody waits for the end of its training thread."""
    generation: int = 0
    """Newest generation that it was told to form."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def forked(self, pid: int) -> None:
        """Take a handle of its process, which no later process can be mistaken for."""
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

    def watch_lifeline(self, pulse: Pulse, on_end: Callable[[int, int], None]) -> None:
        """Have somebody told, as soon as the training thread has ended, of the generation that is
        over and this worker's number; that the process is gone is known later. Once is enough."""
        if self.is_watched:
            return
        self.is_watched = True
        loop = asyncio.get_running_loop()

        def wait() -> None:
            if pulse.lifeline.wait_for_end():
                with suppress(RuntimeError):  # the agent has ended itself
                    loop.call_soon_threadsafe(on_end, self.generation, self.number)

        threading.Thread(target=wait, daemon=True, name=f"lifeline-{self.number}").start()

    async def until_gone(self) -> None:
        """Wait until no thread of it runs (its parent may not have reaped it yet)."""
        if self.pidfd < 0:
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
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


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


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []

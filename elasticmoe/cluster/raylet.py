"""An actor's bond with its raylet: Ray ends actors without one, but late or never."""

import asyncio
import os
import signal
from collections.abc import Callable

from elasticmoe.telemetry.log import get_log

log = get_log(__name__)


class Raylet:
    """The raylet that started this process; made while it still lives."""

    def __init__(self, *, ours: bool) -> None:
        """
        Args:
            ours: Ray was started for this job alone, so all of its processes go with the raylet.
        """
        self._pid = os.getppid()
        self._handle = os.pidfd_open(self._pid)
        # A local run has a session of its own, and Ray's processes are its first group.
        is_leader = os.getpgid(self._pid) == os.getsid(0)
        self._group = os.getsid(0) if ours and is_leader else None

    async def end_with_it(self, first: Callable[[], None]) -> None:
        """Wait until the raylet is gone, do `first`, then end this process."""
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._handle, gone.set)
        await gone.wait()
        log.error("raylet_gone", pid=self._pid)
        first()
        if self._group is not None:
            try:
                os.killpg(self._group, signal.SIGKILL)
            except ProcessLookupError:
                log.info("nothing_left", group=self._group)
        os._exit(1)

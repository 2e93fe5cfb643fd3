"""Ray's head, seen from a job: it may go away and come back, and training needs it for neither.

Workers, agents and controller speak to each other directly. Without the head no node can join and
no actor be placed; and some time after it went (`RAY_gcs_rpc_server_reconnect_timeout_s`) every
process of Ray ends itself, ours among them. Before that the job had better end by itself.
"""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

PROBE_INTERVAL_S: Final = 0.5
PROBE_TIMEOUT_S: Final = 2.0
KEEP_ALIVE: Final = {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 2}
"""Seconds, seconds and times: the kernel asks whether a head that says nothing is still there."""
MISSES: Final = 2
"""In a row, before anybody is told."""
RECONNECT_TIMEOUT: Final = "RAY_gcs_rpc_server_reconnect_timeout_s"
RECONNECT_TIMEOUT_S: Final = 60.0
"""Ray's default."""
SHARE: Final = 0.75
"""Of Ray's patience that ours is: the rest is for a checkpoint."""


class Head:
    """Looks whether anybody listens at the head's address. What it keeps does not matter here.

    It holds a connection on which nothing is said: its end is news, and waiting for it is free.
    """

    def __init__(self, address: str, patience_s: float | None = None) -> None:
        """
        Args:
            address: `HOST:PORT` of the GCS.
            patience_s: it is lost after so long; none: by what Ray's processes here were told.
        """
        host, _, port = address.rpartition(":")
        self.address, self._host, self._port = address, host.strip("[]"), int(port)
        if patience_s is None:
            told = os.environ.get(RECONNECT_TIMEOUT, "")
            patience_s = SHARE * (float(told) if told else RECONNECT_TIMEOUT_S)
        self.patience_s = patience_s

    async def watch(
        self, tell: Callable[[str], None], lost: Callable[[str], Awaitable[None]]
    ) -> None:
        """Tell people when it goes and comes; return when it is `lost`, after that was awaited."""
        misses, gone_s = 0, 0.0
        while True:
            began_s = time.monotonic()
            if (connection := await self._connect()) is not None:
                if misses >= MISSES:
                    tell(f"Ray's head at {self.address} is back after {began_s - gone_s:.0f} s")
                misses = 0
                await _until_closed(*connection)
            else:
                misses += 1
                gone_s = began_s if misses == 1 else gone_s
                if misses == MISSES:
                    tell(
                        f"Ray's head at {self.address} does not answer; training goes on without "
                        f"it, for {self.patience_s:.0f} s at most"
                    )
                if misses >= MISSES and began_s - gone_s >= self.patience_s:
                    await lost(f"the loss of Ray's head ({self.patience_s:.0f} s without answer)")
                    return
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            opening = asyncio.open_connection(self._host, self._port)
            reader, writer = await asyncio.wait_for(opening, PROBE_TIMEOUT_S)
        except (OSError, TimeoutError):
            return None
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        return reader, writer


async def _until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # reset, or no answer to the kernel
        while await reader.read(4096):
            continue  # a greeting
    writer.close()

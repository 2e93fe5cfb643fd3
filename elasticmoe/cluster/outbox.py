"""Reports on their way to the controller: in order, none lost while it restarts."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

HEARTBEAT_S: Final = 2.0
"""An idle agent calls this often, to hear whether it still belongs to the job: twice within its
lease, should its `line` not reach the controller. A call through Ray takes its two ends some 3 ms
of CPU time beside training (measured)."""
RETRY_S: Final = 0.1
BATCH_LINES: Final = 1000
MAX_LINES: Final = 10_000
"""A worker that reports faster than the controller listens waits."""

ANSWERED_S: Final = 4.0
"""Twice `HEARTBEAT_S`: whose words have not been answered for so long is not heard any more."""

Deliver = Callable[[list[bytes]], Awaitable[bool]]
"""Hands lines to the controller; whether this node still belongs to the job. Raises
`ConnectionError` where no controller answers."""


class NotYetError(ConnectionError):
    """A controller answers, but cannot write down yet what it is told."""


class Outbox:
    """Delivers lines one batch at a time; a batch is repeated until it was accepted.

    A batch may arrive twice when the controller restarts in between; events of a step or a
    generation that has passed are ignored by its state machine.
    """

    def __init__(self, deliver: Deliver, patience_s: float) -> None:
        self._deliver, self._patience_s = deliver, patience_s
        self._lines: asyncio.Queue[bytes] = asyncio.Queue(MAX_LINES)
        self._heard_s = self._answered_s = time.monotonic()

    def is_answered(self) -> bool:
        """Whether what this agent says gets through: a controller answered lately."""
        return time.monotonic() < self._answered_s + ANSWERED_S

    def heard(self) -> None:
        """Note that a controller has spoken to this agent."""
        self._heard_s = time.monotonic()

    def put(self, line: bytes) -> None:
        """Queue a line that nobody must wait for; raises `asyncio.QueueFull`."""
        self._lines.put_nowait(line)

    async def put_when_free(self, line: bytes) -> None:
        """Queue a line as soon as there is room."""
        await self._lines.put(line)

    async def run(self) -> str:
        """Deliver until this node no longer belongs to the job; return the reason."""
        while True:
            batch = await self._next_batch()
            while True:
                try:
                    belongs = await asyncio.wait_for(self._deliver(batch), self._patience_s)
                except (ConnectionError, TimeoutError) as error:
                    if isinstance(error, NotYetError):
                        self._answered()
                    if time.monotonic() - self._heard_s > self._patience_s:
                        return f"no controller has spoken for {self._patience_s:g} s: {error}"
                    await asyncio.sleep(RETRY_S)
                    continue
                self._answered()
                if not belongs:
                    return "the controller has given this node up"
                break

    def _answered(self) -> None:
        self.heard()
        self._answered_s = self._heard_s

    async def _next_batch(self) -> list[bytes]:
        try:
            batch = [await asyncio.wait_for(self._lines.get(), HEARTBEAT_S)]
        except TimeoutError:
            return []
        while not self._lines.empty() and len(batch) < BATCH_LINES:
            batch.append(self._lines.get_nowait())
        return batch

"""What agents say, until it is on record."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

HOLD_S: Final = 1.0
"""An agent whose lines are not on record by then is told to give them again: it hears that we live,
and we that it does."""


class Intake:
    """Takes each batch of lines once, however often it is given while the disk is full."""

    def __init__(self, take: Callable[[str, list[bytes]], Awaitable[None]]) -> None:
        """
        Args:
            take: returns when a node's lines are on record.
        """
        self._take = take
        self._taking: dict[str, tuple[list[bytes], asyncio.Future[None]]] = {}

    async def has_taken(self, node: str, lines: list[bytes], hold_s: float = HOLD_S) -> bool:
        """Whether a node's lines are on record; else they must be given again."""
        known, taking = self._taking.get(node, ([], None))
        if taking is None or known != lines:
            taking = asyncio.ensure_future(self._take(node, lines))
            self._taking[node] = lines, taking
        done, _ = await asyncio.wait({taking}, timeout=hold_s)
        if done:
            self._taking.pop(node, None)
            await taking
        return bool(done)

"""The agent's side of clerks: one process per request, forked when it comes."""

import asyncio
import json
import socket
from collections.abc import Callable
from itertools import count
from typing import Any

from elasticmoe.cluster.warm_parent import MAX_LINE_BYTES, ForkRequest


class Clerks:
    """Forks clerks (see `clerk`) and brings their answers."""

    def __init__(
        self, job: str, log_file: str, fork: Callable[[ForkRequest, socket.socket], None]
    ) -> None:
        """
        Args:
            job: the job's spec as JSON.
            log_file: where a clerk's output goes.
        """
        self._job, self._log_file, self._fork = job, log_file, fork
        self._numbers = count(1)

    async def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Fork a clerk for one request; return its answer, or none if it ended without one.

        Raises:
            ClusterError: it could not be forked.
        """
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        name = f"clerk-{next(self._numbers)}"
        try:
            self._fork(ForkRequest(name, "clerk", {"job": self._job}, self._log_file, {}), theirs)
            writer.write(json.dumps(request).encode() + b"\n")
            answer = await reader.readline()
        except ConnectionResetError:
            return None
        finally:
            writer.close()
        return json.loads(answer) if answer else None

"""Starts workers: from a process that stands by for it, else from one that is forked now.

Forking a process of 300 MB and having it run takes 20 to 30 ms while others compute, and a
recovery would wait for that. A process that stands by shares its memory with the warm parent.
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

from elasticmoe.cluster.warm_parent import READY, ForkRequest
from elasticmoe.errors import ClusterError

PREPARE_DELAY_S: Final = 0.5
"""After a generation was formed: its first steps go before."""


@dataclass(slots=True)
class Birth:
    """A worker's process, forked or about to be, and the agent's end of its line."""

    child: str
    """What the warm parent calls it."""
    ours: socket.socket
    theirs: socket.socket | None
    """To be handed to a process that is forked now; none: it stands by already."""
    pid: int = 0

    @property
    def stood_by(self) -> bool:
        """Whether its process was there, and ready, before it was needed."""
        return self.theirs is None


class Starter:
    """Keeps one process standing by on this node."""

    def __init__(
        self, job: str, entry: str, fork: Callable[[ForkRequest, socket.socket], None]
    ) -> None:
        """
        Args:
            job: the job's spec as JSON.
            entry: the training process, `module:function`.
        """
        self._what = {"job": job, "entry": entry}
        self._fork = fork
        self._numbers = count(1)
        self._standby: Birth | None = None

    def prepare_later(self) -> None:
        """Have a process stand by soon, unless one does."""
        asyncio.get_running_loop().call_later(PREPARE_DELAY_S, self._prepare)

    def take(self, number: int) -> Birth:
        """Whoever is to be a worker: the process that stands by, or one that `begin` will fork.

        One that is not ready yet, if it ever will be, goes on getting ready for the next time.
        """
        standby = self._standby
        if standby is not None and _is_ready(standby):
            self._standby = None
            return standby
        ours, theirs = socket.socketpair()
        return Birth(f"worker-{number}", ours, theirs)

    def begin(self, birth: Birth, number: int, pulse: str, log: str, device: str | None) -> None:
        """Make it a worker.

        Args:
            pulse: file of its heartbeat page.
            log: file of its output.
            device: the accelerator that it may use; none: it needs none.

        Raises:
            ClusterError: it could not be forked, or has ended.
        """
        arguments = {"worker": number, "log_dir": os.path.dirname(log), "pulse": pulse}
        environment = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        if not birth.stood_by:
            assert birth.theirs is not None
            arguments = {**self._what, **arguments}
            request = ForkRequest(birth.child, "worker", arguments, log, environment)
            self._fork(request, birth.theirs)
            return
        order = {"arguments": arguments, "log": log, "environment": environment}
        try:
            birth.ours.sendall(json.dumps(order).encode() + b"\n")
        except OSError as error:
            raise ClusterError(f"{birth.child} stood by and is gone: {error}") from error

    def on_forked(self, child: str, pid: int) -> None:
        """Note that the process that is to stand by runs."""
        if self._standby is not None and self._standby.child == child:
            self._standby.pid = pid

    def on_exited(self, child: str) -> None:
        """Note that it ended."""
        if self._standby is not None and self._standby.child == child:
            self._standby.ours.close()
            self._standby = None

    def forget(self) -> None:
        """It ended with the warm parent."""
        if self._standby is not None:
            self.on_exited(self._standby.child)

    def _prepare(self) -> None:
        if self._standby is not None:
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._standby = Birth(f"standby-{next(self._numbers)}", ours, None)
        try:
            request = ForkRequest(self._standby.child, "standby", self._what, os.devnull, {})
            self._fork(request, theirs)
        except ClusterError:
            self.forget()


def _is_ready(standby: Birth) -> bool:
    """Whether it has said that nothing is left to be done but what its order will say."""
    try:
        return bool(standby.pid) and standby.ours.recv(len(READY)) == READY
    except BlockingIOError:
        return False
    except OSError:  # it has ended; that is being reported
        return False

"""The agent's side of the warm parent: start one, ask it for children, hear of their ends."""

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from elasticmoe.cluster.warm_parent import ENVIRONMENT, MAX_REQUEST_BYTES, ForkRequest


def spawn_warm_parent(preload: Sequence[str], log: str) -> tuple[str, subprocess.Popen[bytes]]:
    """Start a warm parent; it imports in the background and takes requests at once.

    Args:
        preload: modules to import.
        log: file for its output.

    Returns:
        The name to connect to, from any process of this user on this machine, and its process.
    """
    name = f"elasticmoe-{secrets.token_hex(16)}"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        open(log, "ab") as output,
    ):
        listener.bind(f"\0{name}")
        listener.listen(1)
        fd = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "elasticmoe.cluster.warm_parent", str(fd), *preload],
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **ENVIRONMENT, **same_modules()},
            start_new_session=True,
        )
    return name, process


def same_modules() -> dict[str, str]:
    """Environment with which a new interpreter finds the modules that this one finds."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@dataclass(frozen=True, slots=True)
class WarmParentListener:
    """Whom a link tells what its warm parent says."""

    warm: Callable[[float, int], None]
    """It has imported everything: seconds it took, threads it runs."""
    forked: Callable[[str, int], None]
    """A child runs: its name and pid."""
    exited: Callable[[str, str], None]
    """A child ended and was reaped (or was never forked): its name and the evidence."""
    gone: Callable[[str], None]
    """The warm parent itself ended, and the kernel kills its children: why, if it said so."""


class WarmParentLink:
    """A connection to a warm parent; must live on a running event loop."""

    def __init__(self, name: str, listener: WarmParentListener) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(f"\0{name}")
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._hear)

    def fork(self, request: ForkRequest, end: socket.socket) -> None:
        """Ask for a child that owns `end`; this side's copy is closed.

        Raises:
            OSError: the warm parent is gone.
        """
        packet = json.dumps(asdict(request)).encode()
        assert len(packet) <= MAX_REQUEST_BYTES, len(packet)
        with end:
            socket.send_fds(self._socket, [packet], [end.fileno()])

    def prepare(self, arguments: dict[str, Any]) -> None:
        """Have done once, before children are forked, what each of them would do at its start."""
        ours, theirs = socket.socketpair()
        with ours:
            self.fork(ForkRequest("prepare", "prepare", arguments, os.devnull, {}), theirs)

    def close(self) -> None:
        """Leave; the warm parent ends, and its children with it."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _hear(self) -> None:
        try:
            packet = self._socket.recv(MAX_REQUEST_BYTES)
        except ConnectionResetError:
            packet = b""
        if not packet:
            self.close()
            self._listener.gone("it ended")
            return
        self._heard(json.loads(packet))

    def _heard(self, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "warm":
                self._listener.warm(message["seconds"], message["threads"])
            case "forked":
                self._listener.forked(message["child"], message["pid"])
            case "exited":
                self._listener.exited(message["child"], message["evidence"])
            case "not_forked":
                self._listener.exited(message["child"], f"not forked: {message['reason']}")
            case "broken":
                self.close()
                self._listener.gone(message["reason"])

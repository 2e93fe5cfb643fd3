"""Rendezvous stores: one process per generation, one always ready in advance."""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from elasticmoe.cluster.warm_parent import ForkRequest
from elasticmoe.errors import ClusterError


@dataclass(slots=True)
class Store:
    """A forked store host and what came of it."""

    end: socket.socket
    """Closing it ends the store."""
    port: asyncio.Future[int]


class StoreKeeper:
    """Opens and closes the stores that live with an agent.

    Ending a store frees whoever still waits in it, which no call on the client side does. A
    spare is forked in advance, because a recovery would wait for it.
    """

    def __init__(self, host: str, fork: Callable[[ForkRequest, socket.socket], None]) -> None:
        self._host, self._fork = host, fork
        self._numbers = count(1)
        self._spare: Store | None = None
        self._stores: dict[int, Store] = {}
        self._by_child: dict[str, Store] = {}

    def prepare_spare(self) -> None:
        """Fork the store that the next generation will use."""
        if self._spare is None:
            self._spare = self._start()

    async def open(self, generation: int) -> int:
        """Return the port of a generation's store, opening it if needed.

        Raises:
            ClusterError: its process ended before it had a port.
        """
        if generation not in self._stores:
            self._stores[generation] = self._spare or self._start()
            self._spare = None
        port = await self._stores[generation].port
        asyncio.get_running_loop().call_later(0.5, self._prepare_spare_quietly)
        return port

    def close_up_to(self, generation: int) -> None:
        """End the stores of a generation and all before it."""
        for old in [g for g in self._stores if g <= generation]:
            self._stores.pop(old).end.close()

    def on_exited(self, child: str, evidence: str) -> None:
        """Note that a store's process ended."""
        store = self._by_child.pop(child, None)
        if store is None:
            return
        if not store.port.done():
            store.port.set_exception(ClusterError(f"{child} ended: {evidence}"))
        if self._spare is store:
            self._spare = None

    def forget_all(self) -> None:
        """Every store ended with the warm parent."""
        for child in list(self._by_child):
            self.on_exited(child, "the warm parent ended")
        self._stores.clear()

    def _prepare_spare_quietly(self) -> None:
        try:
            self.prepare_spare()
        except ClusterError:
            self._spare = None  # `open` tries again, and reports it

    def _start(self) -> Store:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        store = Store(ours, loop.create_future())
        store.port.add_done_callback(_seen)
        child = f"store-{next(self._numbers)}"
        request = ForkRequest(child, "store", {"host": self._host}, os.devnull, {})
        self._fork(request, theirs)
        self._by_child[child] = store
        loop.add_reader(ours.fileno(), self._on_port, store)
        return store

    def _on_port(self, store: Store) -> None:
        asyncio.get_running_loop().remove_reader(store.end.fileno())
        line = store.end.recv(64)
        if line and not store.port.done():
            store.port.set_result(int(line))


def _seen(port: asyncio.Future[int]) -> None:
    """A spare that ends unused is nobody's error."""
    if not port.cancelled():
        port.exception()

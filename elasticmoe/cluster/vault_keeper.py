"""The memory of a node's workers, kept open by the agent so that it outlives them.

A *vault* holds a worker's training state, a *pulse* its heartbeat. Both are files in memory that
belong to no directory: they are gone when the agent is, whatever ended it. Workers open them by
path, through this process's descriptors; none is inherited by a process that is started here.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from elasticmoe.errors import ClusterError, StorageError
from elasticmoe.messages.worker import Copies
from elasticmoe.telemetry.log import get_log
from elasticmoe.vault.contents import read_copies
from elasticmoe.vault.pulse import Pulse, create_pulse
from elasticmoe.vault.vault import Vault, create_vault

log = get_log(__name__)


class VaultKeeper:
    """Owns vaults and pulses by worker number."""

    def __init__(self) -> None:
        self._vaults: dict[int, int] = {}
        self._handed_out: set[int] = set()
        """Workers that have opened their vault: they need not be told where it is."""
        self._heirs: dict[int, int] = {}
        """Dead worker -> whose vault its own is now."""
        self._pulses: dict[int, tuple[int, Pulse]] = {}

    def begin(self, worker: int) -> str:
        """Make the pulse of a worker that is about to be forked; return its path."""
        fd = create_pulse(str(worker))
        self._pulses[worker] = (fd, Pulse(fd))
        return _path(fd)

    def pulse(self, worker: int) -> Pulse:
        """The pulse of a worker that `begin` was called for and `end` was not."""
        return self._pulses[worker][1]

    def end(self, worker: int) -> None:
        """A worker has ended: its pulse goes, its vault stays."""
        fd, _ = self._pulses.pop(worker)
        os.close(fd)

    def path(self, worker: int) -> str:
        """Where the vault of a worker is, or the one that came of it; empty if there is none."""
        fd = self._vaults.get(self._owner(worker))
        return "" if fd is None else _path(fd)

    def complete(self, orders: Mapping[int, bytes], living: Iterable[int]) -> dict[int, bytes]:
        """Fill in the files of `FormGang` lines; vaults change hands as these say.

        A worker that none is left to gets an empty one with its first order. The path is repeated
        until the worker has reported that it has state, because it need not have read the order.

        Args:
            orders: lines by worker.
            living: all workers that run on this node.

        Raises:
            ClusterError: a vault that is to be read or inherited is not here, or has an owner that
                lives; nothing has changed hands then.
        """
        plain = {worker: json.loads(line) for worker, line in orders.items()}
        wills = {worker: _wills(worker, order["memory"]) for worker, order in plain.items()}
        for worker, (inherited, adopted) in wills.items():
            self._check(worker, inherited, adopted, set(living))
        for worker, (inherited, _) in wills.items():
            if inherited is not None:
                self.inherit(worker, inherited)
            elif worker not in self._vaults:
                self._vaults[worker] = create_vault(str(worker))
        for worker, (_, adopted) in wills.items():
            known = worker in self._handed_out
            plain[worker]["vault"] = "" if known else self.path(worker)
            plain[worker]["adopted"] = [[dead, self.path(dead)] for dead in adopted]
        return {
            worker: json.dumps(order, separators=(",", ":")).encode() + b"\n"
            for worker, order in plain.items()
        }

    def inherit(self, heir: int, dead: int) -> None:
        """Make a dead worker's vault the heir's own; harmless if it is already."""
        owner = self._owner(dead)
        if owner == heir:
            return
        if heir in self._vaults:
            self._close(heir)
        self._handed_out.discard(heir)
        self._vaults[heir] = self._vaults.pop(owner)
        self._heirs[owner] = heir

    def opened(self, worker: int) -> None:
        """A worker has reported what its vault holds: it works in it."""
        if worker in self._vaults:
            self._handed_out.add(worker)

    def copies(self, worker: int) -> Copies | None:
        """Read what a worker left behind that will not run again; none if nothing can be used.

        Must be called before `end`, which takes what the worker did last along.
        """
        fd = self._vaults.get(worker)
        if fd is None:
            return None  # it was never told to form
        pulse = self.pulse(worker)
        try:
            return read_copies(
                Vault(fd),
                worker,
                is_alive=False,
                phase=pulse.phase,
                collective=pulse.collective,
            )
        except (StorageError, OSError, ValueError, IndexError) as error:
            log.warning("vault_is_of_no_use", worker=worker, reason=str(error))
            return None

    def forget(self, workers: Iterable[int]) -> None:
        """Give up vaults of dead workers; what an heir has taken over stays with it."""
        for worker in workers:
            self._heirs.pop(worker, None)
            if worker in self._vaults:
                self._close(worker)

    def close(self) -> None:
        """Give up everything."""
        for worker in list(self._vaults):
            self._close(worker)
        for worker in list(self._pulses):
            self.end(worker)

    def _owner(self, worker: int) -> int:
        while worker in self._heirs:
            worker = self._heirs[worker]
        return worker

    def _check(
        self, worker: int, inherited: int | None, adopted: list[int], living: set[int]
    ) -> None:
        for dead in adopted if inherited is None else [inherited, *adopted]:
            if not self.path(dead):
                raise ClusterError(f"the vault of worker {dead}, for worker {worker}, is not here")
        if inherited is not None and self._owner(inherited) in living - {worker}:
            raise ClusterError(
                f"worker {self._owner(inherited)} lives and works in the vault of worker "
                f"{inherited}; worker {worker} cannot inherit it"
            )

    def _close(self, worker: int) -> None:
        os.close(self._vaults.pop(worker))
        self._handed_out.discard(worker)
        for dead in [dead for dead, heir in self._heirs.items() if heir == worker]:
            del self._heirs[dead]


def _path(fd: int) -> str:
    return f"/proc/{os.getpid()}/fd/{fd}"


def _wills(worker: int, memory: dict[str, Any] | None) -> tuple[int | None, list[int]]:
    """Whose vault a worker inherits, and whose it reads, according to a `FromMemory`."""
    if memory is None:
        return None, []
    inherited = [dead for heir, dead in memory["heirs"] if heir == worker]
    adopted = [dead for reader, dead in memory["adopted"] if reader == worker]
    return (inherited[0] if inherited else None), adopted

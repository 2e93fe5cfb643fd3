"""Faults in the memory of real workers: bits that flip, and arithmetic that goes wrong."""

import os
import signal
import time
from pathlib import Path

import numpy as np
from crews import Crew
from forked import Worker

from elasticmoe.vault.vault import Vault

STOP_TIMEOUT_S = 20.0


def stop_computing(worker: Worker) -> Vault:
    """Stop a worker while it computes: nothing of its step is prepared or being applied."""
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline_s:
        os.kill(worker.pid, signal.SIGSTOP)
        while Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        if worker.pulse.phase == "compute":
            return Vault(worker.vault)
        os.kill(worker.pid, signal.SIGCONT)
        time.sleep(0.003)
    raise AssertionError(f"worker {worker.number} was never seen computing")


def resume(worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGCONT)


def start_of(crew: Crew, unit: int) -> int:
    """First element of a unit among all."""
    return sum(one.numel for one in crew.inventory.units[:unit])


def flip(crew: Crew, vault: Vault, unit: int, tensors: tuple[int, ...] | None = None) -> None:
    """Flip a bit of a unit's master weights, in its state or in a snapshot."""
    layout = vault.layout
    kind = {4: np.int32, 8: np.int64}[layout.itemsize]
    bits = vault.array(kind, (layout.numel,), (tensors or layout.tensors)[0])
    at = start_of(crew, unit) + 3
    before = int(bits[at])
    bits[at] ^= 1 << 20
    assert int(bits[at]) != before  # the fault fired


def miscalculate(crew: Crew, vault: Vault, unit: int) -> None:
    """As if the unit's last update had gone wrong: it differs, and so does the hash of it."""
    assert recorded(crew, vault, unit) == int(vault.hashes_U[unit])
    flip(crew, vault, unit)
    vault.hashes_U[unit] = recorded(crew, vault, unit)


def recorded(crew: Crew, vault: Vault, unit: int) -> int:
    """What a home records of its unit."""
    layout, numel = vault.layout, crew.inventory.units[unit].numel
    start = start_of(crew, unit) * layout.itemsize
    count = numel * layout.itemsize // 8
    total = 0
    for factor, offset in zip((1, 3, 5), layout.tensors[:3], strict=True):
        total += factor * int(vault.array(np.int64, (count,), offset + start).sum())
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)

"""A member's part of a checkpoint: copied between two applies, written while training goes on."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from elasticmoe.checkpoint.store import Store
from elasticmoe.checkpoint.write import write_part
from elasticmoe.errors import ElasticMoEError
from elasticmoe.runtime.gang import Gang
from elasticmoe.runtime.groups import Over

POLL_S = 0.01
WRITER_NICENESS = 10
"""Of the writing thread, so that it takes what training leaves (Linux sets it per thread)."""


@dataclass(frozen=True, slots=True)
class Written:
    """How the writing of one part ended."""

    generation: int
    step: int
    files: list[dict[str, Any]]
    state: dict[str, Any]
    error: str = ""
    """Not empty: it failed, and there are no files."""


class CheckpointWriter:
    """Writes one part at a time on a thread of its own."""

    def __init__(self, store: Store, report: Callable[[Written], None]) -> None:
        """
        Args:
            store: where checkpoints go.
            report: told, on the writing thread, how each part ended.
        """
        self._store, self._report = store, report
        self._thread: threading.Thread | None = None
        self._room: dict[str, Tensor] = {}

    def take(self, gang: Gang) -> None:
        """Copy this member's part of the committed step and begin to write it.

        Waits for the part before, if that is still being written: two copies are never held.

        Raises:
            GangBrokenError: the generation ended meanwhile.
        """
        self.wait(gang.groups.over)
        tensors = self._copy(checkpoint_tensors(gang))
        progress = gang.progress
        state: dict[str, Any] = {"step": progress.step, "updates": progress.updates}
        if isfinite(progress.running_loss):  # JSON knows no NaN
            state["running_loss"] = progress.running_loss
        generation = gang.seat.rendezvous.generation
        writer = f"g{generation}-m{gang.seat.member}"
        self._thread = threading.Thread(
            target=self._write, args=(generation, writer, state, tensors), name="checkpoint-writer"
        )
        self._thread.start()

    def wait(self, over: Over) -> None:
        """Return when nothing is being written.

        Raises:
            GangBrokenError: the generation ended first; the part is still being written.
        """
        while self._thread is not None:
            self._thread.join(POLL_S)
            if not self._thread.is_alive():
                self._thread = None
            else:
                over.check()

    def _copy(self, tensors: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        copies = []
        for name, tensor in tensors:
            room = self._room.get(name)
            if room is None or room.shape != tensor.shape:
                room = torch.empty_like(tensor, device="cpu")
                self._room[name] = room
            copies.append((name, room.copy_(tensor)))
        return copies

    def _write(
        self,
        generation: int,
        writer: str,
        state: dict[str, Any],
        tensors: list[tuple[str, Tensor]],
    ) -> None:
        with suppress(OSError):  # not permitted everywhere; then it competes like any thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WRITER_NICENESS)
        step = state["step"]
        try:
            files = write_part(self._store, step, writer, tensors)
            written = Written(generation, step, files, state)
        except (ElasticMoEError, OSError) as error:
            written = Written(generation, step, [], state, error=str(error))
        self._report(written)


def checkpoint_tensors(gang: Gang) -> list[tuple[str, Tensor]]:
    """Live memory of the units this member is primary home of; member 0 adds what is equal on
    all. Constant until the next apply."""
    homes = gang.homes
    found = []
    for unit in homes.primary:
        for kind, tensor in zip(
            ("master", "exp_avg", "exp_avg_sq"), homes.state.tensors_of(unit), strict=True
        ):
            found.append((f"unit.{unit.index}.{kind}", tensor))
    if gang.is_first_member:
        found.append(("bias", gang.progress.bias_LE))
        found.append(("running", torch.from_numpy(gang.progress.running_LE)))
    return found

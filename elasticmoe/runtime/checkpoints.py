"""A member's part of a checkpoint: copied between two applies, written while training goes on."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import torch
from torch import Tensor

from elasticmoe.checkpoint.store import Store
from elasticmoe.checkpoint.write import write_part
from elasticmoe.errors import ElasticMoEError
from elasticmoe.plan.types import Unit
from elasticmoe.runtime.gang import Gang
from elasticmoe.runtime.groups import Over
from elasticmoe.runtime.memory import State, Tensors, hash_tensors
from elasticmoe.runtime.moves import is_whole
from elasticmoe.runtime.optimizer import refuse_corrupted

KINDS: Final = ("master", "exp_avg", "exp_avg_sq")
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


@dataclass(frozen=True, slots=True)
class _Part:
    """What one member writes: a copy, and what it was copied from."""

    generation: int
    writer: str
    state: dict[str, Any]
    tensors: dict[str, Tensor]
    source: State
    units: tuple[Unit, ...]
    hashes: tuple[int, ...]
    """Of each of the units, as its home recorded it."""

    def corrupted(self) -> tuple[Unit, ...]:
        """Units whose copy does not have the recorded hash."""
        return tuple(
            unit
            for unit, hashed in zip(self.units, self.hashes, strict=True)
            if hash_tensors(_copy_of(unit, self.tensors)) != hashed
        )


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
        self._corrupted: tuple[State, int, tuple[Unit, ...]] | None = None
        """Units whose copies were found corrupted, of which step, and from where they were."""

    def take(self, gang: Gang) -> None:
        """Copy this member's part of the committed step and begin to write it.

        Waits for the part before, if that is still being written: two copies are never held.

        Raises:
            GangBrokenError: the generation ended meanwhile.
            CorruptedError: as in `wait`.
        """
        self.wait(gang.groups.over)
        homes, progress = gang.homes, gang.progress
        state: dict[str, Any] = {"step": progress.step, "updates": progress.updates}
        if isfinite(progress.running_loss):  # JSON knows no NaN
            state["running_loss"] = progress.running_loss
        generation = gang.seat.rendezvous.generation
        part = _Part(
            generation,
            f"g{generation}-m{gang.seat.member}",
            state,
            self._copy(checkpoint_tensors(gang)),
            source=homes.state,
            units=homes.primary,
            hashes=tuple(map(homes.state.recorded_hash, homes.primary)),
        )
        self._thread = threading.Thread(target=self._write, args=(part,), name="checkpoint-writer")
        self._thread.start()

    def wait(self, over: Over) -> None:
        """Return when nothing is being written.

        Raises:
            GangBrokenError: the generation ended first; the part is still being written.
            CorruptedError: the part was not written, because units were corrupted, and no update
                has met them since: it can be written again. Those that are corrupted not in the
                copy alone are torn now.
        """
        while self._thread is not None:
            self._thread.join(POLL_S)
            if not self._thread.is_alive():
                self._thread = None
            else:
                over.check()
        found, self._corrupted = self._corrupted, None
        if found is not None:
            source, step, units = found
            there = [unit for unit in units if is_whole(source, unit, step)]
            for unit in there:
                source.is_intact(unit)  # torn from here on, if it is not
            refuse_corrupted([unit.index for unit in there])

    def _copy(self, tensors: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
        names = {name for name, _ in tensors}  # no room for what others write now
        self._room = {name: room for name, room in self._room.items() if name in names}
        for name, tensor in tensors:
            if name not in self._room:
                self._room[name] = torch.empty_like(tensor, device="cpu")
            self._room[name].copy_(tensor)
        return self._room

    def _write(self, part: _Part) -> None:
        with suppress(OSError):  # not permitted everywhere; then it competes like any thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WRITER_NICENESS)
        step = part.state["step"]
        try:
            corrupted = part.corrupted()
            if corrupted:
                self._corrupted = (part.source, step, corrupted)
                refuse_corrupted([unit.index for unit in corrupted])
            files = write_part(self._store, step, part.writer, part.tensors.items())
            written = Written(part.generation, step, files, part.state)
        except (ElasticMoEError, OSError) as error:
            written = Written(part.generation, step, [], part.state, error=str(error))
        self._report(written)


def _copy_of(unit: Unit, tensors: dict[str, Tensor]) -> Tensors:
    a, b, c = (tensors[f"unit.{unit.index}.{kind}"] for kind in KINDS)
    return a, b, c


def checkpoint_tensors(gang: Gang) -> list[tuple[str, Tensor]]:
    """Live memory of the units this member is primary home of; member 0 adds what is equal on
    all. Constant until the next apply."""
    homes = gang.homes
    found = []
    for unit in homes.primary:
        for kind, tensor in zip(KINDS, homes.state.tensors_of(unit), strict=True):
            found.append((f"unit.{unit.index}.{kind}", tensor))
    if gang.is_first_member:
        found.append(("bias", gang.progress.bias_LE))
        found.append(("running", torch.from_numpy(gang.progress.running_LE)))
    return found

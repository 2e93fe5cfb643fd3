"""Bits that flip in a worker's memory: in its vault, where master weights and moments live.

Shapes: U = units.
"""

import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chaos.errors import NotFiredError
from chaos.live import LiveWorker
from chaos.nemeses.base import Aim, Answer, Blow, Nemesis, draw
from chaos.nemeses.processes import candidates
from chaos.proc import open_files
from chaos.world import World
from elasticmoe.errors import StorageError
from elasticmoe.vault.vault import Vault

PARTS: Final = ("master", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Bit:
    """One bit in a file of shared memory."""

    path: Path
    offset: int
    """Byte."""
    mask: int


class FlipBit(Nemesis):
    """One bit of one number of one unit's state, in one home. Nothing tells the worker."""

    answer: ClassVar[Answer] = Answer.PROGRESS
    part: Literal["master", "exp_avg", "exp_avg_sq"] = "master"
    bit: int = Field(default=18, ge=0)
    """Of the number, from its least significant one. Of an fp32 number 0 to 22 are its fraction:
    the number stays finite, and training goes wrong silently."""

    def obstacle(self, world: World, aim: Aim) -> str:
        """A vault with state in it must fit."""
        found = any(_vault_paths(worker) for worker in candidates(world, aim))
        return "" if found else "no member of the gang has a vault"

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Flip it, and see it flipped."""
        (victim,) = draw(candidates(world, aim), aim, rng)
        sizes = unit_sizes(world)
        for path in _vault_paths(victim):
            found = pick(path, sizes, self.part, self.bit, rng)
            if found is not None:
                unit, bit = found
                evidence = flip(bit)
                return Blow((f"worker {victim.number}",), f"unit {unit} {self.part}: {evidence}")
        raise NotFiredError(f"worker {victim.number} is home of no whole unit")


def unit_sizes(world: World) -> list[int]:
    """Elements of every unit, in the order of the model."""
    assert world.live.submitted is not None
    units: list[dict[str, Any]] = world.live.submitted.inventory["units"]
    return [int(unit["numel"]) for unit in units]


def pick(
    path: Path, sizes: list[int], part: str, bit: int, rng: np.random.Generator
) -> tuple[int, Bit] | None:
    """Choose a number that is not 0, of a unit that is whole; none if there is none."""
    fd = os.open(path, os.O_RDWR)
    try:
        vault = Vault(fd)
    except StorageError:
        return None
    finally:
        os.close(fd)
    whole: NDArray[np.int64] = np.flatnonzero(vault.steps_U() >= 0)
    if not len(whole):
        return None
    unit = int(rng.choice(whole))
    layout = vault.layout
    starts = [0, *accumulate(sizes)]
    dtype = {4: np.float32, 8: np.float64}[layout.itemsize]
    base = layout.tensors[PARTS.index(part)] + starts[unit] * layout.itemsize
    values = vault.array(dtype, (sizes[unit],), base)
    others = np.flatnonzero(values)
    if not len(others):
        return None
    element = int(rng.choice(others))
    offset = base + element * layout.itemsize + bit // 8
    return unit, Bit(path, offset, 1 << bit % 8)


def flip(bit: Bit) -> str:
    """Change a bit; returns the evidence.

    Raises:
        NotFiredError: it did not change.
    """
    fd = os.open(bit.path, os.O_RDWR)
    try:
        before = os.pread(fd, 1, bit.offset)[0]
        os.pwrite(fd, bytes([before ^ bit.mask]), bit.offset)
        after = os.pread(fd, 1, bit.offset)[0]
    finally:
        os.close(fd)
    if after == before:
        raise NotFiredError(f"{bit.path}: byte {bit.offset} is still {before:#04x}")
    return f"byte {bit.offset} was {before:#04x}, is {after:#04x}"


def _vault_paths(worker: LiveWorker) -> list[Path]:
    return [
        Path(f"/proc/{worker.pid}/fd/{fd}")
        for fd, target in open_files(worker.pid)
        if target.startswith("/memfd:vault-")
    ]

"""Disks that are full, and checkpoints that rot."""

import errno
import os
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from chaos.errors import NotFiredError
from chaos.nemeses.base import Aim, Answer, Blow, Nemesis, Surroundings
from chaos.world import World

_BLOCK: Final = bytes(1 << 20)


class FillDisk(Nemesis):
    """The disk of the checkpoints is full for `for_s`."""

    answer: ClassVar[Answer] = Answer.PROGRESS
    for_s: float = Field(default=5.0, gt=0)

    def lacks(self, around: Surroundings) -> str:
        """Nobody's real disk is filled."""
        return "" if around.has_small_disk else "disk_mb"

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Write until nothing more fits."""
        assert world.disk is not None
        filler = world.disk / "filler"
        size = fill(filler)

        def undo() -> str:
            filler.unlink()
            return "the disk has room again"

        return Blow((f"disk {world.disk}",), f"ENOSPC after {size:,} bytes", undo)


class CorruptCheckpoint(Nemesis):
    """Some bytes of a sealed checkpoint change, or a file of it is gone."""

    answer: ClassVar[Answer] = Answer.PROGRESS
    how: Literal["flip", "truncate", "remove", "manifest"] = "flip"
    """A byte of a unit file; its second half; all of it; a byte of the manifest."""
    age: int = Field(default=0, ge=0)
    """Of which checkpoint: 0 is the newest, 1 the one before..."""
    keep: int = Field(default=1, ge=0)
    """Whole checkpoints that must be left."""

    def obstacle(self, world: World, aim: Aim) -> str:
        """There must be such a checkpoint, and enough others."""
        have, need = len(world.checkpoints()), max(self.age, self.keep) + 1
        return "" if have >= need else f"{have} checkpoints are sealed, {need} are needed"

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Damage it, and see that it is damaged."""
        directory = world.checkpoints()[-1 - self.age]
        if self.how == "manifest":
            evidence = flip_byte(directory / "manifest.json", rng)
        else:
            files = sorted(directory.glob("*.safetensors"))
            file = files[int(rng.integers(len(files)))]
            evidence = {"flip": flip_byte, "truncate": cut_short, "remove": remove}[self.how](
                file, rng
            )
        world.damaged.add(directory)
        return Blow((directory.name,), evidence)


def fill(filler: Path) -> int:
    """Write a file until its disk is full; returns its bytes.

    Raises:
        NotFiredError: the disk takes another byte, or is so large that it is not a test's.
    """
    limit = 1 << 32
    size, block = 0, _BLOCK
    with filler.open("wb", buffering=0) as file:
        while block:
            try:
                size += file.write(block)
                if size > limit:
                    raise NotFiredError(f"{filler.parent} is larger than a disk for tests")
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                block = block[: len(block) // 2]
    probe = filler.with_name("probe")
    try:
        probe.write_bytes(b"x")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return size
        raise
    finally:
        probe.unlink(missing_ok=True)
    raise NotFiredError(f"{filler.parent} still takes data")


def flip_byte(path: Path, rng: np.random.Generator) -> str:
    """Change one bit in the second half of a file, past the page cache's owner's back."""
    size = path.stat().st_size
    offset = int(rng.integers(size // 2, size))
    with path.open("r+b") as file:
        before = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([before ^ 0x10]), offset)
        os.fsync(file.fileno())
        after = os.pread(file.fileno(), 1, offset)[0]
    if after != before ^ 0x10:
        raise NotFiredError(f"{path}: byte {offset} is still {before:#04x}")
    return f"{path.name}: byte {offset} was {before:#04x}, is {after:#04x}"


def cut_short(path: Path, rng: np.random.Generator) -> str:
    """Drop the second half of a file."""
    size = path.stat().st_size
    os.truncate(path, size // 2)
    if path.stat().st_size != size // 2:
        raise NotFiredError(f"{path} still has {size} bytes")
    return f"{path.name}: {size // 2} of {size} bytes are left"


def remove(path: Path, rng: np.random.Generator) -> str:
    """Delete a file."""
    path.unlink()
    return f"{path.name} is gone"

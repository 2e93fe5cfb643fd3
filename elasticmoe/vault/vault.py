"""A worker's vault: master weights, moments and what the open step needs, in shared memory.

The agent makes the file and keeps it open, so that it outlives the worker; whoever takes the
worker's place goes on in it. Writes of a killed process that came before its end are all there,
in order (x86-64 and AArch64 keep them for every later reader of the same memory).

Shapes: U = units, L = MoE layers, E = routed experts per layer.
"""

import mmap
import os
import weakref
from ctypes import CDLL, c_int, c_int64, get_errno
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from elasticmoe.errors import StorageError
from elasticmoe.vault.layout import NUM_HEAD_WORDS, VaultLayout

MAGIC: Final = 0x656C61737469636D  # "elasticm"
_LAYOUT_WORDS: Final = slice(1, 7)
_GENERATION, _PREPARED, _FINITE, _VOTED = 8, 9, 10, 11
_UNDO_UNIT, _MORTAL, _LOSS, _UNDO_HASH = 12, 13, 14, 15
_SLOTS: Final = (16, 24)
"""First word of each progress slot: step + 1 (0: empty), updates, then six float64."""
_NUM_EXTRAS: Final = 6
_KEEP_SIZE_AND_PUNCH: Final = 3


def create_vault(name: str) -> int:
    """Make an empty file that belongs to no directory; returns its descriptor."""
    return os.memfd_create(f"vault-{name}", os.MFD_CLOEXEC)


class Vault:
    """One vault, mapped. Whoever maps a file first gives it its layout."""

    def __init__(self, fd: int, layout: VaultLayout | None = None) -> None:
        """
        Args:
            fd: of the file; stays the caller's.
            layout: what must be in it; none: whatever is there.

        Raises:
            StorageError: there is nothing in it, or the state of another model.
        """
        if os.fstat(fd).st_size == 0:
            if layout is None:
                raise StorageError("the vault is empty")
            os.ftruncate(fd, layout.size)
        self._fd = os.dup(fd)
        weakref.finalize(self, os.close, self._fd)
        self._map = mmap.mmap(self._fd, os.fstat(fd).st_size)
        self._head = np.frombuffer(self._map, np.int64, NUM_HEAD_WORDS)
        if self._head[0] == 0 and layout is not None:
            self._head[_LAYOUT_WORDS] = _words(layout)
            self._head[0] = MAGIC
        if self._head[0] != MAGIC:
            raise StorageError("the vault holds no training state")
        found = VaultLayout(*(int(word) for word in self._head[_LAYOUT_WORDS]))
        if layout is not None and found != layout:
            raise StorageError(f"the vault holds another model's state: {found}, not {layout}")
        self.layout = found
        self.stamps_U2: NDArray[np.int64] = self.array(np.int64, (found.num_units, 2), found.stamps)
        """Step + 1 before and after the unit's newest update; 0: the unit is not here."""
        self.hashes_U: NDArray[np.int64] = self.array(np.int64, (found.num_units,), found.hashes)
        """Recorded by the home at the end of its update."""
        self.counts_LE: NDArray[np.int64] = self.array(
            np.int64, (found.num_layers, found.num_experts), found.counts
        )
        """Tokens per expert in the prepared step."""

    def array(self, dtype: Any, shape: tuple[int, ...], offset: int) -> NDArray[Any]:
        """A writable view of the mapped memory."""
        count = int(np.prod(shape))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)

    @property
    def memory(self) -> mmap.mmap:
        """The mapped memory, for views of other kinds."""
        return self._map

    def dies_with_process(self) -> None:
        """The units' state lies elsewhere, in memory of the process; only words are here."""
        self._head[_MORTAL] = 1

    @property
    def is_mortal(self) -> bool:
        """Whether the units' state is gone with the process that worked on it."""
        return bool(self._head[_MORTAL])

    # -- the open step

    @property
    def generation(self) -> int:
        """Newest generation whose state is here."""
        return int(self._head[_GENERATION])

    @property
    def prepared(self) -> int:
        """The step that all units one step behind are prepared for; 0: none."""
        return int(self._head[_PREPARED])

    @property
    def prepared_is_finite(self) -> bool:
        """Whether the prepared step changes weights; else it commits as a no-op."""
        return bool(self._head[_FINITE])

    @property
    def voted(self) -> int:
        """Newest step whose vote was passed; 0: none."""
        return int(self._head[_VOTED])

    def settle(self) -> None:
        """What was open is applied or dropped: nothing is prepared, nobody has voted."""
        self._head[_PREPARED] = 0
        self._head[_VOTED] = 0

    def join(self, generation: int) -> None:
        """A generation begins here."""
        self.settle()
        self._head[_GENERATION] = generation

    @property
    def prepared_loss(self) -> float:
        """Loss of the prepared step."""
        return float(self._head.view(np.float64)[_LOSS])

    def prepare(
        self, step: int, *, is_finite: bool, loss: float, counts_LE: NDArray[np.int64]
    ) -> None:
        """All gradients of the step are in place: say so, last of all."""
        self._head[_FINITE] = is_finite
        self._head.view(np.float64)[_LOSS] = loss
        self.counts_LE[...] = counts_LE
        self._head[_PREPARED] = step

    def vote(self, step: int) -> None:
        """Everybody is prepared for the step."""
        self._head[_VOTED] = step

    # -- progress: bias, load, counters. Two slots, so that one is always whole

    def write_progress(
        self,
        step: int,
        updates: int,
        bias_LE: NDArray[np.float64],
        running_LE: NDArray[np.float64],
        extras: tuple[float, ...] = (),
    ) -> None:
        """Keep the progress of a step beside that of the step before."""
        slot = self._slot(step - 1)
        target = 0 if slot is None else 1 - slot
        words = self._slot_words(target)
        words[0] = 0
        words[1] = updates
        floats = words.view(np.float64)
        floats[2 : 2 + len(extras)] = extras
        kept = self._progress_arrays(target)
        kept[0], kept[1] = bias_LE, running_LE
        words[0] = step + 1

    def read_progress(
        self, step: int
    ) -> tuple[int, NDArray[np.float64], NDArray[np.float64], tuple[float, ...]] | None:
        """Updates, bias, running load and extras of a step; none if it is not here."""
        slot = self._slot(step)
        if slot is None:
            return None
        words, kept = self._slot_words(slot), self._progress_arrays(slot)
        extras = tuple(float(value) for value in words.view(np.float64)[2 : 2 + _NUM_EXTRAS])
        return int(words[1]), kept[0].copy(), kept[1].copy(), extras

    def clear_progress(self) -> None:
        """Forget both slots: another history begins."""
        for slot in (0, 1):
            self._slot_words(slot)[0] = 0

    @property
    def step(self) -> int:
        """Newest committed step of the progress; -1: there is none."""
        return max(int(self._slot_words(slot)[0]) for slot in (0, 1)) - 1

    # -- units

    def steps_U(self) -> NDArray[np.int64]:
        """The step that each unit is whole at; -1: not here, -2: torn."""
        before, after = self.stamps_U2[:, 0], self.stamps_U2[:, 1]
        steps_U = np.where(before == after, after - 1, -2)
        if self.prepared and not self.prepared_is_finite:  # only stamps move in such a step
            cut_U = (before == self.prepared + 1) & (after == self.prepared)
            steps_U[cut_U] = self.prepared - 1
        return steps_U

    def forget(self, units: NDArray[np.int64]) -> None:
        """Drop units: they are not here any more."""
        self.stamps_U2[units] = 0

    def release(self, first_byte: int, end_byte: int) -> None:
        """Give the whole pages of a range back to the machine."""
        first = -(-first_byte // mmap.PAGESIZE) * mmap.PAGESIZE
        end = end_byte // mmap.PAGESIZE * mmap.PAGESIZE
        if end > first:
            _fallocate(self._fd, first, end - first)

    # -- the unit that is being updated, where no other home could replace it

    @property
    def undo_unit(self) -> int:
        """The unit whose earlier state is kept; -1: none."""
        return int(self._head[_UNDO_UNIT]) - 1

    @property
    def undo_hash(self) -> int:
        """Of the state that is kept."""
        return int(self._head[_UNDO_HASH])

    def set_undo(self, unit: int, hashed: int = 0) -> None:
        """Name the unit whose earlier state is kept whole, and that state's hash; -1: none."""
        self._head[_UNDO_HASH] = hashed
        self._head[_UNDO_UNIT] = unit + 1

    def _slot(self, step: int) -> int | None:
        found = [slot for slot in (0, 1) if self._slot_words(slot)[0] == step + 1]
        return found[0] if found and step >= 0 else None

    def _slot_words(self, slot: int) -> NDArray[np.int64]:
        return self._head[_SLOTS[slot] : _SLOTS[slot] + 2 + _NUM_EXTRAS]

    def _progress_arrays(self, slot: int) -> NDArray[np.float64]:
        layout = self.layout
        shape = (2, layout.num_layers, layout.num_experts)
        return self.array(np.float64, shape, layout.progress(slot))


def _words(layout: VaultLayout) -> list[int]:
    return [
        layout.num_units,
        layout.num_layers,
        layout.num_experts,
        layout.numel,
        layout.largest_unit,
        layout.itemsize,
    ]


_libc = CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (c_int, c_int, c_int64, c_int64)


def _fallocate(fd: int, offset: int, size: int) -> None:
    if _libc.fallocate(fd, _KEEP_SIZE_AND_PUNCH, offset, size) != 0:
        number = get_errno()
        raise OSError(number, os.strerror(number))

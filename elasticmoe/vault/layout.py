"""Where everything lies in a vault: a function of the model alone.

Every unit of the model has its place in every vault, whether its state is there or not: the file
is sparse, so what was never written takes no memory. No layout of the job, past or future, moves
anything within a vault.
"""

import mmap
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from elasticmoe.plan.types import Inventory

NUM_HEAD_WORDS = 64
NUM_SNAPSHOT_WORDS = 8


@dataclass(frozen=True, slots=True)
class SnapshotPlaces:
    """Byte offsets of what belongs to one snapshot."""

    words: int
    """int64 words: step, updates, running loss."""
    chain: int
    """int64 [units]: which units are here, and which a parity is of."""
    hashes: int
    """int64 [units]."""
    progress: int
    """float64 [2, layers, experts]: bias and running load."""
    tensors: tuple[int, int, int]
    """[numel] each: master weights, first and second moments."""
    end: int


@dataclass(frozen=True)
class VaultLayout:
    """Byte offsets, each at the start of a page."""

    num_units: int
    num_layers: int
    """MoE layers."""
    num_experts: int
    numel: int
    """Elements of all units."""
    largest_unit: int
    """Elements of the largest unit."""
    itemsize: int
    """Bytes per element of master weights, moments and gradients."""

    @classmethod
    def of(cls, inventory: Inventory, num_experts: int, itemsize: int) -> "VaultLayout":
        """Lay out a model's training state."""
        sizes = [unit.numel for unit in inventory.units]
        return cls(
            num_units=len(sizes),
            num_layers=len(inventory.moe_blocks),
            num_experts=num_experts,
            numel=sum(sizes),
            largest_unit=max(sizes),
            itemsize=itemsize,
        )

    @property
    def head(self) -> int:
        """int64 words: what a reader must know first."""
        return 0

    @property
    def stamps(self) -> int:
        """int64 [units, 2]."""
        return mmap.PAGESIZE

    @property
    def hashes(self) -> int:
        """int64 [units]."""
        return _behind(self.stamps, 16 * self.num_units)

    def progress(self, slot: int) -> int:
        """float64 [2, layers, experts]: bias and running load, of one of two slots."""
        size = 16 * self.num_layers * self.num_experts
        first = _behind(self.hashes, 8 * self.num_units)
        return first if slot == 0 else _behind(first, size)

    @property
    def counts(self) -> int:
        """int64 [layers, experts]: tokens per expert of the prepared step."""
        return _behind(self.progress(1), 16 * self.num_layers * self.num_experts)

    @cached_property
    def tensors(self) -> tuple[int, int, int, int]:
        """[numel] each: master weights, first moments, second moments, prepared gradients."""
        size = self.numel * self.itemsize
        first = _behind(self.counts, 8 * self.num_layers * self.num_experts)
        a, b, c, d = accumulate((size, size, size), _behind, initial=first)
        return a, b, c, d

    @property
    def undo(self) -> int:
        """[3, largest unit]: the state of the unit that is being updated, as it was before."""
        return _behind(self.tensors[3], self.numel * self.itemsize)

    def snapshot(self, number: int) -> SnapshotPlaces:
        """Where one of the two snapshots is that there is room for."""
        first = _behind(self.undo, 3 * self.largest_unit * self.itemsize)
        places = self._snapshot_at(first)
        return places if number == 0 else self._snapshot_at(places.end)

    def _snapshot_at(self, first: int) -> SnapshotPlaces:
        units, size = 8 * self.num_units, self.numel * self.itemsize
        counts = 16 * self.num_layers * self.num_experts
        sizes = (8 * NUM_SNAPSHOT_WORDS, units, units, counts, size, size, size)
        words, chain, hashes, progress, a, b, c, end = accumulate(sizes, _behind, initial=first)
        return SnapshotPlaces(words, chain, hashes, progress, (a, b, c), end)

    @property
    def size(self) -> int:
        """Bytes of the whole file, holes included."""
        return self.snapshot(1).end


def _behind(offset: int, size: int) -> int:
    end = offset + size
    return -(-end // mmap.PAGESIZE) * mmap.PAGESIZE

"""A member's memory: compute weights and gradients of its blocks, and the homes it keeps.

Everything lies in a few flat buffers, so that an exchange is a handful of contiguous copies.
Compute weights are derived from homes; homes are the training state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

from elasticmoe.model.stage import StageModel
from elasticmoe.plan.types import Inventory, Plan, Unit

COMPUTE_DTYPE: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
MASTER_DTYPE: Final = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True, slots=True)
class Span:
    """A contiguous copy: `numel` elements from `source` in one buffer to `target` in another."""

    source: int
    target: int
    numel: int


def merge_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Join neighbours that are contiguous on both sides."""
    merged: list[Span] = []
    for span in spans:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.source + last.numel == span.source
            and last.target + last.numel == span.target
        ):
            merged[-1] = Span(last.source, last.target, last.numel + span.numel)
        else:
            merged.append(span)
    return tuple(merged)


def copy_spans(source: Tensor, target: Tensor, spans: Sequence[Span]) -> None:
    """Copy each span between two flat tensors, converting the dtype if they differ."""
    for span in spans:
        target[span.target : span.target + span.numel].copy_(
            source[span.source : span.source + span.numel]
        )


def add_spans(source: Tensor, target: Tensor, spans: Sequence[Span]) -> None:
    """Add each span of one flat tensor to another."""
    for span in spans:
        target[span.target : span.target + span.numel].add_(
            source[span.source : span.source + span.numel]
        )


class Weights:
    """Compute weights and gradients of the blocks that a member's stage computes."""

    def __init__(
        self,
        inventory: Inventory,
        blocks: Sequence[int],
        slots: dict[int, tuple[int, ...]],
        precision: str,
        device: torch.device,
    ) -> None:
        """
        Args:
            inventory: the model's blocks and units.
            blocks: the member's blocks, in network order.
            slots: per experts block the experts in this member's slots, in slot order.
            precision: `fp32`, `bf16` or `fp64`.
            device: where the memory lies.
        """
        self._inventory, self._blocks, self._slots = inventory, tuple(blocks), slots
        self._start: dict[int, int] = {}
        numel = 0
        for index in blocks:
            block = inventory.blocks[index]
            self._start[index] = numel
            numel += block.numel * (len(slots[index]) if block.is_experts else 1)
        self.flat = torch.zeros(numel, dtype=COMPUTE_DTYPE[precision], device=device)
        self.gradients = torch.zeros(numel, dtype=MASTER_DTYPE[precision], device=device)

    def bind(self, stage: StageModel, *, train: bool = True) -> None:
        """Make the stage's parameters views of this memory."""
        for index in self._blocks:
            block = self._inventory.blocks[index]
            copies = len(self._slots[index]) if block.is_experts else 1
            start, stop = self._start[index], self._start[index] + copies * block.numel
            shape = (copies, block.numel) if block.is_experts else (block.numel,)
            gradients = self.gradients[start:stop].view(shape) if train else None
            stage.bind(index, self.flat[start:stop].view(shape), gradients)

    def offset(self, unit: Unit) -> int:
        """First element of a unit in the flat memory; the member must hold it."""
        if unit.expert < 0:
            return self._start[unit.block] + unit.offset
        slot = self._slots[unit.block].index(unit.expert)
        return self._start[unit.block] + slot * unit.numel


class Homes:
    """Master weights and moments of the units a member is home of, and their prepared gradients.

    Units lie in the order of `units`: first those it is primary home of, then the others, each
    ascending. `stamps` holds per unit the step before and after its update: a copy is whole
    where they are equal.
    """

    def __init__(
        self,
        inventory: Inventory,
        plan: Plan,
        member: int,
        precision: str,
        device: torch.device,
    ) -> None:
        primary = [u for u in inventory.units if plan.homes[u.index][0] == member]
        mirrors = [u for u in inventory.units if member in plan.homes[u.index][1:]]
        self.units = (*primary, *mirrors)
        self.num_primary = len(primary)
        sizes = [unit.numel for unit in self.units]
        starts = [0, *accumulate(sizes)]
        self.start = {u.index: start for u, start in zip(self.units, starts, strict=False)}
        self.numel = starts[-1]
        self.primary_numel = starts[len(primary)]
        dtype = MASTER_DTYPE[precision]
        self.master = torch.zeros(self.numel, dtype=dtype, device=device)
        self.exp_avg = torch.zeros(self.numel, dtype=dtype, device=device)
        self.exp_avg_sq = torch.zeros(self.numel, dtype=dtype, device=device)
        self.prepared = torch.zeros(self.numel, dtype=dtype, device=device)
        self.stamps = torch.zeros(len(self.units), 2, dtype=torch.int64)

    def slice_of(self, unit: Unit) -> slice:
        """Where the unit lies in each of the flat tensors."""
        start = self.start[unit.index]
        return slice(start, start + unit.numel)

    def fill(self, unit: Unit, master: Tensor, exp_avg: Tensor | None, sq: Tensor | None) -> None:
        """Set a unit's state; moments of none are zero."""
        where = self.slice_of(unit)
        self.master[where] = master
        self.exp_avg[where] = 0.0 if exp_avg is None else exp_avg
        self.exp_avg_sq[where] = 0.0 if sq is None else sq

    def hashes(self) -> Tensor:
        """One int64 per home: wrapping sums of the bits of weights and moments; any flipped bit
        changes them. 28 GB/s on one core; what is written out has a stronger hash.
        """
        found = torch.empty(len(self.units), dtype=torch.int64)
        for row, unit in enumerate(self.units):
            where = self.slice_of(unit)
            bits = [
                tensor[where].view(torch.int64).sum()
                for tensor in (self.master, self.exp_avg, self.exp_avg_sq)
            ]
            found[row] = bits[0] + 3 * bits[1] + 5 * bits[2]
        return found

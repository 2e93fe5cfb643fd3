"""A member's memory: compute weights and gradients of its blocks, and the homes it keeps.

Everything lies in a few flat buffers, so that an exchange is a handful of contiguous copies.
Compute weights are derived from homes; homes are the training state, and lie in the vault.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from elasticmoe.model.stage import StageModel
from elasticmoe.plan.types import Inventory, Plan, Unit
from elasticmoe.vault.vault import Vault

COMPUTE_DTYPE: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
MASTER_DTYPE: Final = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}

Tensors = tuple[Tensor, Tensor, Tensor]
"""Master weights and moments of a unit, flat."""


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


def hash_tensors(tensors: Tensors) -> int:
    """Wrapping sums of the bits of weights and moments: any flipped bit changes it.

    28 GB/s on one core; what is written out has a stronger hash.
    """
    sums = [tensor.view(torch.int64).sum() for tensor in tensors]
    return int(sums[0] + 3 * sums[1] + 5 * sums[2])


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


class State:
    """Training state of units in this worker's vault, whatever plan it follows.

    On a CPU it lies in the vault itself, where every unit of the model has a place of its own; on
    an accelerator in memory that is packed for the units that are here, and dies with the
    process (the vault then keeps only what is said about it).
    """

    def __init__(
        self, inventory: Inventory, vault: Vault, precision: str, device: torch.device
    ) -> None:
        """
        Args:
            inventory: the model's units.
            vault: mapped with this model's layout.
            precision: `fp32`, `bf16` or `fp64`.
            device: where master weights, moments and gradients lie.
        """
        self.inventory, self.vault, self.device = inventory, vault, device
        self._dtype = MASTER_DTYPE[precision]
        self._packed: frozenset[int] = frozenset()
        starts = [0, *accumulate(unit.numel for unit in inventory.units)]
        self._places = starts
        self.start = dict(enumerate(starts[:-1]))
        """First element of each unit that has a place here."""
        self.undo: tuple[Tensor, ...] = ()
        """Room for one unit's state as it was before its update."""
        if device.type == "cpu":
            flat = [self.view(offset) for offset in vault.layout.tensors]
            self.master, self.exp_avg, self.exp_avg_sq, self.prepared = flat
            size = vault.layout.largest_unit
            undo = self.view(vault.layout.undo, 3 * size)
            self.undo = tuple(undo.split(size))
        else:
            vault.dies_with_process()
            self._allocate(())

    def make_room(self, units: Sequence[Unit]) -> None:
        """Give these units a place, beside those that are here."""
        if self.device.type != "cpu":
            wanted = {unit.index for unit in units} | self._here()
            if not wanted <= set(self.start):
                self._allocate([unit for unit in self.inventory.units if unit.index in wanted])

    def keep_only(self, units: Sequence[Unit]) -> None:
        """Let go of all other units."""
        gone = self._here() - {unit.index for unit in units}
        self.vault.forget(np.array(sorted(gone), dtype=np.int64))
        if self.device.type == "cpu":
            itemsize = self.master.element_size()
            for unit in (self.inventory.units[index] for index in gone):
                first, end = self.start[unit.index], self.start[unit.index] + unit.numel
                for offset in self.vault.layout.tensors:
                    self.vault.release(offset + first * itemsize, offset + end * itemsize)

    def _here(self) -> set[int]:
        return set(np.flatnonzero(self.vault.stamps_U2.any(axis=1)).tolist())

    def place_of(self, unit: Unit) -> int:
        """Its first element among all units', as everything in a vault is ordered."""
        return self._places[unit.index]

    def slice_of(self, unit: Unit) -> slice:
        """Where the unit lies in each of the flat tensors."""
        start = self.start[unit.index]
        return slice(start, start + unit.numel)

    def tensors_of(self, unit: Unit) -> Tensors:
        """Master weights and moments of a unit, flat."""
        where = self.slice_of(unit)
        return self.master[where], self.exp_avg[where], self.exp_avg_sq[where]

    def fill(
        self,
        unit: Unit,
        step: int,
        master: Tensor,
        exp_avg: Tensor | None = None,
        exp_avg_sq: Tensor | None = None,
        *,
        hashed: int | None = None,
    ) -> bool:
        """Set a unit's state after `step` committed steps; moments of none are zero.

        Args:
            hashed: of a copy: the hash that its home recorded.

        Returns:
            Whether it is whole: a copy whose hash is another one stays torn.
        """
        stamps = self.vault.stamps_U2[unit.index]
        stamps[0] = 0  # whatever was here is gone; whole again when all is written
        for tensor, value in zip(self.tensors_of(unit), (master, exp_avg, exp_avg_sq), strict=True):
            if value is None:
                tensor.zero_()
            else:
                tensor.copy_(value)
        found = self.hash_of(unit)
        if hashed is not None and found != hashed:
            return False
        self.vault.hashes_U[unit.index] = found
        stamps[1] = step + 1
        stamps[0] = step + 1
        return True

    def recorded_hash(self, unit: Unit) -> int:
        """What the unit's hash was at the end of its last update."""
        return int(self.vault.hashes_U[unit.index])

    def is_intact(self, unit: Unit) -> bool:
        """Whether a unit still is as its last update left it; if not, it is torn from here on."""
        if self.recorded_hash(unit) == self.hash_of(unit):
            return True
        self.vault.stamps_U2[unit.index, 0] = 0
        return False

    def hash_of(self, unit: Unit) -> int:
        """`hash_tensors` of a unit."""
        return hash_tensors(self.tensors_of(unit))

    def view(self, offset: int, numel: int | None = None) -> Tensor:
        """Elements in the vault's memory; by default as many as all units have."""
        memory: Any = self.vault.memory
        count = self.vault.layout.numel if numel is None else numel
        return torch.frombuffer(memory, dtype=self._dtype, count=count, offset=offset)

    def _allocate(self, units: Sequence[Unit]) -> None:
        kept = {unit: self.tensors_of(unit) for unit in units if unit.index in self._packed}
        starts = [0, *accumulate(unit.numel for unit in units)]
        self.start = {u.index: at for u, at in zip(units, starts, strict=False)}
        shape = (starts[-1],)
        self.master, self.exp_avg, self.exp_avg_sq, self.prepared = (
            torch.zeros(shape, dtype=self._dtype, device=self.device) for _ in range(4)
        )
        for unit, tensors in kept.items():
            for new, old in zip(self.tensors_of(unit), tensors, strict=True):
                new.copy_(old)
        self._packed = frozenset(self.start)


class Homes:
    """The units a member is home of in one plan: first those it is primary home of, then the
    others, each ascending."""

    def __init__(self, state: State, plan: Plan, member: int) -> None:
        self.state, self.vault = state, state.vault
        units = state.inventory.units
        primary = [u for u in units if plan.homes[u.index][0] == member]
        mirrors = [u for u in units if member in plan.homes[u.index][1:]]
        self.units = (*primary, *mirrors)
        self.num_primary = len(primary)
        self.alone = frozenset(u.index for u in primary if len(plan.homes[u.index]) == 1)
        """Units that have no other home."""
        state.make_room(self.units)
        self.primary_spans = merge_spans(
            Span(state.start[u.index], state.start[u.index], u.numel) for u in primary
        )

    @property
    def primary(self) -> tuple[Unit, ...]:
        """Units whose gradients this member reduces."""
        return self.units[: self.num_primary]

    @property
    def mirrors(self) -> tuple[Unit, ...]:
        """Units whose reduced gradients it is sent."""
        return self.units[self.num_primary :]

    def reduced(self) -> list[Tensor]:
        """Prepared gradients of the primary units, as few contiguous views."""
        prepared = self.state.prepared
        return [prepared[span.source : span.source + span.numel] for span in self.primary_spans]

    def hashes(self) -> Tensor:
        """`State.hash_of` every home, in the order of `units`."""
        return torch.tensor([self.state.hash_of(unit) for unit in self.units], dtype=torch.int64)

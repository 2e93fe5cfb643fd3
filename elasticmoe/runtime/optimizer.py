"""AdamW over homes, and the learning rate over the run."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from elasticmoe.errors import ElasticMoEError
from elasticmoe.plan.types import Unit
from elasticmoe.runtime.memory import State
from elasticmoe.spec.job import OptimizerSpec, ScheduleSpec


class CorruptedError(ElasticMoEError):
    """Units of this member are not what they should be: memory or arithmetic failed silently."""

    code = "corrupted"


@dataclass(frozen=True, slots=True)
class Update:
    """All an AdamW update needs besides gradients; equal on every home."""

    step: int
    """Number of the committed step that the update leads to."""
    number: int
    """Updates applied so far, this one included; skipped steps do not count."""
    learning_rate: float


def apply_update(
    state: State,
    units: Iterable[Unit],
    spec: OptimizerSpec,
    update: Update,
    *,
    alone: Collection[int] = (),
) -> tuple[int, ...]:
    """Apply the prepared gradients to these units, one after the other.

    Each unit's stamps differ exactly while it is being written, so a crash tears at most one; of
    units in `alone`, which no other home could replace, the state before is kept meanwhile. A
    unit that does not match the hash recorded after its last update is left alone and torn: its
    memory was corrupted. The fused kernel needs no `torch._dynamo` (whose import costs a second),
    and its result does not depend on how the state is cut (measured).

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.

    Returns:
        The corrupted units.
    """
    vault = state.vault
    number = torch.tensor(float(update.number), device=state.device)
    corrupted = []
    for unit in units:
        if not state.is_intact(unit):
            corrupted.append(unit.index)
            continue
        if unit.index in alone:
            _keep_for_undo(state, unit)
        vault.stamps_U2[unit.index, 0] = update.step + 1
        _adamw(state, unit, number, spec, update.learning_rate)
        vault.hashes_U[unit.index] = state.hash_of(unit)
        vault.stamps_U2[unit.index, 1] = update.step + 1
        vault.set_undo(-1)
    return tuple(corrupted)


def refuse_corrupted(units: Sequence[int]) -> None:
    """Stop here if units were found corrupted; they are torn, so that others supply them.

    Raises:
        CorruptedError: there are some.
    """
    if units:
        raise CorruptedError(
            f"unit {units[0]} ({len(units)} in all) did not match the hash recorded after its last "
            "update: memory of this machine was corrupted"
        )


def restamp(state: State, units: Iterable[Unit], step: int) -> None:
    """Say that these units are as they were, one step further; a corrupted one stays torn."""
    for unit in units:
        if state.vault.stamps_U2[unit.index, 0] != 0:
            state.vault.stamps_U2[unit.index] = step + 1


def undo_torn(state: State) -> tuple[int, ...]:
    """Put back the unit whose update was cut off, where its earlier state was kept.

    Returns:
        The unit, if what was kept is corrupted: then it stays torn.
    """
    vault = state.vault
    index = vault.undo_unit
    if index < 0 or not state.undo:
        return ()
    before, after = vault.stamps_U2[index]
    is_whole = before == after
    if not is_whole:
        unit = state.inventory.units[index]
        kept = (tensor[: unit.numel] for tensor in state.undo)
        is_whole = state.fill(unit, int(after) - 1, *kept, hashed=vault.undo_hash)
    vault.set_undo(-1)
    return () if is_whole else (index,)


def _keep_for_undo(state: State, unit: Unit) -> None:
    if not state.undo:
        return
    state.vault.set_undo(-1)
    for tensor, kept in zip(state.tensors_of(unit), state.undo, strict=True):
        kept[: unit.numel].copy_(tensor)
    state.vault.set_undo(unit.index, state.recorded_hash(unit))


def _adamw(state: State, unit: Unit, number: Tensor, spec: OptimizerSpec, rate: float) -> None:
    where = state.slice_of(unit)
    middle = where.start + unit.decay_numel
    for part, decay in (
        (slice(where.start, middle), spec.weight_decay),
        (slice(middle, where.stop), 0.0),
    ):
        if part.start < part.stop:
            torch._fused_adamw_(
                [state.master[part]],
                [state.prepared[part]],
                [state.exp_avg[part]],
                [state.exp_avg_sq[part]],
                [],
                [number],
                lr=rate,
                beta1=spec.betas[0],
                beta2=spec.betas[1],
                weight_decay=decay,
                eps=spec.eps,
                amsgrad=False,
                maximize=False,
            )


def learning_rate(step: int, optimizer: OptimizerSpec, schedule: ScheduleSpec) -> float:
    """The learning rate of a step, counted from 0.

    >>> from elasticmoe.spec.job import OptimizerSpec, ScheduleSpec
    >>> learning_rate(0, OptimizerSpec(learning_rate=1.0), ScheduleSpec(steps=9, warmup_steps=4))
    0.25
    """
    peak, last = optimizer.learning_rate, schedule.final_fraction
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "wsd":
        behind = step - (schedule.steps - schedule.decay_steps)
        if behind < 0:
            return peak
        return peak * (1 - (1 - last) * (behind + 1) / max(schedule.decay_steps, 1))
    done = (step - schedule.warmup_steps) / max(schedule.steps - schedule.warmup_steps, 1)
    return peak * (last + (1 - last) * (1 + cos(pi * done)) / 2)

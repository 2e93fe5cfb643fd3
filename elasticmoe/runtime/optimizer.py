"""AdamW over homes, and the learning rate over the run."""

from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from elasticmoe.plan.types import Unit
from elasticmoe.runtime.memory import Homes
from elasticmoe.spec.job import OptimizerSpec, ScheduleSpec


@dataclass(frozen=True, slots=True)
class Update:
    """All an AdamW update needs besides gradients; equal on every home."""

    step: int
    """Number of the committed step that the update leads to."""
    number: int
    """Updates applied so far, this one included; skipped steps do not count."""
    learning_rate: float


def apply_update(
    homes: Homes, units: tuple[Unit, ...], spec: OptimizerSpec, update: Update
) -> None:
    """Apply the prepared gradients to these units, one after the other.

    Each unit's stamps differ exactly while it is being written, so a crash tears at most one.
    The fused kernel needs no `torch._dynamo` (whose import costs a second), and its result does
    not depend on how the state is cut (measured).

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    row = {unit.index: row for row, unit in enumerate(homes.units)}
    number = torch.tensor(float(update.number), device=homes.master.device)
    for unit in units:
        homes.stamps[row[unit.index], 0] = update.step
        where = homes.slice_of(unit)
        middle = where.start + unit.decay_numel
        for part, decay in (
            (slice(where.start, middle), spec.weight_decay),
            (slice(middle, where.stop), 0.0),
        ):
            if part.start < part.stop:
                _adamw(homes, part, number, spec, update.learning_rate, decay)
        homes.stamps[row[unit.index], 1] = update.step


def _adamw(
    homes: Homes, part: slice, number: Tensor, spec: OptimizerSpec, rate: float, decay: float
) -> None:
    torch._fused_adamw_(
        [homes.master[part]],
        [homes.prepared[part]],
        [homes.exp_avg[part]],
        [homes.exp_avg_sq[part]],
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

"""Read this first: the training loop. One step is one transaction.

compute -> reduce -> agree -> prepare -> vote -> apply. Nothing is applied before everybody has
voted, and nothing can keep a member from applying once it has; so no two members are ever more
than one step apart, and a step is committed by all or by none.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from elasticmoe.errors import ElasticMoEError
from elasticmoe.model.wave import StageOutput, Wave
from elasticmoe.plan.bias import update_bias
from elasticmoe.runtime.gang import Gang, Stopwatch
from elasticmoe.runtime.optimizer import Update, apply_update, learning_rate
from elasticmoe.runtime.record import StepResult, layer_metrics

RUNNING_DECAY = 0.99
"""Of the running load: about the last 100 steps."""


class HomesDifferError(ElasticMoEError):
    """Two homes of one unit hold different bits: memory was corrupted."""

    code = "homes_differ"


@dataclass(frozen=True, slots=True)
class CommittedStep:
    """What a committed step was like."""

    result: StepResult
    learning_rate: float
    seconds: dict[str, float]
    """Per phase: compute, reduce, agree, prepare, vote, apply."""


def train_step(gang: Gang, newest_command: int) -> CommittedStep:
    """Take one step together with the rest of the gang.

    Args:
        gang: this member's generation.
        newest_command: number of the newest command this member holds.

    Raises:
        GangBrokenError: the generation ended first; the step is not committed here.
    """
    clock = Stopwatch()
    waves = gang.waves()
    gang.weights.gradients.zero_()
    outputs = gang.pipeline.run(waves, gang.ids_of(waves))
    clock.mark("compute")
    gang.state.reduce()
    clock.mark("reduce")
    result = agree(gang, outputs, waves, newest_command)
    clock.mark("agree")
    prepare(gang, result)
    clock.mark("prepare")
    gang.groups.world.barrier()
    clock.mark("vote")
    rate = apply(gang, result)
    clock.mark("apply")
    return CommittedStep(result, rate, clock.seconds)


def agree(
    gang: Gang, outputs: list[StageOutput], waves: list[Wave], newest_command: int
) -> StepResult:
    """Gather everybody's record; its sums are equal on all members."""
    homes = gang.homes
    squared_norm = _squared_norm(homes.prepared[: homes.primary_numel])
    record = gang.record.pack(squared_norm, outputs, waves, newest_command)
    return gang.record.read(gang.groups.world.gather(record))


def prepare(gang: Gang, result: StepResult) -> None:
    """Give every home the clipped gradients its update needs."""
    if result.clip != 1.0:
        gang.homes.prepared[: gang.homes.primary_numel].mul_(result.clip)
    gang.state.forward()


def apply(gang: Gang, result: StepResult) -> float:
    """Move everything to the next step; returns the learning rate.

    Primary homes first; when their weights have arrived, the other homes follow. So no two homes of
    a unit are being written at once, and a crash tears one of them at most. A step whose loss or
    gradients are not finite commits as a no-op: number and data move, weights and bias do not.
    """
    progress, job = gang.progress, gang.job
    rate = learning_rate(progress.step, job.optimizer, job.schedule)
    progress.step += 1
    if not result.is_finite:
        gang.homes.stamps.fill_(progress.step)
        return rate
    progress.updates += 1
    update = Update(progress.step, progress.updates, rate)
    homes = gang.homes
    apply_update(homes, homes.units[: homes.num_primary], job.optimizer, update)
    bias_LE = update_bias(
        progress.bias_LE.cpu().numpy(), result.counts_LE, job.balance, progress.step - 1
    )
    progress.bias_LE = torch.from_numpy(bias_LE).to(progress.bias_LE)
    progress.running_LE = (
        RUNNING_DECAY * progress.running_LE + (1 - RUNNING_DECAY) * result.counts_LE
    )
    try:
        gang.publish()
    finally:  # past the vote the local update runs to its end, whatever becomes of the gang
        apply_update(homes, homes.units[homes.num_primary :], job.optimizer, update)
    return rate


def compare_homes(gang: Gang) -> None:
    """Check that all homes of every unit hold the same bits.

    Raises:
        HomesDifferError: they do not; names unit and members.
    """
    hashes = torch.zeros(len(gang.inventory.units), dtype=torch.int64)
    hashes[[unit.index for unit in gang.homes.units]] = gang.homes.hashes()
    hashes_MU = gang.groups.world.gather(hashes.to(gang.device)).cpu().numpy()
    for unit, homes in enumerate(gang.seat.plan.homes):
        if len({int(hashes_MU[member, unit]) for member in homes}) > 1:
            raise HomesDifferError(
                f"Unit {unit} differs between its homes, members {homes}, after step "
                f"{gang.progress.step}. One of them has bad memory; check its machine."
            )


def step_metrics(gang: Gang, step: CommittedStep) -> dict[str, Any]:
    """What is reported of a committed step, as plain data."""
    result, seconds = step.result, sum(step.seconds.values())
    tokens = gang.job.batch.global_samples * gang.job.data.seq_len
    return {
        "loss": result.loss,
        "mtp_losses": list(result.mtp_losses),
        "aux_loss": result.aux_loss,
        "gradient_norm": result.gradient_norm,
        "skipped": not result.is_finite,
        "learning_rate": step.learning_rate,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "flops_per_s": gang.step_flops / seconds,
        "mfu": gang.step_flops / seconds / gang.peak_flops if gang.peak_flops else None,
        "phases": step.seconds,
        "layers": layer_metrics(
            gang.inventory, gang.job.model.moe.top_k, result, gang.progress.running_LE
        ),
    }


def _squared_norm(flat: torch.Tensor) -> float:
    """In pieces, summed in float64: one fp32 sum over millions of elements is too coarse."""
    if not flat.numel():
        return 0.0
    norms = torch._foreach_norm(list(flat.split(2**16)))
    squares: NDArray[np.float64] = torch.stack(norms).double().square().cpu().numpy()
    return float(squares.sum())

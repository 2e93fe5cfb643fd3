"""Read this first: the training loop. One step is one transaction.

compute -> reduce -> agree -> prepare -> vote -> apply. Nothing is applied before everybody has
voted, and nothing can keep a member from applying once it has; so no two members are ever more
than one step apart, and a step is committed by all or by none.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from elasticmoe.errors import GangBrokenError
from elasticmoe.model.wave import StageOutput, Wave
from elasticmoe.runtime.gang import Gang, Stopwatch
from elasticmoe.runtime.optimizer import (
    CorruptedError,
    Update,
    apply_update,
    learning_rate,
    refuse_corrupted,
    restamp,
)
from elasticmoe.runtime.record import StepResult, layer_metrics


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
        GangBrokenError: the generation ended first; the step may be committed here or not.
        CorruptedError: the step is committed, but not of all units here.
    """
    clock = PhaseClock(gang)
    clock.enter("compute")
    waves = gang.waves()
    gang.weights.gradients.zero_()
    outputs = gang.pipeline.run(waves, gang.ids_of(waves))
    clock.enter("reduce")
    gang.state.reduce()
    clock.enter("agree")
    result = agree(gang, outputs, waves, newest_command)
    clock.enter("prepare")
    prepare(gang, result)
    clock.enter("vote")
    gang.groups.world.barrier()
    clock.enter("apply")
    rate = apply(gang, result)
    return CommittedStep(result, rate, clock.end())


class PhaseClock:
    """Splits a step into phases, and shows on the worker's pulse which one it is in."""

    def __init__(self, gang: Gang) -> None:
        self._pulse, self._step = gang.workplace.pulse, gang.progress.step + 1
        self._phase, self._clock = "", Stopwatch()

    def enter(self, phase: str) -> None:
        """End the phase before and begin this one."""
        if self._phase:
            self._clock.mark(self._phase)
        self._phase = phase
        if self._pulse is not None:
            self._pulse.enter(phase, self._step)

    def end(self) -> dict[str, float]:
        """Seconds of all phases."""
        self.enter("")
        return self._clock.seconds


def agree(
    gang: Gang, outputs: list[StageOutput], waves: list[Wave], newest_command: int
) -> StepResult:
    """Gather everybody's record; its sums are equal on all members."""
    squared_norm = _squared_norm(gang.homes.reduced())
    record = gang.record.pack(squared_norm, outputs, waves, newest_command)
    result = gang.record.read(gang.groups.world.gather(record))
    most = gang.job.protection.max_loss_ratio
    return replace(result, is_spike=gang.progress.is_spike(result.loss, most))


def prepare(gang: Gang, result: StepResult) -> None:
    """Give every home all its update needs, in memory that outlives the process."""
    if not gang.is_tidy:  # everybody's record is here, so everybody has all units of this plan
        gang.homes.state.keep_only(gang.homes.units)
        gang.is_tidy = True
    if result.clip != 1.0:
        for reduced in gang.homes.reduced():
            reduced.mul_(result.clip)
    gang.state.forward()
    gang.homes.vault.prepare(
        gang.progress.step + 1,
        is_finite=result.changes_weights,
        loss=result.loss,
        counts_LE=result.counts_LE,
    )


def apply(gang: Gang, result: StepResult) -> float:
    """Move everything to the next step; returns the learning rate.

    Primary homes first; when their weights have arrived, the other homes follow. So no two homes of
    a unit are being written at once, and a crash tears one of them at most. A step whose loss or
    gradients are not finite, or whose loss is a spike, commits as a no-op: number and data move,
    weights and bias do not.
    """
    homes, job, before = gang.homes, gang.job, gang.progress
    homes.vault.vote(before.step + 1)
    rate = learning_rate(before.step, job.optimizer, job.schedule)
    gang.progress = before.advanced(
        job, result.counts_LE, result.loss, is_finite=result.changes_weights
    )
    if not result.changes_weights:
        restamp(homes.state, homes.units, gang.progress.step)
        gang.progress.save(homes.vault)
        gang.state.publish()  # if it was a flipped bit in compute weights, this heals it
        gang.state.take_own()
        return rate
    update = Update(gang.progress.step, gang.progress.updates, rate)
    bad = apply_update(homes.state, homes.primary, job.optimizer, update, alone=homes.alone)
    gang.progress.save(homes.vault)
    gang.state.publish()  # if this fails, the other homes stay prepared, and roll forward later
    bad += apply_update(homes.state, homes.mirrors, job.optimizer, update)
    gang.state.take_own()
    refuse_corrupted(bad)
    return rate


def compare_homes(gang: Gang) -> None:
    """Check that all homes of every unit recorded the same hash at the end of their last update.

    A home that the majority contradicts is wrong; where there is no majority all are, because
    nobody can tell. Wrong copies count as torn from here on.

    Raises:
        CorruptedError: a copy of this member is wrong.
        GangBrokenError: a copy of another member is, or the generation ended first.
    """
    mine, homes = torch.from_numpy(gang.homes.vault.hashes_U.copy()), gang.seat.plan.homes
    hashes_MU = gang.groups.world.gather(mine.to(gang.device)).cpu().numpy()
    most = max(map(len, homes))
    homes_UR = np.array([(*some, *some[:1] * (most - len(some))) for some in homes])
    found_UR = hashes_MU[homes_UR, np.arange(len(homes))[:, None]]
    differing = np.flatnonzero((found_UR != found_UR[:, :1]).any(axis=1)).tolist()
    if not differing:
        return
    wrong = []
    for unit in differing:
        votes = Counter(int(hashes_MU[home, unit]) for home in homes[unit])
        (winner, count), *_ = votes.most_common()
        is_wrong = 2 * count <= votes.total() or int(mine[unit]) != winner
        if gang.seat.member in homes[unit] and is_wrong:
            wrong.append(unit)
    gang.homes.vault.stamps_U2[wrong, 0] = 0
    try:
        gang.groups.world.barrier()  # nobody leaves before everybody knows what is torn
    except GangBrokenError:
        if not wrong:
            raise
    named = wrong or differing
    found = (
        f"unit {named[0]} ({len(named)} in all) differs between its homes, members "
        f"{homes[named[0]]}, after step {gang.progress.step}: a processor or memory of one of "
        "their machines is bad"
    )
    if wrong:
        raise CorruptedError(found)
    raise GangBrokenError(found)  # nothing that differs is written, kept or moved by anybody


def step_metrics(gang: Gang, step: CommittedStep) -> dict[str, Any]:
    """What is reported of a committed step, as plain data."""
    result, seconds = step.result, sum(step.seconds.values())
    tokens = gang.job.batch.global_samples * gang.job.data.seq_len
    return {
        "loss": result.loss,
        "mtp_losses": list(result.mtp_losses),
        "aux_loss": result.aux_loss,
        "gradient_norm": result.gradient_norm,
        "skipped": not result.changes_weights,
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


def _squared_norm(reduced: list[torch.Tensor]) -> float:
    """In pieces, summed in float64: one fp32 sum over millions of elements is too coarse."""
    pieces = [piece for flat in reduced for piece in flat.split(2**16)]
    if not pieces:
        return 0.0
    norms = torch._foreach_norm(pieces)
    squares: NDArray[np.float64] = torch.stack(norms).double().square().cpu().numpy()
    return float(squares.sum())

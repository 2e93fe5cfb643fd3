"""A step of `runtime.step.train_step` in two halves, so that something can happen in between."""

import time
from dataclasses import dataclass

from elasticmoe.model.wave import StageOutput, Wave
from elasticmoe.runtime.gang import Gang, Stopwatch
from elasticmoe.runtime.step import agree, apply, compare_homes, prepare


@dataclass(frozen=True, slots=True)
class Computed:
    """Forward and backward of all waves of a step; the gradients lie in the gang's memory."""

    outputs: list[StageOutput]
    waves: list[Wave]
    seconds: float


def compute(gang: Gang) -> Computed:
    """The first phase of `train_step`."""
    start = time.perf_counter()
    waves = gang.waves()
    gang.weights.gradients.zero_()
    outputs = gang.pipeline.run(waves, gang.ids_of(waves))
    return Computed(outputs, waves, time.perf_counter() - start)


def commit(gang: Gang, computed: Computed, *, protected: bool) -> dict[str, float]:
    """All other phases; unprotected: nothing is forwarded or compared and nobody votes.

    Returns:
        Seconds of each phase, those of `computed` included.
    """
    clock = Stopwatch()
    gang.state.reduce()
    clock.mark("reduce")
    result = agree(gang, computed.outputs, computed.waves, 0)
    clock.mark("agree")
    if protected:
        prepare(gang, result)
        clock.mark("prepare")
        gang.groups.world.barrier()
        clock.mark("vote")
    else:
        if result.clip != 1.0:
            for reduced in gang.homes.reduced():
                reduced.mul_(result.clip)
        clock.mark("prepare")
    apply(gang, result)
    clock.mark("apply")
    interval = gang.job.protection.hash_interval_steps
    if protected and gang.progress.step % interval == 0:
        compare_homes(gang)
    clock.mark("compare")
    return {"compute": computed.seconds, **clock.seconds}


def unprotect(gang: Gang) -> None:
    """Neither hash units nor keep what an update cut off would have to be undone with."""
    homes = gang.homes
    homes.alone = frozenset()
    homes.state.hash_of = lambda unit: 0  # type: ignore[method-assign]
    homes.vault.hashes_U[:] = 0

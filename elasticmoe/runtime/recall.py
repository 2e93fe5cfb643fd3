"""Going on from memory: roll copies forward, fetch what is missing, and be whole again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elasticmoe.messages.worker import FromMemory
from elasticmoe.runtime.groups import Group
from elasticmoe.runtime.memory import Homes, State
from elasticmoe.runtime.moves import NotWholeError, is_whole, move_units
from elasticmoe.runtime.optimizer import (
    Update,
    apply_update,
    learning_rate,
    refuse_corrupted,
    restamp,
    undo_torn,
)
from elasticmoe.runtime.progress import Progress
from elasticmoe.runtime.snapshots import rebuild_units, restore_snapshot
from elasticmoe.spec.job import JobSpec


@dataclass(frozen=True, slots=True)
class Recall:
    """What a member needs to go on from memory."""

    memory: FromMemory
    adopted: tuple[State, ...] = ()
    """Vaults of dead workers that this member reads too."""


def recall(
    job: JobSpec, recalled: Recall, member: int, homes: Homes, world: Group, like: Tensor
) -> Progress:
    """Bring all homes of the gang to the same step, together with all other members.

    Args:
        recalled: where from, and to which step.
        member: this one.
        homes: the units that it keeps from now on.
        world: all members.
        like: a bias tensor; gives shape, dtype and device.

    Raises:
        GangBrokenError: the generation ended first; what is whole stays whole.
        CorruptedError: a unit here, or in an adopted vault, is not as it was left. It is torn from
            now on: whoever asks what is here hears of it, and another home supplies it next time.
        NotWholeError: a unit is not there.
    """
    step = recalled.memory.step
    sources = (homes.state, *recalled.adopted)
    corrupted: list[int] = []
    for state in sources:
        if recalled.memory.is_snapshot:
            corrupted += restore_snapshot(state, step, like)
        else:
            corrupted += undo_torn(state)
            corrupted += roll_forward(job, state, step, like)
    refuse_corrupted(corrupted)
    homes.vault.settle()  # units that come in now are prepared for nothing
    _take_from_adopted(homes, recalled.adopted, step)
    progress = _share_progress(sources, step, world, recalled.memory.progress_from, like)
    move_units(recalled.memory.gathered, member, sources, world, step)
    rebuild_units(recalled.memory.rebuilt, member, sources, step)
    move_units(recalled.memory.moves, member, sources, world, step)
    steps_U = homes.vault.steps_U()
    missing = [unit.index for unit in homes.units if steps_U[unit.index] != step]
    if missing:
        at = int(steps_U[missing[0]])
        raise NotWholeError(
            f"unit {missing[0]} ({len(missing)} in all) is at step {at} here, not at {step}"
        )
    if homes.vault.step != step:  # what is there already is never written again in place
        homes.vault.clear_progress()
        progress.save(homes.vault)
    return progress


def roll_forward(job: JobSpec, state: State, step: int, like: Tensor) -> tuple[int, ...]:
    """Apply what the vault is prepared for, if it leads to `step`. Doing it twice is harmless.

    Returns:
        Units that turned out to be corrupted, and are torn now.
    """
    vault = state.vault
    if step == 0 or vault.prepared != step:  # 0: nothing is prepared
        return ()
    before = Progress.kept(vault, step - 1, like)
    after = Progress.kept(vault, step, like)
    if after is None and before is not None:
        after = before.advanced(
            job, vault.counts_LE, vault.prepared_loss, is_finite=vault.prepared_is_finite
        )
    if after is None:
        return ()  # never happens: progress moves forward one slot at a time
    behind = np.flatnonzero(vault.steps_U() == step - 1)
    units = [state.inventory.units[index] for index in behind]
    corrupted: tuple[int, ...] = ()
    if vault.prepared_is_finite:
        rate = learning_rate(step - 1, job.optimizer, job.schedule)
        corrupted = apply_update(
            state, units, job.optimizer, Update(step, after.updates, rate), alone=set(behind)
        )
    else:
        restamp(state, units, step)
    after.save(vault)
    return corrupted


def _take_from_adopted(homes: Homes, adopted: Sequence[State], step: int) -> None:
    corrupted = []
    for unit in homes.units:
        there = [state for state in adopted if is_whole(state, unit, step)]
        if there and not is_whole(homes.state, unit, step):
            tensors, hashed = there[0].tensors_of(unit), there[0].recorded_hash(unit)
            if not homes.state.fill(unit, step, *tensors, hashed=hashed):
                there[0].is_intact(unit)  # torn there, if that is where it was corrupted
                corrupted.append(unit.index)
    refuse_corrupted(corrupted)


def _share_progress(
    sources: Sequence[State], step: int, world: Group, source: int, like: Tensor
) -> Progress:
    """One member sends bias, load and counters to all: they are small, and equal then."""
    size = 2 * like.numel() + 2
    sent = torch.empty(0, dtype=torch.float64)
    if world.rank == source:
        found = next(filter(None, (Progress.kept(s.vault, step, like) for s in sources)), None)
        if found is None:
            raise NotWholeError(f"the progress of step {step} is not here")
        sent = torch.cat(
            [
                torch.tensor([found.updates, found.running_loss], dtype=torch.float64),
                found.bias_LE.cpu().double().reshape(-1),
                torch.from_numpy(found.running_LE).reshape(-1),
            ]
        )
    outgoing = sent.repeat(world.size).to(like.device)
    received = torch.empty(size, dtype=torch.float64, device=like.device)
    world.all_to_all(
        received,
        outgoing,
        [size if rank == source else 0 for rank in range(world.size)],
        [size if world.rank == source else 0] * world.size,
    )
    plain = received.cpu()
    bias_LE = plain[2 : 2 + like.numel()].view(like.shape).to(like)
    running_LE = plain[2 + like.numel() :].view(like.shape).numpy().copy()
    return Progress(step, int(plain[0]), bias_LE, running_LE, float(plain[1]))

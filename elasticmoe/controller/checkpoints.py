"""Checkpoints: parts from every member, one seal, and the old ones deleted."""

from elasticmoe.controller.changing import replace
from elasticmoe.controller.number_map import NumberMap
from elasticmoe.controller.state import (
    Checkpoint,
    JobState,
    Outcome,
    counted,
    ignored,
    stale,
)
from elasticmoe.messages.commands import Command, DeleteCheckpoint, SealCheckpoint
from elasticmoe.messages.events import CheckpointLost, CheckpointSealed
from elasticmoe.messages.worker import CheckpointFailed, CheckpointPart


def part(state: JobState, report: CheckpointPart) -> Outcome:
    """A member's file is durable; the last one of a step leads to the seal."""
    if report.generation != state.generation or report.step in state.unsaved_steps:
        return stale(state)
    if report.worker not in state.positions:
        return ignored(state)
    there = state.parts.get(report.step, NumberMap())
    done = any(
        seal.step == report.step and seal.generation == state.generation for seal in state.sealing
    ) or any(checkpoint.step == report.step for checkpoint in state.checkpoints)
    if report.worker in there or done:
        return stale(state)
    there = there.with_item(report.worker, report)
    if len(there) < len(state.members):
        return replace(state, parts={**state.parts, report.step: there}), ()
    ordered = [there[worker] for worker in state.members]
    seal = SealCheckpoint(
        step=report.step,
        generation=state.generation,
        files=tuple(row for one in ordered for row in one.files),
        state=ordered[0].state,
    )
    parts = {step: some for step, some in state.parts.items() if step != report.step}
    return replace(state, parts=parts, sealing=(*state.sealing, seal)), (seal,)


def part_failed(state: JobState, report: CheckpointFailed) -> Outcome:
    """A member could not write its file: there will be no checkpoint of this step."""
    if report.generation != state.generation or report.step in state.unsaved_steps:
        return stale(state)
    reason = f"worker {report.worker}: {report.message}"
    return _unsaved(state, report.step, reason), ()


def sealed(state: JobState, event: CheckpointSealed) -> Outcome:
    """A checkpoint exists. One of a generation that is over comes too late to go on from; it stays
    where it is until its step is saved again, since both share a directory."""
    seal = _seal(state, event.step, event.generation)
    if seal is None:
        known = any(checkpoint.step == event.step for checkpoint in state.checkpoints)
        is_old = 0 < event.generation < state.generation
        return stale(state) if known or is_old else ignored(state)
    state = replace(state, sealing=tuple(one for one in state.sealing if one is not seal))
    if seal.generation != state.generation:
        return stale(state)
    new = Checkpoint(event.step, event.uri)
    state = counted(state, checkpoints_sealed=1)
    others = tuple(checkpoint for checkpoint in state.checkpoints if checkpoint.step != event.step)
    every = tuple(sorted((*others, new), key=lambda checkpoint: checkpoint.step))
    keep = state.spec.checkpoint.keep
    state = replace(state, checkpoints=every[-keep:], deleted=every[:-keep], ever_saved=True)
    return state, tuple(_delete(checkpoint) for checkpoint in state.deleted)


def lost(state: JobState, event: CheckpointLost) -> Outcome:
    """A manifest could not be written; training goes on."""
    seal = _seal(state, event.step, event.generation)
    if seal is None:
        return stale(state)
    return _unsaved(state, event.step, event.reason, seal), ()


def seal_failed(state: JobState, reason: str) -> Outcome:
    """The command itself failed; it concerns the oldest seal under way."""
    if not state.sealing:
        return stale(state)
    seal = state.sealing[0]
    return _unsaved(state, seal.step, reason, seal), ()


def missed_step(state: JobState) -> int:
    """The step at which a checkpoint was due before this generation began, if neither that nor a
    newer one is there; 0: none was missed. The members write that of the last step by themselves.
    """
    assert state.form is not None, "a generation was formed"
    first, interval = state.form.step, state.spec.checkpoint.interval_steps
    due = first // interval * interval if first < state.spec.schedule.steps else 0
    newest = state.newest.step if state.newest else 0
    return due if due > newest else 0


def repeated_commands(state: JobState) -> tuple[Command, ...]:
    """Seals and deletions that a restarted controller begins again."""
    return (*state.sealing, *(_delete(checkpoint) for checkpoint in state.deleted))


def _unsaved(
    state: JobState, step: int, reason: str, seal: SealCheckpoint | None = None
) -> JobState:
    state = counted(state, checkpoints_lost=1)
    state = replace(
        state,
        sealing=tuple(one for one in state.sealing if one is not seal),
        parts={other: some for other, some in state.parts.items() if other != step},
    )
    if seal is not None and seal.generation != state.generation:
        return state
    return replace(state, unsaved_steps={**state.unsaved_steps, step: reason})


def _seal(state: JobState, step: int, generation: int) -> SealCheckpoint | None:
    fitting = [
        seal for seal in state.sealing if seal.step == step and generation in (0, seal.generation)
    ]
    return fitting[-1] if fitting else None


def _delete(checkpoint: Checkpoint) -> DeleteCheckpoint:
    return DeleteCheckpoint(checkpoint.step, checkpoint.uri)

"""The ladder: how to go on after a fault. Every recovery of every job starts here.

Today's rungs are *checkpoint* and *wait*; cheaper ones slot in above *checkpoint*.
"""

from dataclasses import dataclass

from elasticmoe.controller.decisions import Casualty, GiveUp, Recover, Wait
from elasticmoe.controller.state import MAX_BACKOFF_S, Checkpoint, FirstError
from elasticmoe.controller.wording import described, plural


@dataclass(frozen=True, slots=True)
class Damage:
    """What is lost and what is left: all that a recovery is decided upon."""

    at_s: float
    casualties: tuple[Casualty, ...]
    survivors: int
    """Living workers that can join the next generation."""
    free_places: int
    """Workers that can be started on healthy nodes."""
    wanted: int
    minimum: int
    committed_step: int
    newest: Checkpoint | None
    """The newest checkpoint that is not refused."""
    refused: tuple[str, ...]
    """Checkpoints that a worker just found not to verify."""
    ever_saved: bool
    """Whether there ever was a checkpoint to go back to."""
    repeated: Casualty | None
    """A failure with the same code at the same step as one of an earlier generation."""
    attempts: int
    """Recoveries since the last progress."""
    max_restarts: int
    backoff_s: float
    first_error: FirstError


def decide_recovery(damage: Damage) -> Recover | Wait | GiveUp:
    """Choose the first rung that applies.

    A cause that follows the work is not cured by trying again, so it ends the job; so does a
    series of recoveries without progress. All else goes on from the newest checkpoint, with
    replacements where there is room, on fewer workers where not: nobody waits for a spare.
    """
    what = described(damage.casualties)
    if damage.repeated is not None:
        return _give_up_repeated(damage, damage.repeated)
    if damage.attempts >= damage.max_restarts:
        return _give_up_looping(damage, what)
    if damage.newest is None and damage.ever_saved:
        reason = f"{what}; no checkpoint is left that verifies"
        return GiveUp(damage.at_s, "bad_checkpoint", damage.first_error.log, reason)
    step = damage.newest.step if damage.newest else 0
    redo = max(damage.committed_step - step, 0)
    workers = min(damage.survivors + damage.free_places, damage.wanted)
    if workers < damage.minimum:
        reason = (
            f"{what}; {plural(workers, 'worker')} can run and workers.min is {damage.minimum}: "
            f"waiting for nodes, to go on from {origin(damage.newest)} ({plural(redo, 'step')} "
            "to redo)"
        )
        return Wait(damage.at_s, step, redo, damage.refused, damage.casualties, reason)
    delay_s = backoff_s(damage.attempts, damage.backoff_s)
    attempt = damage.attempts + 1
    again = f"; try {attempt} of {damage.max_restarts} in {delay_s:.1f} s" if delay_s else ""
    reason = (
        f"{what}; all go back to {origin(damage.newest)} ({plural(redo, 'step')} to redo) "
        f"with {plural(workers, 'worker')}{again}"
    )
    return Recover(
        at_s=damage.at_s,
        rung="checkpoint",
        step=step,
        redo_steps=redo,
        refused=damage.refused,
        attempt=attempt,
        retry_at_s=damage.at_s + delay_s,
        evidence=damage.casualties,
        reason=reason,
    )


def backoff_s(attempts: int, base_s: float) -> float:
    """How long to wait before the next try.

    >>> [backoff_s(attempts, 0.2) for attempts in range(4)]
    [0.0, 0.2, 0.4, 0.8]
    """
    if attempts == 0:
        return 0.0
    return min(base_s * 2.0 ** min(attempts - 1, 32), MAX_BACKOFF_S)


def origin(checkpoint: Checkpoint | None) -> str:
    """Where a generation starts, in words.

    >>> origin(Checkpoint(200, "c/200")), origin(None)
    ('the checkpoint of step 200', 'the beginning')
    """
    return f"the checkpoint of step {checkpoint.step}" if checkpoint else "the beginning"


def _give_up_repeated(damage: Damage, failure: Casualty) -> GiveUp:
    reason = (
        f"the same failure twice at step {failure.step} ({failure.code}): {failure.text}. "
        f"Trying again does not cure it.{_see(failure.log)}"
    )
    return GiveUp(damage.at_s, failure.code or "same_failure_twice", failure.log, reason)


def _give_up_looping(damage: Damage, what: str) -> GiveUp:
    first = damage.first_error
    last = "" if first.text == what else f"; the last one was: {what}"
    reason = (
        f"{plural(damage.attempts, 'restart')} in a row without a new step "
        f"(protection.max_restarts is {damage.max_restarts}). "
        f"The first error was: {first.text}{last}.{_see(first.log)}"
    )
    return GiveUp(damage.at_s, "crash_loop", first.log, reason)


def _see(log: str) -> str:
    return f" See {log}" if log else ""

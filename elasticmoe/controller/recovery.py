"""The ladder: how to go on after a fault. Every recovery of every job starts here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from elasticmoe.controller.copies import Settled
from elasticmoe.controller.decisions import Casualty, GiveUp, Recover, Wait
from elasticmoe.controller.fitting import in_words
from elasticmoe.controller.state import MAX_BACKOFF_S, Checkpoint, FirstError
from elasticmoe.controller.wording import described, plural, workers_named
from elasticmoe.messages.worker import STEPS_SKIPPED
from elasticmoe.plan.memory import Overfull
from elasticmoe.spec.job import Rung

MOST_RETRIES: Final = 2
"""In a row without a new step; then whoever looks worst is replaced."""
TRIES_FROM_CHECKPOINT: Final = 3
"""The last tries before the job is given up: what is in memory may be the cause, unless processes
and nodes were just taken away."""
FROM_OUTSIDE: Final = ("died", "node_lost", "parked", "silent", "stuck")
"""Signs of a fault that memory has no part in, if they have no code of the worker's own."""
KEEPING: Final[tuple[Rung, ...]] = ("retry", "replace", "failover")
"""Rungs that give up no committed step."""
ADVICE: Final = {
    STEPS_SKIPPED: " Lower optimizer.learning_rate, look at the text of these steps, or allow "
    "larger spikes (protection.max_loss_ratio).",
}
"""What people can do about a failure that comes back, by its code."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is lost and what is left: all that a recovery is decided upon."""

    at_s: float
    casualties: tuple[Casualty, ...]
    members: int
    """Of the generation that is over; 0: there was none."""
    dead: tuple[int, ...]
    """Those of them that will not be in the next one."""
    irreplaceable: str
    """Why the dead cannot be replaced on their nodes; empty: they can."""
    settled: Settled | None
    """The step that memory can go on from; none: no copy is left."""
    in_step: bool
    """Whether the gang was in the middle of a step, and it has not been decided upon yet."""
    shortage: str
    """What is missing in the memory of the members' nodes; empty: nothing."""
    survivors_shortage: str
    """The same for the nodes on which somebody is left, or can be started to read what is there."""
    snapshot_step: int | None
    """Committed steps of the newest snapshot that is whole in memory; none: there is none."""
    distrusted: str
    """Why what is in memory must not be used; empty: it may."""
    refused_rungs: tuple[tuple[Rung, str], ...]
    """Rungs that turned out not to work, and why."""
    retries: int
    """How many of the last recoveries in a row were of the rung retry."""
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
    skip_rungs: tuple[Rung, ...] = ()
    crowded: Overfull | None = None
    """A node with too little memory for any layout of what is left; none: one fits, or has not been
    made yet. One that has trained fits."""
    fits_afresh: bool = False
    """Whether one would that takes nothing from memory: on nodes that are larger than those which
    have the state and cannot hold as much beside what they are to give away."""


def decide_recovery(damage: Damage) -> Recover | Wait | GiveUp:
    """Choose the first rung that applies.

    A cause that follows the work is not cured by trying again, so it ends the job; so does a
    series of recoveries without progress. All else goes on with the least loss that is possible:
    from memory where every unit has a copy, else from the newest checkpoint; with replacements
    where there is room, on fewer workers where not: nobody waits for a spare. Where what is left
    cannot hold the model there is nothing but to wait: a lower rung would give up steps and need
    as much memory; unless other nodes have that.
    """
    if damage.repeated is not None:
        return _give_up_repeated(damage, damage.repeated)
    if damage.attempts >= damage.max_restarts:
        return _give_up_looping(damage)
    passed_over: list[str] = []
    for rung, refuse in LADDER:
        refusal = _left_out(damage, rung) or refuse(damage)
        if not refusal:
            lacks_memory = damage.crowded is not None and not damage.fits_afresh
            lacks_room = _too_few(damage) or lacks_memory
            if lacks_room and rung in ("failover", "snapshot", "checkpoint"):
                return _wait(damage, rung)
            return _recover(damage, rung, tuple(passed_over))
        passed_over.append(f"{rung}: {refusal}")
    code = "bad_checkpoint" if damage.newest is None and damage.ever_saved else "no_rung_left"
    reason = f"{_what(damage)}; no way to go on: {'; '.join(passed_over)}"
    return GiveUp(damage.at_s, code, damage.first_error.log, reason)


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


def _refuse_memory(damage: Damage) -> str:
    if not damage.members or damage.settled is None:
        return "nothing is in memory"
    return damage.distrusted or _refuse_tired(damage)


def _refuse_tired(damage: Damage) -> str:
    """Memory is suspected after many recoveries, unless what happened came from outside."""
    spared = max(damage.max_restarts - TRIES_FROM_CHECKPOINT, TRIES_FROM_CHECKPOINT)
    outside = all(one.kind in FROM_OUTSIDE and not one.code for one in damage.casualties)
    if damage.attempts >= spared and not outside:
        return f"{damage.attempts} recoveries without a new step"
    return ""


def _refuse_retry(damage: Damage) -> str:
    if damage.dead:
        return f"{workers_named(damage.dead)} {'is' if len(damage.dead) == 1 else 'are'} gone"
    if damage.retries >= MOST_RETRIES:
        return f"tried {damage.retries} times without a new step"
    return _refuse_memory(damage) or damage.shortage


def _refuse_replace(damage: Damage) -> str:
    if not damage.dead:
        return "nobody is gone"
    return _refuse_memory(damage) or damage.irreplaceable or damage.shortage


def _refuse_failover(damage: Damage) -> str:
    return _refuse_memory(damage) or damage.survivors_shortage or _refuse_crowded(damage)


def _refuse_crowded(damage: Damage) -> str:
    if damage.crowded is None or not damage.fits_afresh:
        return ""
    return in_words(damage.crowded)


def _refuse_snapshot(damage: Damage) -> str:
    step = damage.snapshot_step
    if step is None:
        return "no snapshot is whole in memory"
    if damage.newest is not None and damage.newest.step >= step:
        return f"the checkpoint of step {damage.newest.step} is as new"
    return _refuse_tired(damage) or _refuse_crowded(damage)


def _refuse_checkpoint(damage: Damage) -> str:
    if damage.newest is None and damage.ever_saved:
        return "no checkpoint is left that verifies"
    return ""


LADDER: Final[tuple[tuple[Rung, Callable[[Damage], str]], ...]] = (
    ("retry", _refuse_retry),
    ("replace", _refuse_replace),
    ("failover", _refuse_failover),
    ("snapshot", _refuse_snapshot),
    ("checkpoint", _refuse_checkpoint),
)
"""Rungs in the order in which they are tried, each with what speaks against it."""


def _left_out(damage: Damage, rung: Rung) -> str:
    if rung in damage.skip_rungs:
        return "left out by protection.skip_rungs"
    return dict(damage.refused_rungs).get(rung, "")


def _too_few(damage: Damage) -> bool:
    return _workers(damage) < damage.minimum


def _workers(damage: Damage) -> int:
    return min(damage.survivors + damage.free_places, damage.wanted)


def _recover(damage: Damage, rung: Rung, passed_over: tuple[str, ...]) -> Recover:
    delay_s = backoff_s(damage.attempts, damage.backoff_s)
    attempt = damage.attempts + 1
    again = f"; try {attempt} of {damage.max_restarts} in {delay_s:.1f} s" if delay_s else ""
    step, redo = _kept(damage, rung)
    settled = damage.settled if rung in KEEPING else None
    return Recover(
        at_s=damage.at_s,
        rung=rung,
        step=step,
        redo_steps=redo,
        refused=damage.refused,
        attempt=attempt,
        retry_at_s=damage.at_s + delay_s,
        evidence=damage.casualties,
        reason=f"{_what(damage)}; {_cure(damage, rung)}{again}",
        open_step=_open_step(damage, rung),
        settled=settled.reason if settled else "",
        passed_over=passed_over,
    )


def _cure(damage: Damage, rung: Rung) -> str:
    step, redo = _kept(damage, rung)
    there = f"from memory at step {step}"
    if rung == "retry":
        return f"the same {plural(damage.members, 'worker')} go on {there}"
    if rung == "replace":
        named = workers_named(damage.dead)
        return f"{named} replaced in place, {plural(damage.members, 'worker')} go on {there}"
    if rung == "failover":
        return f"the workers that are left go on {there}"
    if rung == "snapshot":
        return f"all go back to the snapshot of step {step} ({plural(redo, 'step')} to redo)"
    return (
        f"all go back to {origin(damage.newest)} ({plural(redo, 'step')} to redo) "
        f"with {plural(_workers(damage), 'worker')}"
    )


def _kept(damage: Damage, rung: Rung) -> tuple[int, int]:
    """Committed steps that are kept, and how many are given up."""
    if rung in KEEPING:
        assert damage.settled is not None, "memory was refused"
        return damage.settled.step, 0
    if rung == "snapshot":
        assert damage.snapshot_step is not None, "the snapshot was refused"
        step = damage.snapshot_step
    else:
        step = damage.newest.step if damage.newest else 0
    return step, max(damage.committed_step - step, 0)


def _open_step(damage: Damage, rung: Rung) -> int:
    if not damage.in_step:
        return 0
    if rung not in KEEPING:
        return damage.committed_step + 1
    assert damage.settled is not None, "memory was refused"
    return 0 if damage.settled.commits_open_step else damage.settled.step + 1


def _wait(damage: Damage, rung: Rung) -> Wait:
    step, redo = _kept(damage, rung)
    workers = _workers(damage)
    where = {
        "failover": f"memory at step {step}",
        "snapshot": f"the snapshot of step {step} ({plural(redo, 'step')} to redo)",
    }.get(rung, f"{origin(damage.newest)} ({plural(redo, 'step')} to redo)")
    lacking = f"{plural(workers, 'worker')} can run and workers.min is {damage.minimum}"
    if damage.crowded is not None and not _too_few(damage):
        lacking = f"{plural(workers, 'worker')} can run, but {in_words(damage.crowded)}"
    reason = f"{_what(damage)}; {lacking}: waiting for nodes, to go on from {where}"
    return Wait(
        at_s=damage.at_s,
        step=step,
        redo_steps=redo,
        refused=damage.refused,
        evidence=damage.casualties,
        reason=reason,
        from_memory=rung != "checkpoint",
        open_step=_open_step(damage, rung),
    )


def _what(damage: Damage) -> str:
    if damage.casualties:
        return described(damage.casualties)
    if damage.crowded is not None:
        return "what is left cannot hold the model"
    return "; ".join(why for _, why in damage.refused_rungs) or "fewer workers are left"


def _give_up_repeated(damage: Damage, failure: Casualty) -> GiveUp:
    reason = (
        f"the same failure twice at step {failure.step} ({failure.code}): {failure.text}. "
        f"Trying again does not cure it.{ADVICE.get(failure.code, '')}{_see(failure.log)}"
    )
    return GiveUp(damage.at_s, failure.code or "same_failure_twice", failure.log, reason)


def _give_up_looping(damage: Damage) -> GiveUp:
    first, what = damage.first_error, _what(damage)
    last = "" if first.text == what else f"; the last one was: {what}"
    reason = (
        f"{plural(damage.attempts, 'restart')} in a row without a new step "
        f"(protection.max_restarts is {damage.max_restarts}). "
        f"The first error was: {first.text}{last}.{_see(first.log)}"
    )
    return GiveUp(damage.at_s, "crash_loop", first.log, reason)


def _see(log: str) -> str:
    return f" See {log}" if log else ""

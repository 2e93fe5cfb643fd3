"""What must be true after all that: judged from the journal, the steps file and what was struck.

Every checker is a pure function from records to sentences; an empty tuple means that all is well.
None of them asks the job, its state or its summary: those are what is on trial.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from chaos.conductor import Strike
from chaos.scenario import Expect
from elasticmoe.controller.decisions import Break, Finish, Form, GiveUp, Recover, Stop, Train, Wait
from elasticmoe.controller.history import check_history
from elasticmoe.controller.record import Decided, Progress, Record, turns
from elasticmoe.controller.story import story
from elasticmoe.messages.events import WorkerDied, WorkerSilent

CAUSE_GRACE_S: Final = 1.0
"""A recovery that begins this long after a fault was answered and undone is not its doing."""
LINES_AT_A_RESTART: Final = 5
"""Steps that may have been told between the last look at the file and the kill, and after it."""


@dataclass(frozen=True, slots=True)
class StepLine:
    """One line of `steps.jsonl`: a step was committed, and people were told."""

    step: int
    generation: int
    loss: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Outage:
    """A generation that ended before its time, and what followed."""

    at_s: float
    generation: int
    reason: str
    rungs: tuple[str, ...] = ()
    over_at_s: float | None = None
    redone: int = 0
    """Steps that had been begun or committed and were begun again."""
    lost: frozenset[int] = frozenset()
    """Workers that died meanwhile, or fell silent."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the checkers may look at."""

    records: Sequence[Record]
    lines: Sequence[StepLine]
    strikes: Sequence[Strike]


def read_lines(text: Iterable[str]) -> list[StepLine]:
    """The lines of `steps.jsonl`; a torn last one, left by a crash, is passed over."""
    found = []
    for line in text:
        try:
            plain: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        found.append(StepLine(plain["step"], plain["generation"], plain["loss"], plain["at_s"]))
    return found


def check_samples(evidence: Evidence) -> tuple[str, ...]:
    """Every step once, every sample once, from the journal."""
    return tuple(check_history(evidence.records))


def check_committed(evidence: Evidence, most_rolled_back: int = 0) -> tuple[str, ...]:
    """A step that people were told of is never taken again, and none is left out.

    A line that comes twice with the same generation was told twice, around a controller's restart.
    A gap is fine only where a new generation begins: the step was committed by the commit rule
    after the one who reports had died, and the journal's `Form` starts behind it.
    """
    problems: list[str] = []
    forms = {form.generation: form.step for form in _decisions(evidence.records, Form)}
    high, generation, rolled_back = 0, 0, 0
    for index, line in enumerate(evidence.lines):
        if line.generation < generation or (line.generation == generation and line.step <= high):
            continue
        begins = line.generation > generation
        start = forms.get(line.generation) if begins else high
        if start is None:
            problems.append(f"generation {line.generation} commits, but the journal opens none")
            start = line.step - 1
        if begins and start < high:
            rolled_back += high - start
        if line.step != start + 1 and not _may_skip(evidence, index):
            problems.append(
                f"generation {line.generation}: step {line.step} is committed next after {start}"
            )
        high, generation = line.step, line.generation
    if rolled_back > most_rolled_back:
        problems.append(
            f"{rolled_back} committed steps were lost, {most_rolled_back} may be: "
            + ", ".join(_rollbacks(evidence.lines))
        )
    return tuple(problems)


def check_attempts(evidence: Evidence, expect: Expect) -> tuple[str, ...]:
    """Steps begun minus steps committed are no more than faults and false alarms."""
    found = outages(evidence.records)
    redone = sum(outage.redone for outage in found)
    alarms = len(false_alarms(evidence))
    faults = sum(max(len(strike.victims), 1) for strike in evidence.strikes)
    allowed = faults + alarms + expect.steps_rolled_back
    if expect.steps_redone is not None and redone > expect.steps_redone:
        why = "; ".join(outage.reason for outage in found if outage.redone)
        return (f"{redone} steps were begun and not kept, {expect.steps_redone} may be: {why}",)
    if redone <= allowed:
        return ()
    return (
        f"{redone} steps were begun and not kept; {faults} faults, {alarms} false alarms and "
        f"{expect.steps_rolled_back} steps that may be lost explain {allowed}",
    )


def check_false_alarms(evidence: Evidence, most: int) -> tuple[str, ...]:
    """Recoveries that none of the faults explains are few."""
    found = false_alarms(evidence)
    if len(found) <= most:
        return ()
    shown = "; ".join(f"generation {outage.generation}: {outage.reason}" for outage in found[:5])
    return (f"{len(found)} recoveries without a fault, {most} may be: {shown}",)


def check_answers(evidence: Evidence, bound_s: float) -> tuple[str, ...]:
    """Every fault is answered, and soon: by the steps file, timed by whoever struck."""
    problems = []
    for strike in evidence.strikes:
        name = f"fault {strike.number} ({strike.nemesis} at step {strike.step})"
        later = evidence.lines[strike.lines :]
        if strike.answer == "generation":
            later = [line for line in later if line.generation > strike.generation]
        if not later or strike.answered_s is None:
            problems.append(f"{name} was never answered")
        elif strike.answered_s > bound_s:
            problems.append(f"{name} was answered after {strike.answered_s:.2f} s, not {bound_s:g}")
    return tuple(problems)


def check_rungs(evidence: Evidence, rungs: Sequence[str]) -> tuple[str, ...]:
    """Every recovery takes one of the rungs; none are named: any will do."""
    if not rungs:
        return ()
    taken = [decision.rung for decision in _decisions(evidence.records, Recover)]
    others = sorted({rung for rung in taken if rung not in rungs})
    return tuple(f"{taken.count(rung)} recoveries by {rung}" for rung in others)


def check_outcome(evidence: Evidence, outcome: str) -> tuple[str, ...]:
    """The job ends as it should, as the journal's last decision has it."""
    ends = {Finish: "done", Stop: "stopped", GiveUp: "failed"}
    found = [
        (ends[type(record.body.decision)], record.body.decision.reason)
        for record in evidence.records
        if isinstance(record.body, Decided) and type(record.body.decision) in ends
    ]
    if not found:
        return (f"the job has not ended; it should be {outcome}",)
    end, reason = found[-1]
    return () if end == outcome else (f"the job ended as {end} ({reason}), not as {outcome}",)


def check_story(evidence: Evidence, patterns: Sequence[str]) -> tuple[str, ...]:
    """Every pattern matches a sentence of the story."""
    sentences = story(evidence.records)
    return tuple(
        f"no sentence of the story matches {pattern!r}"
        for pattern in patterns
        if not any(re.search(pattern, sentence) for sentence in sentences)
    )


def check_all(evidence: Evidence, expect: Expect) -> tuple[str, ...]:
    """All of the above."""
    return (
        *check_outcome(evidence, expect.outcome),
        *check_samples(evidence),
        *check_committed(evidence, expect.steps_rolled_back),
        *check_attempts(evidence, expect),
        *check_false_alarms(evidence, expect.false_alarms),
        *check_answers(evidence, expect.answer_s),
        *check_rungs(evidence, expect.rungs),
        *check_story(evidence, expect.story),
    )


def outages(records: Sequence[Record]) -> list[Outage]:
    """Every generation that broke, and what it cost, from the journal alone."""
    found: list[Outage] = []
    current: Outage | None = None
    form: Form | None = None
    trained, committed = False, 0
    for turn in turns(records):
        if isinstance(turn.entry, Progress) and form is not None:
            if turn.entry.generation == form.generation:
                committed = max(committed, turn.entry.last_step)
        for decision in turn.decisions:
            if isinstance(decision, Break) and current is None:
                current = Outage(decision.at_s, decision.generation, decision.reason)
        if isinstance(turn.entry, WorkerDied | WorkerSilent) and current is not None:
            current = replace(current, lost=current.lost | {turn.entry.worker})
        for decision in turn.decisions:
            match decision:
                case Recover() if current is not None:
                    current = replace(current, rungs=(*current.rungs, decision.rung))
                case Wait() if current is not None:
                    current = replace(current, rungs=(*current.rungs, "wait"))
                case Form():
                    if current is not None and trained:  # the open step counts as begun
                        again = max(committed + 1 - decision.step, 0)
                        current = replace(current, redone=current.redone + again)
                    form, trained, committed = decision, False, decision.step
                case Train():
                    trained = True
                    if current is not None:
                        found.append(replace(current, over_at_s=decision.at_s))
                        current = None
    return [*found, current] if current is not None else found


def false_alarms(evidence: Evidence) -> list[Outage]:
    """Recoveries that none of our faults explains: none was open or just over, or those that were
    ended other workers than were lost."""
    return [
        outage
        for outage in outages(evidence.records)
        if not any(_explains(strike, outage) for strike in evidence.strikes)
    ]


def _explains(strike: Strike, outage: Outage) -> bool:
    over_s = max(strike.answered_s or 0.0, strike.undone_s or 0.0)
    grace_s = CAUSE_GRACE_S if strike.answered_s is not None else float("inf")
    if not strike.at_s - CAUSE_GRACE_S <= outage.at_s <= strike.at_s + over_s + grace_s:
        return False
    ended = _ended_workers(strike)
    if not ended:
        return True
    nobody_was_lost = not outage.lost and set(outage.rungs) == {"retry"}
    return not nobody_was_lost and not (outage.lost and ended.isdisjoint(outage.lost))


def _ended_workers(strike: Strike) -> frozenset[int]:
    """Workers that a fault struck and that the gang goes on without."""
    if strike.answer != "generation":
        return frozenset()
    names = [victim.partition("worker ") for victim in strike.victims]
    return frozenset(
        int(number) for before, _, number in names if not before and number.isdecimal()
    )


def _rollbacks(lines: Sequence[StepLine]) -> list[str]:
    found, high, generation = [], 0, 0
    for line in lines:
        if line.generation > generation and line.step <= high:
            found.append(f"{high} back to {line.step - 1}")
        if line.generation >= generation:
            high, generation = max(line.step, 0), line.generation
    return found


def _may_skip(evidence: Evidence, index: int) -> bool:
    """Whether a controller was killed at this line: what it had accepted and not yet told is in
    the journal alone."""
    return any(
        strike.answer == "term" and strike.lines - 1 <= index <= strike.lines + LINES_AT_A_RESTART
        for strike in evidence.strikes
    )


def _decisions(records: Sequence[Record], kind: type[Any]) -> list[Any]:
    return [
        record.body.decision
        for record in records
        if isinstance(record.body, Decided) and isinstance(record.body.decision, kind)
    ]

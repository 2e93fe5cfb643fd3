"""What the journal holds: numbered records of events, progress and decisions.

Events stand in the order in which they were accepted. A decision stands where it was written,
which may be behind later events, and says which event it followed; `turns` puts them together.
Steps are not recorded one by one but as `Progress`, folded over a few seconds.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import Decision
from elasticmoe.messages.events import Event, Reported
from elasticmoe.messages.worker import StepDone

MAX_FOLDED: Final = 50
"""Steps in one record."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Consecutive committed steps of one generation: the sample record."""

    at_s: float
    """When the last of them was reported."""
    generation: int
    first_step: int
    last_step: int
    first_sample: int
    end_sample: int
    """One behind the last sample."""
    seconds: float
    """Sum over the steps."""
    loss: float
    """Of the last step."""
    instructed: int
    """Newest command that took effect; at the first of the steps, if it is new."""
    arrivals: tuple[float, ...] = ()
    """When each of the steps was reported."""
    snapshot_s: float = 0.0
    """Time that the last snapshot between the steps took; 0: there was none."""
    skipped: tuple[int, ...] = ()
    """Those of the steps that the numerical guard had change nothing."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision, and the record of the event that it followed."""

    after: int
    decision: Decision


Entry = Event | Progress
"""What happens to a job."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal."""

    number: int
    """Counted from 0 without gaps."""
    body: Entry | Decided


@dataclass(frozen=True, slots=True)
class Turn:
    """Something that happened, and what was decided upon it."""

    number: int
    """Of the entry's record."""
    entry: Entry
    decisions: tuple[Decision, ...]


def as_progress(event: Event) -> Progress | None:
    """A committed step as progress; none for every other event."""
    if not (isinstance(event, Reported) and isinstance(event.report, StepDone)):
        return None
    done = event.report
    return Progress(
        at_s=event.at_s,
        generation=done.generation,
        first_step=done.step,
        last_step=done.step,
        first_sample=done.samples[0],
        end_sample=done.samples[1],
        seconds=done.seconds,
        loss=done.loss,
        instructed=done.instructed,
        arrivals=(event.at_s,),
        snapshot_s=done.snapshot_s,
        skipped=(done.step,) if done.metrics.get("skipped") else (),
    )


def fold(earlier: Progress, later: Progress) -> Progress | None:
    """Two pieces of progress as one; none where they do not follow each other, or where a command
    took effect in between."""
    follows = (
        earlier.generation == later.generation
        and earlier.last_step + 1 == later.first_step
        and earlier.end_sample == later.first_sample
        and earlier.instructed == later.instructed
        and len(earlier.arrivals) + len(later.arrivals) <= MAX_FOLDED
    )
    if not follows:
        return None
    return replace(
        later,
        first_step=earlier.first_step,
        first_sample=earlier.first_sample,
        seconds=earlier.seconds + later.seconds,
        arrivals=earlier.arrivals + later.arrivals,
        snapshot_s=later.snapshot_s or earlier.snapshot_s,
        skipped=earlier.skipped + later.skipped,
    )


def turns(records: Iterable[Record]) -> Iterator[Turn]:
    """The records in the order in which they took effect."""
    entries: dict[int, Entry] = {}
    decisions: dict[int, list[Decision]] = {}
    for record in records:
        if isinstance(record.body, Decided):
            decisions.setdefault(record.body.after, []).append(record.body.decision)
        else:
            entries[record.number] = record.body
    for number, entry in entries.items():
        yield Turn(number, entry, tuple(decisions.get(number, ())))

"""The controller in the pretend world: the real brain, its journal, and crashes at any record."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from elasticmoe.controller.loop import PROGRESS_INTERVAL_S
from elasticmoe.controller.machine import advance, outstanding, replay
from elasticmoe.controller.record import Decided, Entry, Progress, Record, as_progress, fold
from elasticmoe.controller.state import JobState
from elasticmoe.messages.commands import Command
from elasticmoe.messages.events import Event, JobSubmitted


class Watcher(Protocol):
    """Looks on, and changes nothing."""

    def recorded(self, record: Record) -> None:
        """A record was written."""
        ...

    def advanced(self, before: JobState, event: Event, after: JobState) -> None:
        """The brain took in an event."""
        ...

    def replayed(self, state: JobState) -> None:
        """A new controller has read the journal."""
        ...


class CrashedError(Exception):
    """The controller died in the middle of this."""


class Keeper:
    """Feeds events to the brain as the real loop does: journal, decide, journal, act."""

    def __init__(
        self,
        act: Callable[[Command], None],
        soon: Callable[[Callable[[], None]], None],
        crashed: Callable[[], None],
        watcher: Watcher,
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            act: carries out a command.
            soon: has the next event taken in, a little later.
            crashed: is told when the controller has died.
            watcher: is shown everything.
            clock: what time it is.
        """
        self._clock = clock
        self.act, self._soon, self._crashed, self._watcher = act, soon, crashed, watcher
        self.records: list[Record] = []
        self.state = JobState()
        self.up = True
        self.term = 1
        self.crash_at = -1
        """Number of the record behind which the controller dies; -1: none."""
        self.acts_before_crash = 0
        """Commands it still carries out in the turn that it dies in."""
        self.crashes = 0
        self.stopwatch: Callable[[], float] | None = None
        """Real seconds; none: not measured."""
        self.slowest_s = 0.0
        """Longest turn of the brain that was measured, submission and replay aside."""
        self.slowest = ""
        """What it decided in that turn."""
        self._inbox: deque[tuple[int, Event]] = deque()
        self._unwritten: Progress | None = None
        self._written_s = 0.0
        self._busy = False
        self._dying = False

    def post(self, event: Event) -> None:
        """Accept an event: it is on record when this returns.

        Raises:
            CrashedError: the controller died; the event may be on record or not.
        """
        progress = as_progress(event)
        number = self._fold(progress) if progress else self._write(event)
        self._inbox.append((number, event))
        if not self._busy:
            self._busy = True
            term = self.term
            self._soon(lambda: self._turn(term))

    def crash(self) -> None:
        """Die now."""
        self.up, self._busy, self._dying = False, False, False
        self._inbox.clear()
        self._unwritten = None
        self.crashes += 1
        self.crash_at = -1
        self._crashed()

    def take_over(self) -> tuple[Command, ...]:
        """A new controller reads the journal; what it must ask for again."""
        self.term += 1
        self.up = True
        self.state = replay(self.records)
        self._watcher.replayed(self.state)
        return outstanding(self.state)

    @property
    def has_taken_in_all(self) -> bool:
        """Whether the brain knows everything that is on record."""
        return self.up and not self._inbox

    def flush(self) -> None:
        """Write what is kept back."""
        if self._unwritten is not None:
            unwritten, self._unwritten = self._unwritten, None
            self._append(unwritten)

    def _turn(self, term: int) -> None:
        if not self.up or term != self.term or not self._inbox:
            return
        number, event = self._inbox.popleft()
        before = self.state
        began_s = self.stopwatch() if self.stopwatch else 0.0
        self.state, commands = advance(before, event, self._clock())
        if self.stopwatch and not isinstance(event, JobSubmitted):
            took_s = self.stopwatch() - began_s
            if took_s > self.slowest_s:
                names = [type(one).__name__ for one in self.state.decided]
                self.slowest_s, self.slowest = took_s, ", ".join(names) or "nothing"
        try:
            for decision in self.state.decided:
                self._append(Decided(number, decision))
        except CrashedError:
            return
        self._watcher.advanced(before, event, self.state)
        left = self.acts_before_crash if self._dying else len(commands)
        for command in commands[:left]:
            self.act(command)
        if self._dying:
            self.crash()
            return
        self._busy = bool(self._inbox) and not self.state.is_final
        if self._busy:
            self._soon(lambda: self._turn(term))

    def _write(self, event: Event) -> int:
        self.flush()
        return self._append(event)

    def _fold(self, progress: Progress) -> int:
        folded = fold(self._unwritten, progress) if self._unwritten else progress
        if folded is None:
            self.flush()
            folded = progress
        self._unwritten = folded
        if progress.at_s >= self._written_s + PROGRESS_INTERVAL_S:
            self.flush()
            self._written_s = progress.at_s
        return len(self.records)

    def _append(self, body: Entry | Decided) -> int:
        record = Record(len(self.records), body)
        self.records.append(record)
        self._watcher.recorded(record)
        if record.number == self.crash_at:
            if isinstance(body, Decided) and self.acts_before_crash:
                self._dying = True
            else:
                self.crash()
                raise CrashedError
        return record.number

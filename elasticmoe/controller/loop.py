"""The control loop, one screen: events in, commands out, a journal in between."""

import asyncio
from collections.abc import Callable
from typing import Final

from elasticmoe.controller.changing import replace
from elasticmoe.controller.machine import advance, glance, outstanding, replay
from elasticmoe.controller.protocols import Effects, Journal
from elasticmoe.controller.record import Decided, Entry, Progress, Record, as_progress, fold
from elasticmoe.controller.state import JobState
from elasticmoe.messages.commands import Command, WakeAt
from elasticmoe.messages.events import Event, JournalResumed, TimePassed

PROGRESS_INTERVAL_S: Final = 2.0
"""Committed steps are folded into one record for this long: a crash of the controller loses count
of a few seconds of steps, which the next report of a step brings back."""
INBOX_SIZE: Final = 10_000
HELD_UP_S: Final = 0.05
"""A sync that takes longer holds up what agents say and what they are told: that time is not held
against them. Half of the shortest patience, `state.STALLED_PATIENCE_S`; a sync takes some ms."""
AGAIN_S: Final = 0.25
"""At most, or a quarter of that time: an agent whose words could not be taken for a second is told
so, and says them again within 0.1 s of when they can be."""


class Controller:
    """Feeds events to the job's state machine and carries out what it asks. Decides nothing."""

    def __init__(
        self, journal: Journal, effects: Effects, clock: Callable[[], float] = lambda: 0.0
    ) -> None:
        """Rebuild the state from the journal. The next event posted must be `TermBegan`, or
        `JobSubmitted` and then `TermBegan` if the journal is empty.

        Args:
            clock: the clock of the events' `at_s`, so that what is decided behind a backlog bears
                the time at which it is done; without one it bears that of its event.
        """
        records = journal.read()
        self._journal, self._effects, self._clock = journal, effects, clock
        self._posting = asyncio.Lock()
        self._state = replay(records)
        self._next_number = len(records)
        self._durable = len(records)
        """Records with smaller numbers survive a crash."""
        self._syncing: asyncio.Future[None] | None = None
        self._sync_began_s = 0.0
        self._heard_from_s = 0.0
        """The end of the last sync that took long, and a little more: everybody could be heard."""
        self._resumed_s = 0.0
        """The same as of the last `JournalResumed`."""
        self._unwritten: Progress | None = None
        self._written_s = 0.0
        self._late: TimePassed | None = None
        """A timer whose turn has not come."""
        self._inbox: asyncio.Queue[tuple[int | None, Event]] = asyncio.Queue(maxsize=INBOX_SIZE)

    @property
    def state(self) -> JobState:
        """What is known now."""
        return self._state

    async def post(self, event: Event) -> None:
        """Accept an event. Once this returns it is durable, though perhaps not yet acted on.

        Progress is the exception: it is durable within `PROGRESS_INTERVAL_S`, or with the next
        event of another kind, before that one. So are timers: they are written when it is their
        turn, if they matter. While records wait for the disk their turn does not come: whoever is
        silent then may have spoken.
        """
        is_timer = isinstance(event, TimePassed)
        if is_timer and self._syncing is not None:
            await asyncio.shield(self._syncing)
            event = replace(event, at_s=max(event.at_s, self._clock()))
        async with self._posting:  # one lock for both, so that replay sees the order we acted in
            number: int | None = None
            progress = as_progress(event)
            if progress is not None:
                number = self._fold(progress)
            elif not is_timer:
                resumed = self._resumed()
                if resumed is not None:
                    await self._inbox.put(resumed)
                number = self._write(event)
            await self._inbox.put((number, event))
        if not is_timer:
            await self._synced()

    async def run(self) -> None:
        """Run until the job ends. Safe to start again after a crash at any line.

        Raises:
            StorageError: the journal cannot be written; nothing is done that is not on record.
        """
        commands = outstanding(self._state)  # after a restart: finish what was begun
        while True:
            for command in commands:
                if not isinstance(command, WakeAt):
                    await self._synced()  # nothing is done that is not on record
                await self._effects.carry_out(command)  # starts work; the outcome is an event
            if self._state.is_final:
                self._flush()
                await self._synced()
                return
            number, event = await self._inbox.get()
            commands = ()
            if isinstance(event, TimePassed):
                self._late = event
            else:
                assert number is not None, "only timers are not written down at once"
                commands = self._act(number, event)
            if self._late is not None:
                commands += self._look(self._late)

    def _act(self, number: int, event: Event) -> tuple[Command, ...]:
        self._state, commands = advance(self._state, event, self._clock())
        for decision in self._state.decided:
            self._append(Decided(number, decision))
        return commands

    def _look(self, timer: TimePassed) -> tuple[Command, ...]:
        """Take in a timer: behind all that was written before it, and only if it matters."""
        nothing = glance(self._state, timer)
        if nothing is None and not (self._inbox.empty() and not self._posting.locked()):
            return ()  # an event is there or on its way; we look behind it
        if nothing is None and (resumed := self._resumed()) is not None:
            return self._act(*resumed) + self._look(timer)
        self._late = None
        if nothing is not None:
            self._state, commands = nothing
            return commands
        return self._act(self._write(timer), timer)

    def _resumed(self) -> tuple[int, JournalResumed] | None:
        """Write down that the journal takes long, or did, before anybody is judged by that time."""
        now_s = self._clock()
        if self._syncing is not None and now_s >= self._resumed_s:
            self._note_delay(now_s)
        if self._heard_from_s <= self._resumed_s:
            return None
        self._resumed_s = self._heard_from_s
        resumed = JournalResumed(now_s, self._resumed_s)
        return self._write(resumed), resumed

    def _note_delay(self, now_s: float) -> None:
        took_s = now_s - self._sync_began_s
        if took_s > HELD_UP_S:
            self._heard_from_s = now_s + min(took_s / 4, AGAIN_S)

    def _write(self, event: Event) -> int:
        self._flush()
        return self._append(event)

    def _fold(self, progress: Progress) -> int:
        """Keep progress back for a while; nothing is decided upon it, so its number is unused."""
        folded = fold(self._unwritten, progress) if self._unwritten else progress
        if folded is None:
            self._flush()
            folded = progress
        self._unwritten = folded
        if progress.at_s >= self._written_s + PROGRESS_INTERVAL_S:
            self._flush()
            self._written_s = progress.at_s
        return self._next_number

    def _flush(self) -> None:
        if self._unwritten is not None:
            self._append(self._unwritten)
            self._unwritten = None

    def _append(self, body: Entry | Decided) -> int:
        number = self._next_number
        self._journal.append(Record(number, body))
        self._next_number = number + 1
        return number

    async def _synced(self) -> None:
        """Return when all that is written by now survives a crash. A sync takes milliseconds: one
        serves all who wait for it, and events are acted upon meanwhile."""
        wanted = self._next_number
        while self._durable < wanted:
            if self._syncing is None:
                self._sync_began_s = self._clock()
                self._syncing = asyncio.ensure_future(self._sync())
            await asyncio.shield(self._syncing)

    async def _sync(self) -> None:
        number = self._next_number  # `run` had its turn: what it decided goes with its event
        try:
            await asyncio.to_thread(self._journal.sync)
            self._durable = number
        finally:
            self._syncing = None
            self._note_delay(self._clock())

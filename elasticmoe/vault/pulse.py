"""A worker's pulse: one page of shared memory that says that it lives, and what it does.

Its agent makes the page and watches it; the worker writes. Words are 8 bytes, written whole.
"""

import mmap
import os
import time
from typing import Final, NoReturn

import numpy as np

from elasticmoe.vault.lifeline import Lifeline

BEAT_S: Final = 0.1
"""A worker beats so often. It costs some 60 us a time beside training (measured), and a stop is
hardly seen any later than with a shorter one: silence counts from the newest beat."""
PHASES: Final = ("", "form", "compute", "reduce", "agree", "prepare", "vote", "apply")
"""What a worker can be doing; the first is: none of the others."""
_BEAT, _PHASE, _COLLECTIVE, _STEP, _NUM_WORDS = range(5)
_LIFELINE: Final = 2048
"""Its first byte."""


def create_pulse(name: str) -> int:
    """Make a page that belongs to no directory; returns its descriptor."""
    fd = os.memfd_create(f"pulse-{name}", os.MFD_CLOEXEC)
    os.ftruncate(fd, mmap.PAGESIZE)
    Pulse(fd).lifeline.prepare()
    return fd


class Pulse:
    """One worker's page, from either side."""

    def __init__(self, fd: int) -> None:
        """Map a page that `create_pulse` made; the descriptor stays the caller's."""
        self._map = mmap.mmap(fd, mmap.PAGESIZE)
        self._words = np.frombuffer(self._map, np.int64, _NUM_WORDS)
        self.lifeline = Lifeline(self._map, _LIFELINE)
        """Held by the thread that trains, for as long as it lives."""

    def beat(self) -> None:
        """Say that the interpreter runs."""
        self._words[_BEAT] = time.monotonic_ns()

    def beat_for_ever(self) -> NoReturn:
        """Beat at every multiple of `BEAT_S` of the machine's one clock.

        All workers do it at the same moments: whoever looks just behind one of them has heard all
        of them, and a collective that waits for its slowest member is held up once, not once each.
        """
        while True:
            self.beat()
            time.sleep(BEAT_S - time.monotonic() % BEAT_S)

    def beat_s(self) -> float | None:
        """Monotonic time of the newest beat, seconds; none before the first."""
        beat = int(self._words[_BEAT])
        return beat / 1e9 if beat else None

    def age_s(self) -> float | None:
        """Seconds since the last beat, on this machine's one monotonic clock; none before the
        first."""
        beat = int(self._words[_BEAT])
        return (time.monotonic_ns() - beat) / 1e9 if beat else None

    def enter(self, phase: str, step: int) -> None:
        """Say what this worker begins to do, and for which step."""
        self._words[_STEP] = step
        self._words[_PHASE] = PHASES.index(phase)

    def count_collective(self) -> None:
        """Say that the next collective of this generation is being entered."""
        self._words[_COLLECTIVE] += 1

    def restart_count(self) -> None:
        """A new generation begins."""
        self._words[_COLLECTIVE] = 0

    @property
    def phase(self) -> str:
        """What it did last."""
        return PHASES[int(self._words[_PHASE])]

    @property
    def step(self) -> int:
        """The step that it worked for last."""
        return int(self._words[_STEP])

    @property
    def collective(self) -> int:
        """Number of the collective that it entered last."""
        return int(self._words[_COLLECTIVE])

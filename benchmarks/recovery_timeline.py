"""What happened in a run with kills, and what each kill cost. Pure but for `Timeline`.

All times are Unix seconds of one machine's clock. A step's begin is its commit less its length,
both told by whoever committed it. A rival tells its commit itself; ours is the time at which the
controller accepted the report, later than the commit by the report's journey (a few milliseconds),
so that this error is counted against us.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from benchmarks.crew import CrewError

NO_ERA = -1


@dataclass(frozen=True, slots=True)
class Commit:
    """One committed step, as one worker told it."""

    at_s: float
    step: int
    seconds: float
    workers: int
    """That took part; 0: not known yet."""
    era: int = 0
    """Generation of the gang; rivals have none."""
    waited_s: float = 0.0
    """Of `seconds`: waiting until it was known who takes part (torchft's quorum)."""

    @property
    def begin_s(self) -> float:
        """When its first forward pass began."""
        return self.at_s - self.seconds


@dataclass(frozen=True, slots=True)
class Mark:
    """Something else that a worker told."""

    at_s: float
    name: str
    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """One SIGKILL, or another fault."""

    at_s: float
    """Read right before the signal was sent, or told by the process that the fault is in."""
    victim: int
    """Its place in the gang, or its rank."""
    pid: int
    era: int
    """Generation at that moment; `NO_ERA` for rivals."""
    into_step: float
    """Where in a step it was aimed at, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one kill cost; seconds from the kill."""

    overhead_s: float
    """To the first forward pass of a step that then commits. Where that step waits in its middle
    until it is known who takes part (torchft), that wait is added."""
    any_s: float
    """To the commit of the first step that was not in flight."""
    beyond_s: float
    """To the commit of the first step that nobody had committed before."""
    full_s: float
    """To the commit of the first step with all workers again."""
    rolled_back: int
    """Committed steps that were lost."""
    open_redone: bool
    """Whether the step in flight was begun anew (else it was committed by the survivors)."""
    phases: Mapping[str, float] = field(default_factory=dict)
    rung: str = ""
    """Of our ladder."""
    attempts: int = 1
    """Generations, or starts, until a step was committed."""
    victim: int = 0
    into_step: float = 0.0
    bound_s: float = 0.0
    """The stall bound at that moment, where a stall was the sign; see `stall_bound_s`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class Aftermath:
    """The steps that matter after one kill."""

    first: Commit
    beyond: Commit
    full: Commit
    high: int
    """Highest step committed without knowledge of the kill."""


def look_after(kill: Kill, commits: Sequence[Commit], size: int) -> Aftermath | None:
    """Find the steps that end a recovery; none while one of them is missing.

    A step that began before the kill was in flight, whenever it is told; one of an older generation
    too, however late its report came.

    Args:
        commits: of the whole run, in any order.
        size: workers at full strength.
    """
    after = [c for c in commits if is_after(c, kill)]
    after.sort(key=lambda commit: commit.at_s)
    high = max((c.step for c in commits if not is_after(c, kill)), default=0)
    beyond = [c for c in after if c.step > high]
    full = [c for c in after if c.workers == size]
    if not (beyond and full):
        return None
    return Aftermath(after[0], beyond[0], full[0], high)


def as_recovery(kill: Kill, found: Aftermath) -> Recovery:
    """The costs of one kill, phases left out."""
    first = found.first
    return Recovery(
        overhead_s=first.begin_s - kill.at_s + first.waited_s,
        any_s=first.at_s - kill.at_s,
        beyond_s=found.beyond.at_s - kill.at_s,
        full_s=found.full.at_s - kill.at_s,
        rolled_back=max(found.high + 1 - first.step, 0),
        open_redone=first.step == found.high + 1,
        victim=kill.victim,
        into_step=kill.into_step,
    )


def split_at(start_s: float, cuts: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Seconds of each phase from the moments at which they ended, in order.

    A moment before the one in front of it ends a phase of no length.

    >>> split_at(10.0, [("detect", 10.5), ("start", 10.25), ("step", 12.0)])
    {'detect': 0.5, 'start': 0.0, 'step': 1.5}
    """
    phases = {}
    for name, end_s in cuts:
        end_s = max(end_s, start_s)
        phases[name] = end_s - start_s
        start_s = end_s
    return phases


def count_alarms(
    signs_s: Sequence[float], outages: Sequence[tuple[float, float]], gap_s: float = 2.0
) -> int:
    """Count the alarms that no kill explains; signs close to each other belong to one.

    Args:
        signs_s: moments at which something looked like a fault.
        outages: from each kill to the first step at full strength.
        gap_s: signs further apart than this are two alarms.

    >>> count_alarms([1.0, 5.0, 5.5, 9.0], [(0.9, 1.2)])
    2
    """
    alarms, last_s = 0, float("-inf")
    for sign_s in sorted(signs_s):
        if any(start_s <= sign_s <= end_s for start_s, end_s in outages):
            continue
        alarms += sign_s - last_s > gap_s
        last_s = sign_s
    return alarms


class Timeline:
    """Collects what workers tell, from one thread, while another waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._commits: list[Commit] = []
        self._marks: list[Mark] = []
        self._workers: dict[int, int] = {}
        self._ended = ""

    def add(self, told: Commit | Mark) -> None:
        """Take in one line."""
        with self._changed:
            if isinstance(told, Commit):
                self._commits.append(told)
            else:
                self._marks.append(told)
            self._changed.notify_all()

    def set_workers(self, workers: Mapping[int, int], *, keep: bool) -> None:
        """Note the processes' ids by worker; `keep`: workers that are not named stay known."""
        with self._changed:
            self._workers = {**(self._workers if keep else {}), **workers}
            self._changed.notify_all()

    def end(self, reason: str) -> None:
        """Nothing more will come; whoever waits fails with the reason."""
        with self._changed:
            self._ended = self._ended or reason
            self._changed.notify_all()

    def commits(self) -> list[Commit]:
        """All so far, in the order in which they came."""
        with self._changed:
            return list(self._commits)

    def marks(self) -> list[Mark]:
        """All so far, in the order in which they came."""
        with self._changed:
            return list(self._marks)

    def workers(self) -> dict[int, int]:
        """Process ids by worker."""
        with self._changed:
            return dict(self._workers)

    def wait(self, is_so: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait until something holds; it is asked again after every line.

        Raises:
            CrewError: it did not in time, or the job ended.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not is_so():
                if self._ended:
                    raise CrewError(f"{self._ended}, while this was waited for: {what}")
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise CrewError(f"{what}: not within {timeout_s:.0f} s")
                self._changed.wait(left_s)


def is_after(commit: Commit, kill: Kill) -> bool:
    """Whether a step was begun with the fault known: not in flight, not of an older generation."""
    return commit.begin_s >= kill.at_s and commit.era > kill.era

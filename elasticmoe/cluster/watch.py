"""Tells a worker whose heart has stopped from one that is merely slow. Pure: time is an argument.

A worker's heartbeat thread beats every `BEAT_S`, at the same moments as all others. It stops when
the process is stopped, or hangs with its interpreter locked; the end of a process is seen by other
means, and sooner.

A process that *is stopped* (the kernel says so) has `STOPPED_LEASE_S`. One that merely does not
beat has a lease derived from its own past: a beat may come `FACTOR` times as late as the latest one
seen before. What is seen is the silence at a look: most looks come just behind a beat that was in
time, so that one which is late by less than `BEAT_S` is hardly ever measured as such, and
`SHORTEST_LEASE_S` has to do for it (beyond 62 ms a lease from the formula would be longer). For
where the numbers come from: on two cores beats came late by 26 ms at most beside nothing else and
by 30 ms beside two busy processes, and a lease of 100 to 150 ms gave no false alarm. So a beat four
times as late is an event of its own, and on such a machine the derived lease would be 220 ms; it
never goes below `SHORTEST_LEASE_S` because there is no proof: a garbage collection, or parsing some
megabytes of JSON, locks the interpreter for 100 ms once and for all. On a machine that has ten
times more to do than cores, heartbeats come late by two seconds: time in which a thread of the
worker waited for a core does not count as silence. A false alarm costs one redone step.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from elasticmoe.vault.pulse import BEAT_S

POLL_S: Final = 0.02
"""Between two looks at whoever is suspicious. Beside workers that beat five a second are enough."""
STOPPED_LEASE_S: Final = 2 * BEAT_S
"""From the newest beat, which may be `BEAT_S` old when the process is stopped. One that goes on
within 0.1 s (a debugger, an impatient thumb) costs nothing. Who was silent for less is not looked
into."""
BEHIND_S: Final = 0.01
"""A look comes so much later than a lease of `STOPPED_LEASE_S` could end: behind the beats of that
moment, as these come late by a few milliseconds and a look excuses what it is late itself."""
FACTOR: Final = 4.0
SHORTEST_LEASE_S: Final = 0.35
"""It leaves what follows the first doubt 0.15 s: only there is it seen who waits for a core."""
LONGEST_LEASE_S: Final = 2.0
"""Whatever was seen before; and while a worker forms a generation: it loads libraries and
initialises an accelerator with the interpreter locked, and nothing was measured yet."""
MEMORY_S: Final = 10.0
"""A long silence counts for one to two times as long."""
UNMEASURED_PHASES: Final = ("", "form")


@dataclass(frozen=True, slots=True)
class Sign:
    """What can be seen of one worker."""

    worker: int
    pid: int
    beat_s: float
    """Monotonic time of its newest beat."""
    phase: str
    """What it says that it does, as in `vault.pulse.PHASES`."""


@dataclass(frozen=True, slots=True)
class Silence:
    """A worker's lease has ended."""

    worker: int
    evidence: str


def decide_lease(longest_s: float, phase: str) -> float:
    """Choose how long a worker that is not known to be stopped may be silent, in seconds.

    Args:
        longest_s: longest silence of the recent past.
        phase: what the worker says that it does.
    """
    if phase in UNMEASURED_PHASES:
        return LONGEST_LEASE_S
    lease_s = BEAT_S + FACTOR * (longest_s - BEAT_S)
    return min(max(lease_s, SHORTEST_LEASE_S), LONGEST_LEASE_S)


@dataclass(slots=True)
class Heard:
    """What is remembered of one worker's heartbeat."""

    beat_s: float
    excused_s: float = 0.0
    """Of the silence since that beat, what the watcher was held up itself."""
    core_waits: Mapping[int, float] | None = None
    """What each thread had waited for a core when this silence became suspicious."""
    silence_s: float = 0.0
    """Since the newest beat, as of the newest look, less `excused_s`."""
    longest_s: float = 0.0
    """Longest silence that ended in the current `MEMORY_S`."""
    longest_before_s: float = 0.0
    """The same in the one before it."""
    began_s: float | None = None
    """When the current one began."""
    reported: bool = False

    def take_in(self, now_s: float, beat_s: float, late_s: float) -> None:
        """Take in a look that came `late_s` later than it should have."""
        if beat_s != self.beat_s:  # only a silence that has ended says what is usual
            self.longest_s = max(self.longest_s, self.silence_s)
            self.beat_s, self.excused_s, self.core_waits = beat_s, 0.0, None
        age_s = max(now_s - beat_s, 0.0)
        self.excused_s = min(self.excused_s + late_s, age_s)
        self.silence_s = age_s - self.excused_s
        self.began_s = now_s if self.began_s is None else self.began_s
        if now_s >= self.began_s + MEMORY_S:
            self.longest_before_s, self.longest_s, self.began_s = self.longest_s, 0.0, now_s

    def starved_s(self, core_waits: Mapping[int, float]) -> float:
        """For how long a thread has waited for a core since this was first asked."""
        if self.core_waits is None:
            self.core_waits = core_waits
        before = self.core_waits
        return max((s - before.get(thread, s) for thread, s in core_waits.items()), default=0.0)


class HeartbeatWatch:
    """Looks at all workers of a node, each time after `pause_s`, and reports each silence once."""

    def __init__(
        self,
        is_stopped: Callable[[int], bool],
        core_waits: Callable[[int], Mapping[int, float]],
    ) -> None:
        """Both are asked in doubt only.

        Args:
            is_stopped: whether the kernel has stopped a process, by pid.
            core_waits: for how long its threads have ever waited for a core, seconds.
        """
        self._is_stopped, self._core_waits = is_stopped, core_waits
        self._looked_s: float | None = None
        self._heard: dict[int, Heard] = {}
        self.pause_s = STOPPED_LEASE_S
        """From the newest look to the next one: nobody can be overdue before."""

    def look(self, now_s: float, signs: Iterable[Sign]) -> list[Silence]:
        """Take a look; say who has been silent for too long.

        A look that comes late excuses everybody for as long: whoever was held up together with
        this process (a suspended machine, no free core) has not stopped. One that comes very late
        excuses for all but `POLL_S` of the time since the look before it.

        Args:
            now_s: monotonic time.
            signs: of all workers that have begun to beat and live.
        """
        passed_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        late_s, self._looked_s = max(passed_s - self.pause_s, 0.0), now_s
        if late_s > POLL_S:
            late_s = passed_s - POLL_S
        heard, self._heard = self._heard, {}
        found = []
        for sign in signs:
            known = heard.get(sign.worker) or Heard(sign.beat_s)
            self._heard[sign.worker] = known
            known.take_in(now_s, sign.beat_s, late_s)
            evidence = "" if known.reported else self._judge(known, sign)
            if evidence:
                known.reported = True
                found.append(Silence(sign.worker, evidence))
        longest_s = max((known.silence_s for known in self._heard.values()), default=0.0)
        self.pause_s = max(STOPPED_LEASE_S + BEHIND_S - longest_s, POLL_S)
        return found

    def _judge(self, known: Heard, sign: Sign) -> str:
        silence_s = known.silence_s
        if silence_s <= STOPPED_LEASE_S:
            return ""
        starved_s = known.starved_s(self._core_waits(sign.pid))
        if self._is_stopped(sign.pid):
            return f"no heartbeat for {silence_s:.2f} s, the process is stopped"
        age_s = silence_s + known.excused_s
        silence_s = age_s - max(known.excused_s, starved_s)  # the same time, twice, counts once
        lease_s = decide_lease(max(known.longest_s, known.longest_before_s), sign.phase)
        if silence_s <= lease_s:
            return ""
        return f"no heartbeat for {silence_s:.2f} s, its lease was {lease_s:.2f} s"

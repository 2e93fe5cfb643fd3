"""How fast the gang steps, and when it is late. Every bound comes from measured times."""

from dataclasses import dataclass
from typing import Final

from elasticmoe.controller.changing import replace

SHORTEST_BOUND_S: Final = 0.25
"""A stop of the machine's clock or a busy core holds up a healthy gang by some tens of ms."""
FACTOR: Final = 3.0
"""Times the slowest of the last steps."""
FIRST_FACTOR: Final = 10.0
"""The same for the first step of a generation, with which freshly forked processes warm up: beside
busy processes it took up to six times as long as any first step before it."""
NUM_INTERVALS: Final = 50
"""Of so many steps the 99th percentile is the slowest."""
FEWEST_INTERVALS: Final = 5
"""With fewer little is known: their first step counts too, and `FIRST_FACTOR` holds."""
SHORTEST_PATIENCE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Times between committed steps, as they arrived."""

    last_s: float = 0.0
    """Arrival of the newest step, or when the gang began to train."""
    is_first: bool = True
    """Whether the open step is the first of its generation, which is slower."""
    intervals: tuple[float, ...] = ()
    """Of the last steps, those behind the first of their generation."""
    slowest_first_s: float = 0.0
    slowest_saving_s: float = 0.0
    """Slowest step during which a checkpoint was written."""
    eventful_step: int = 0
    """The step behind the one at which the newest command took effect."""
    doublings: int = 0
    """Alarms since the last progress that found everybody alive."""
    overdue_s: float | None = None
    """When a look found the open step late. Reports may have been under way: one more look."""

    def begun(self, at_s: float) -> "Pace":
        """A generation trains from now on."""
        return replace(self, last_s=at_s, is_first=True, overdue_s=None)

    def resumed(self, at_s: float) -> "Pace":
        """Nobody listened for a while."""
        return replace(self, last_s=max(at_s, self.last_s), overdue_s=None)

    def stepped(self, at_s: float, *, is_saving: bool) -> "Pace":
        """A step was committed. One that is heard together with the one before it measures nothing:
        whoever was not listened to for a while tells of many at once."""
        took_s = max(at_s - self.last_s, 0.0)
        slowest_s = max(self.slowest_saving_s, took_s) if is_saving else self.slowest_saving_s
        pace = replace(self, last_s=at_s, slowest_saving_s=slowest_s, doublings=0, overdue_s=None)
        if self.is_first:
            return replace(pace, is_first=False, slowest_first_s=max(self.slowest_first_s, took_s))
        if not took_s:
            return pace
        return replace(pace, intervals=(*self.intervals, took_s)[-NUM_INTERVALS:])

    def scaled(self, factor: float) -> "Pace":
        """Fewer workers do the same work: all times grow."""
        return replace(
            self,
            intervals=tuple(interval * factor for interval in self.intervals),
            slowest_first_s=self.slowest_first_s * factor,
            slowest_saving_s=self.slowest_saving_s * factor,
        )

    def bound_s(self, *, is_saving: bool) -> float | None:
        """How long the open step may take before something must be wrong.

        Args:
            is_saving: whether a checkpoint is being written, or will be at the end of the step.

        Returns:
            Seconds; none as long as nothing comparable was measured.
        """
        is_known = len(self.intervals) >= FEWEST_INTERVALS
        if not self.slowest_first_s and (self.is_first or not is_known):
            return None
        slowest_s, factor = max(self.intervals, default=0.0), FACTOR
        if self.is_first or not is_known:
            slowest_s, factor = max(slowest_s, self.slowest_first_s), FIRST_FACTOR
        if is_saving:
            if not self.slowest_saving_s:
                return None
            slowest_s = max(slowest_s, self.slowest_saving_s)
        return max(SHORTEST_BOUND_S, factor * slowest_s) * 2.0**self.doublings

    def patience_s(self, unknown_s: float) -> float:
        """How long a member may take to leave its generation: what it computes between two
        collectives is less than a step.

        Args:
            unknown_s: the answer as long as nothing was measured.
        """
        if len(self.intervals) < FEWEST_INTERVALS:
            return unknown_s
        return max(SHORTEST_PATIENCE_S, *self.intervals, self.slowest_first_s)

"""The books: every node-second that the trace offers is entered under exactly one heading."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Heading = Literal["useful", "redone", "protecting", "recovering", "unused", "waiting"]

HEADINGS: Final[tuple[Heading, ...]] = (
    "useful",  # training that was never thrown away
    "redone",  # training that was thrown away
    "protecting",  # checkpoints, mirrors and rebalancing while nothing is broken
    "recovering",  # everybody stands still because of a failure or a change of size
    "unused",  # a node is there but this system cannot use it now
    "waiting",  # too few nodes to train at all
)


@dataclass(frozen=True, slots=True)
class Point:
    """The state of a run at one moment, for plots."""

    at_s: float
    alive: int
    training: int
    """Nodes that train right now."""
    useful_node_s: float
    """Useful work so far; falls when work is thrown away."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one model made of one trace."""

    model: str
    node_s: Mapping[Heading, float]
    """Node-seconds by heading; they add up to what the trace offered."""
    samples: float
    steps_tried: int
    steps_committed: int
    recoveries: Mapping[str, int]
    """How often each kind of recovery was used."""
    series: tuple[Point, ...]

    @property
    def goodput(self) -> float:
        """Useful work as a share of an undisturbed run on the trace's nodes."""
        offered = sum(self.node_s.values())
        return self.node_s["useful"] / offered if offered else 0.0

    def share(self, heading: Heading) -> float:
        """Share of the offered node-seconds under one heading."""
        offered = sum(self.node_s.values())
        return self.node_s[heading] / offered if offered else 0.0


class Ledger:
    """Books time as it passes. Work is first in the open step, then open, then durable."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.alive = 0
        self.step_s = 0.0
        """Seconds trained since the last step was committed."""
        self.steps_tried = self.steps_committed = 0
        self.recoveries: dict[str, int] = {}
        self.series: list[Point] = []
        self._spent: dict[Heading, float] = dict.fromkeys(HEADINGS, 0.0)
        self._in_step = self._open = 0.0

    def book(self, until_s: float, heading: Heading) -> None:
        """Everybody spends the time until a moment on one thing."""
        self._spent[heading] += self.alive * (until_s - self.now_s)
        self._advance(until_s, 0)

    def train(self, until_s: float, nodes: int, *, step_s: float, protecting: float = 0.0) -> None:
        """Train on some of the nodes, committing every step that ends.

        Args:
            until_s: train until then.
            nodes: nodes that train; the others are unused.
            step_s: length of a step; infinite if the caller ends steps itself.
            protecting: share of the time that goes into protection.
        """
        assert nodes <= self.alive
        seconds = until_s - self.now_s
        work = nodes * seconds
        self._spent["unused"] += (self.alive - nodes) * seconds
        self._spent["protecting"] += work * protecting
        self._in_step += work * (1 - protecting)
        self.step_s += seconds
        ended = int(self.step_s / step_s + 1e-9)
        if ended:
            left_s = max(0.0, self.step_s - ended * step_s)
            left = min(self._in_step, nodes * left_s * (1 - protecting))
            self._open += self._in_step - left
            self._in_step, self.step_s = left, left_s
            self.steps_tried += ended
            self.steps_committed += ended
        self._advance(until_s, nodes)

    def end_step(self) -> None:
        """Commit the step that is being trained."""
        self._open += self._in_step
        self._in_step = self.step_s = 0.0
        self.steps_tried += 1
        self.steps_committed += 1

    def drop_step(self, *, tried: bool | None = None) -> None:
        """Throw the open step away.

        Args:
            tried: whether to count it as an attempt; if not said, when it had been trained on.
        """
        self._spent["redone"] += self._in_step
        self.steps_tried += self.step_s > 0 if tried is None else tried
        self._in_step = self.step_s = 0.0

    def keep(self) -> None:
        """A durable checkpoint of everything committed so far."""
        self._spent["useful"] += self._open
        self._open = 0.0

    def roll_back(self) -> None:
        """Throw everything since the last durable checkpoint away."""
        self.drop_step()
        self._spent["redone"] += self._open
        self._open = 0.0

    def count(self, what: str) -> None:
        """Count one recovery of a kind."""
        self.recoveries[what] = self.recoveries.get(what, 0) + 1

    def close(self, model: str, node_samples_per_s: float) -> Outcome:
        """End of the trace: what is open now counts as useful, since the job would go on."""
        self._spent["useful"] += self._open + self._in_step
        self.series.append(Point(self.now_s, self.alive, 0, self._spent["useful"]))
        return Outcome(
            model=model,
            node_s=dict(self._spent),
            samples=self._spent["useful"] * node_samples_per_s,
            steps_tried=self.steps_tried,
            steps_committed=self.steps_committed,
            recoveries=dict(sorted(self.recoveries.items())),
            series=tuple(self.series),
        )

    def _advance(self, until_s: float, training: int) -> None:
        assert until_s >= self.now_s, f"time runs backwards: {until_s} after {self.now_s}"
        self.now_s = until_s
        useful = self._spent["useful"] + self._open + self._in_step
        point = Point(until_s, self.alive, training, useful)
        if len(self.series) > 1 and self._continues(point):
            self.series[-1] = point
        else:
            self.series.append(point)

    def _continues(self, point: Point) -> bool:
        """Whether a point only prolongs the line of the last two, at most a minute long."""
        before, last = self.series[-2:]
        same = (last.alive, last.training) == (point.alive, point.training)
        return same and point.at_s - before.at_s < 60

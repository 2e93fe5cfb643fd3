"""Play a trace to a model: the loop that all models share."""

from abc import ABC, abstractmethod
from typing import Protocol

from elasticmoe.simulator.rivals.job import Job
from elasticmoe.simulator.rivals.ledger import Ledger, Outcome
from elasticmoe.simulator.traces import Trace


class Model(Protocol):
    """A system with its assumptions. Every field of a model is an assumption."""

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        ...

    def run(self, trace: Trace, job: Job) -> Outcome:
        """Train a job on a trace."""
        ...


class Replay(ABC):
    """One job on one trace. Subclasses say what happens when nodes go, come, or a timer rings.

    The job is already running when the trace begins: the first nodes cost nothing.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.ledger = Ledger()
        self.alive: list[str] = []
        """Nodes that are there, oldest first."""
        self.members: list[str] = []
        """Nodes the job trains on; empty while it cannot train."""
        self.busy_until_s = 0.0
        """The job stands still until then."""
        self.protecting = 0.0
        """Share of training time that goes into protection."""

    @abstractmethod
    def start(self) -> None:
        """Choose the members from the first nodes."""

    @abstractmethod
    def on_loss(self, lost: frozenset[str]) -> None:
        """Nodes are gone; `alive` no longer holds them, `members` still does."""

    @abstractmethod
    def on_join(self) -> None:
        """New nodes are in `alive`."""

    @abstractmethod
    def next_timer_s(self) -> float:
        """Moment at which `on_timer` wants to be called; infinite: never."""

    @abstractmethod
    def on_timer(self) -> None:
        """The moment of `next_timer_s` has come."""

    def step_s(self) -> float:
        """Length of a step now."""
        return self.job.step_s

    @property
    def now_s(self) -> float:
        """The present moment."""
        return self.ledger.now_s

    def pause(self, seconds: float) -> None:
        """Stand still from now on, whatever was going on before."""
        self.busy_until_s = self.now_s + seconds

    def advance(self, until_s: float) -> None:
        """Book the time until a moment at which nothing happens before."""
        while self.now_s < until_s:
            if not self.members:
                self.ledger.book(until_s, "waiting")
            elif self.now_s < self.busy_until_s:
                self.ledger.book(min(until_s, self.busy_until_s), "recovering")
            else:
                self.ledger.train(
                    until_s,
                    len(self.members),
                    step_s=self.step_s(),
                    protecting=self.protecting,
                )

    def play(self, trace: Trace, model: str) -> Outcome:
        """Play the whole trace."""
        self.ledger.now_s = self.busy_until_s = trace.start_s
        for number, event in enumerate(trace.events):
            while (timer_s := self.next_timer_s()) <= event.at_s:
                self.advance(timer_s)
                self.on_timer()
            self.advance(event.at_s)
            if event.kind == "add":
                self.alive += event.nodes
            else:
                self.alive = [node for node in self.alive if node not in event.nodes]
            self.ledger.alive = len(self.alive)
            if number == 0:
                self.start()
            elif event.kind == "add":
                self.on_join()
            else:
                self.on_loss(frozenset(event.nodes))
        return self.ledger.close(model, self.job.node_samples_per_s)

"""A run as its watcher knows it: folded from events, read by the display."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from elasticmoe.client import JobEvent
from elasticmoe.report.history import History, StepRecord


@dataclass(slots=True)
class Progress:
    """What is known of a running job."""

    name: str
    total_steps: int
    step_tokens: int
    """Tokens of one step."""
    history: History = field(default_factory=History)
    layers: list[Mapping[str, Any]] = field(default_factory=list)
    """Balance of each MoE layer in the newest step, as `LayerMetrics` in plain data."""
    workers: list[Mapping[str, Any]] = field(default_factory=list)
    """{worker, pid, node} of those that live."""
    began_s: float | None = None
    """Time of the first event."""
    newest: int = 0
    """Number of the newest event."""

    def take(self, event: JobEvent) -> None:
        """Fold one event."""
        self.newest = event.number
        if self.began_s is None:
            self.began_s = event.at_s
        if event.kind == "workers":
            self.workers = list(event.fields["workers"])
        elif event.kind == "step":
            self.history.add(StepRecord.from_fields(event.at_s, event.fields))
            self.layers = list(event.fields["metrics"].get("layers", ()))
        elif event.kind == "end":
            self.workers = []

    @property
    def step(self) -> int:
        """The newest committed step."""
        last = self.history.last
        return last.step if last else 0

    @property
    def loss(self) -> float | None:
        """Of the newest committed step."""
        last = self.history.last
        return last.loss if last else None

    @property
    def tokens_per_s(self) -> float:
        """Over the newest steps; 0 before there are two."""
        return self.history.steps_per_s() * self.step_tokens

    @property
    def eta_s(self) -> float | None:
        """Time to the end at the present speed."""
        speed = self.history.steps_per_s()
        return (self.total_steps - self.step) / speed if speed > 0 else None

    def since_begin_s(self, at_s: float) -> float:
        """A time as seconds of this run."""
        return at_s - self.began_s if self.began_s is not None else 0.0

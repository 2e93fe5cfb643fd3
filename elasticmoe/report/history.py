"""The course of a run, folded from its event lines.

The same fold serves the live display, the plot and the summary, so they cannot disagree.
Shapes: L = MoE layers, E = experts.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

STEPS_FILE: Final = "steps.jsonl"
"""One line per committed step, in the job's directory."""
SPEED_WINDOW: Final = 20
"""Steps over which the displayed speed is averaged."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One committed step."""

    step: int
    at_s: float
    generation: int
    seconds: float
    loss: float
    learning_rate: float
    gradient_norm: float
    max_violation_L: tuple[float, ...]
    """MaxVio of each MoE layer."""

    @classmethod
    def from_fields(cls, at_s: float, fields: Mapping[str, Any]) -> "StepRecord":
        """Read the fields of a `step` line; figures that a line lacks are zero or empty."""
        metrics = fields.get("metrics", {})
        return cls(
            step=fields["step"],
            at_s=at_s,
            generation=fields["generation"],
            seconds=fields["seconds"],
            loss=fields["loss"],
            learning_rate=metrics.get("learning_rate", 0.0),
            gradient_norm=metrics.get("gradient_norm", 0.0),
            max_violation_L=tuple(max_violation(row) for row in metrics.get("counts", ())),
        )


def max_violation(counts_E: Sequence[int]) -> float:
    """Largest load relative to even load, minus one; 0 is perfect balance.

    Source: Wang et al. 2024, arXiv:2408.15664.

    >>> max_violation([30, 10, 20])
    0.5
    """
    total = sum(counts_E)
    return max(counts_E) * len(counts_E) / total - 1 if total else 0.0


@dataclass(slots=True)
class History:
    """Committed steps by number (a redone step replaces the one it redoes) and faults."""

    steps: dict[int, StepRecord] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)
    """(last committed step, sentence) of each loss of a worker or node."""
    recoveries: int = 0
    """Generations after the first."""
    redone_steps: int = 0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))
    """(time, step) of the newest lines."""

    @property
    def last(self) -> StepRecord | None:
        """The newest committed step."""
        return next(reversed(self.steps.values()), None)

    def add_step(self, record: StepRecord) -> None:
        """Take in a committed step; steps beyond it belong to an abandoned timeline."""
        last = self.last
        if last is not None and record.step <= last.step:
            self.redone_steps += last.step - record.step + 1
            for step in range(record.step, last.step + 1):
                self.steps.pop(step, None)
            self.recent.clear()
        if last is not None and record.generation > last.generation:
            self.recoveries += 1
        self.steps[record.step] = record
        self.recent.append((record.at_s, record.step))

    def steps_per_s(self) -> float:
        """Committed steps per second over the newest steps; 0 before there are two."""
        if len(self.recent) < 2:
            return 0.0
        (start_s, first), (end_s, last) = self.recent[0], self.recent[-1]
        return (last - first) / (end_s - start_s) if end_s > start_s else 0.0


def read_history(job_dir: Path) -> History:
    """Fold a job's step file; a torn last line, left by a crash, is ignored."""
    history = History()
    path = job_dir / STEPS_FILE
    if not path.exists():
        return history
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            plain = json.loads(line)
            history.add_step(StepRecord.from_fields(plain["at_s"], plain))
    return history

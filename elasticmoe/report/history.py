"""The course of a run, folded from its `step` lines.

One fold serves the live display, the plot and the summary, so they cannot disagree.
Shapes: L = MoE layers, E = experts.
"""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

STEPS_FILE: Final = "steps.jsonl"
"""The `step` lines of a job's event stream, in its directory; see `elasticmoe.client`."""
SPEED_WINDOW: Final = 20
"""Steps over which the displayed speed is averaged."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One committed step."""

    step: int
    at_s: float
    generation: int
    loss: float
    max_violation_L: tuple[float, ...]
    """MaxVio of each MoE layer: the fullest expert's load over the mean, minus one."""

    @classmethod
    def from_fields(cls, at_s: float, fields: Mapping[str, Any]) -> "StepRecord":
        """Read the fields of a `step` line."""
        layers = fields.get("metrics", {}).get("layers", ())
        return cls(
            step=fields["step"],
            at_s=at_s,
            generation=fields["generation"],
            loss=fields["loss"],
            max_violation_L=tuple(layer["max_violation"] for layer in layers),
        )


@dataclass(slots=True)
class History:
    """Committed steps by number; steps that are taken again replace the ones given up."""

    steps: dict[int, StepRecord] = field(default_factory=dict)
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))
    """(time, step) of the newest lines of this generation."""
    reformed: list[int] = field(default_factory=list)
    """Step after which the gang was formed again, ascending."""

    @property
    def last(self) -> StepRecord | None:
        """The newest committed step."""
        return next(reversed(self.steps.values()), None)

    def add(self, record: StepRecord) -> None:
        """Take in a committed step. Steps from it on that are known belong to a past that a
        rollback gave up."""
        last = self.last
        if last is not None and record.step <= last.step:
            for step in range(record.step, last.step + 1):
                self.steps.pop(step, None)
            self.reformed = [step for step in self.reformed if step < record.step]
        if last is not None and record.generation != last.generation:
            self.recent.clear()
            if record.generation > last.generation and record.step > 1:
                self.reformed.append(record.step - 1)
        self.steps[record.step] = record
        self.recent.append((record.at_s, record.step))

    def steps_per_s(self) -> float:
        """Committed steps per second over the newest steps; 0 before there are two."""
        if len(self.recent) < 2:
            return 0.0
        (start_s, first), (end_s, last) = self.recent[0], self.recent[-1]
        return (last - first) / (end_s - start_s) if end_s > start_s else 0.0


def read_history(job_dir: Path) -> History:
    """Fold a job's step file; a torn line, left by a crash, is passed over."""
    history = History()
    path = job_dir / STEPS_FILE
    if not path.exists():
        return history
    with path.open("rb") as lines:
        for line in lines:
            try:
                plain = json.loads(line)
            except ValueError:
                continue
            history.add(StepRecord.from_fields(plain["at_s"], plain))
    return history

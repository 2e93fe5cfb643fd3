"""Journals made by hand: sound ones, and ones with a fault planted."""

from dataclasses import MISSING, fields
from typing import Any

from chaos.checkers import Evidence, StepLine
from chaos.conductor import Strike
from elasticmoe.controller.decisions import Break, Form, Recover, Stop, Train
from elasticmoe.controller.record import Decided, Progress, Record
from elasticmoe.messages.events import CheckpointSealed, JobSubmitted, TermBegan

SAMPLES = 8
"""Of a step."""
_FILLERS: dict[str, Any] = {
    "at_s": 0.0, "reason": "a test", "evidence": (), "timeline": 0, "plan": {}, "workers": (0, 1),
    "store_node": "a", "checkpoint": None, "first_command": 1, "redo_steps": 0, "refused": (),
    "attempt": 1, "retry_at_s": 0.0, "seconds": 1.0, "loss": 1.0, "instructed": 0, "version": "0",
    "uri": "u", "bytes": 1, "inventory": {}, "checkpoints": [],
}  # fmt: skip


def make(kind: type[Any], **given: Any) -> Any:
    """An event or a decision; what is not given is filled with something harmless."""
    filled = {
        field.name: _FILLERS[field.name]
        for field in fields(kind)
        if field.name not in given and field.default is MISSING and field.default_factory is MISSING
    }
    return kind(**filled, **given)


class Run:
    """A run that is told step by step; every line of it can be falsified."""

    def __init__(self, steps: int = 100) -> None:
        self.records: list[Record] = []
        self.lines: list[StepLine] = []
        self.strikes: list[Strike] = []
        self.at_s = 0.0
        spec = {
            "name": "a-test",
            "schedule": {"steps": steps},
            "batch": {"global_samples": SAMPLES},
            "workers": {"replicas": 2, "min": 1, "max": 2},
        }
        self.tell(make(JobSubmitted, at_s=0.0, spec=spec))
        self.tell(make(TermBegan, at_s=0.0, term=1))

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.records, self.lines, tuple(self.strikes))

    def tell(self, body: Any) -> "Run":
        """One more record; a decision follows the newest event."""
        if type(body).__module__.endswith("decisions"):
            after = max(r.number for r in self.records if not isinstance(r.body, Decided))
            body = Decided(after, body)
        self.records.append(Record(len(self.records), body))
        return self

    def form(self, generation: int, step: int) -> "Run":
        self.at_s += 0.1
        self.tell(make(Form, at_s=self.at_s, generation=generation, step=step))
        return self.tell(make(Train, at_s=self.at_s, generation=generation))

    def train(self, generation: int, first: int, last: int, first_sample: int = -1) -> "Run":
        """Steps are committed and told."""
        start = (first - 1) * SAMPLES if first_sample < 0 else first_sample
        self.tell(
            make(
                Progress, at_s=self.at_s, generation=generation, first_step=first, last_step=last,
                first_sample=start, end_sample=start + (last - first + 1) * SAMPLES,
            )
        )  # fmt: skip
        for step in range(first, last + 1):
            self.at_s += 0.02
            self.lines.append(StepLine(step, generation, 1.0, self.at_s))
        return self

    def strike(self, **changes: Any) -> "Run":
        """A worker is killed, and answered a little later."""
        last = self.lines[-1]
        plain: dict[str, Any] = {
            "number": len(self.strikes) + 1,
            "nemesis": "kill_worker",
            "victims": ("worker 1",),
            "evidence": "pid 7 ended after SIGKILL",
            "answer": "generation",
            "step": last.step,
            "generation": last.generation,
            "term": 1,
            "phase": "training",
            "at_s": self.at_s,
            "lines": len(self.lines),
            "answered_s": 0.2,
        }
        self.strikes.append(Strike(**{**plain, **changes}))
        return self

    def broken(self, generation: int, step: int, rung: str = "replace") -> "Run":
        self.at_s += 0.01
        self.tell(make(Break, at_s=self.at_s, generation=generation))
        return self.tell(make(Recover, at_s=self.at_s, rung=rung, step=step))

    def stopped(self, step: int) -> "Run":
        self.tell(make(CheckpointSealed, at_s=self.at_s, step=step))
        return self.tell(make(Stop, at_s=self.at_s))


def sound_run() -> Run:
    """Ten steps, a killed worker, ten more steps, the end."""
    run = Run().form(1, 0).train(1, 1, 10).tell(make(CheckpointSealed, step=10))
    run.strike().broken(1, 10).form(2, 10).train(2, 11, 20)
    return run.stopped(20)

"""A running job as its own files tell it: the journal and `steps.jsonl`, read as they grow.

Files, not HTTP, because they are there while the controller is not, and because a decision is in
the journal before it takes effect: whoever wants to strike in the middle of a recovery sees it here
first.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from elasticmoe.controller.decisions import (
    Break,
    Drain,
    Finish,
    Form,
    GiveUp,
    Protect,
    Recover,
    Regroup,
    Stop,
    Train,
    Wait,
)
from elasticmoe.controller.journal import TornLineError, decode_record
from elasticmoe.controller.record import Decided, Progress, Record
from elasticmoe.messages.events import (
    CheckpointSealed,
    JobSubmitted,
    NodeLost,
    NodeUp,
    Reported,
    TermBegan,
    WorkerDied,
)
from elasticmoe.messages.worker import WorkerReady

_PHASES: Final[dict[type[Any], str]] = {
    Break: "breaking",
    Recover: "gathering",
    Regroup: "gathering",
    Form: "forming",
    Train: "training",
    Wait: "waiting",
    Drain: "draining",
    Finish: "over",
    Stop: "over",
    GiveUp: "over",
}


class Tail:
    """The whole lines of a growing file, each once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Bytes of the lines that were returned."""

    def lines(self) -> list[bytes]:
        """What was added since the last call; a last line without its end is left for later."""
        try:
            if self.path.stat().st_size <= self.offset:
                return []
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return whole.splitlines(keepends=True)


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that said it was ready, and is not known to be dead."""

    number: int
    pid: int
    node: str


class LiveJob:
    """What the files say right now; `poll` brings it up to date."""

    def __init__(self, job_dir: Path) -> None:
        self.job_dir = job_dir
        self.steps = Tail(job_dir / "steps.jsonl")
        self.phase = "new"
        self.entered: Counter[str] = Counter()
        """How often each phase was entered; short ones may be over before anybody looks."""
        self.term = 0
        self.committed = 0
        """Newest step of the newest generation that was reported."""
        self.reported_generation = 0
        """Of that step."""
        self.lines = 0
        """Committed steps reported so far, redone ones again."""
        self.form: Form | None = None
        self._homed: dict[str, Any] | None = None
        """The newest plan of which all homes have their state: a gang trains by it."""
        self._protect: Protect | None = None
        """Further homes that the gang was told to copy state to."""
        self.workers: dict[int, LiveWorker] = {}
        self.domains: dict[str, str] = {}
        """Failure domain of every node that ever came up."""
        self.sealed: dict[int, str] = {}
        """URIs of sealed checkpoints by step; some may be deleted by now."""
        self.submitted: JobSubmitted | None = None
        self.rungs: list[str] = []
        """Of the recoveries so far."""
        self._terms: dict[str, Tail] = {}

    @property
    def generation(self) -> int:
        """The newest that was opened."""
        return self.form.generation if self.form else 0

    @property
    def members(self) -> tuple[LiveWorker, ...]:
        """Living workers of the newest generation, by their position in the plan."""
        numbers = self.form.workers if self.form else ()
        return tuple(self.workers[number] for number in numbers if number in self.workers)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return (self.job_dir / "outcome.json").exists()

    def stage_of(self, worker: int) -> int | None:
        """The pipeline stage of a worker of the newest generation."""
        if self.form is None or worker not in self.form.workers:
            return None
        position = self.form.workers.index(worker)
        stages = self.form.plan["stages"]
        return next(s for s, stage in enumerate(stages) if position in stage["members"])

    def only_homes(self, node: str) -> int:
        """Units that have all their homes on one node: lost with it.

        A generation that forms is still copying to new homes, so the one before counts, without
        those of its workers that have died since.
        """
        plan = self._homed or (self.form.plan if self.form else None)
        if plan is None:
            return 0
        members = plan["members"]
        alive = {at for at, member in enumerate(members) if member["worker"] in self.workers}
        there = {at for at, member in enumerate(members) if member["node"] == node}
        return sum(alive & set(homes) <= there for homes in plan["homes"])

    def poll(self) -> None:
        """Read what is new."""
        for record in self._new_records():
            self._take(record)
        for line in self.steps.lines():
            plain = json.loads(line)
            self.lines += 1
            if plain["generation"] >= self.reported_generation:
                self.reported_generation = plain["generation"]
                self.committed = plain["step"]

    def wait_for(self, condition: str, seconds: float, poll_s: float = 0.01) -> bool:
        """Poll until an attribute is true; returns whether it became so in time."""
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            self.poll()
            if getattr(self, condition):
                return True
            time.sleep(poll_s)
        return False

    def _new_records(self) -> Iterator[Record]:
        directory = self.job_dir / "journal"
        if not directory.is_dir():
            return
        for path in sorted(directory.iterdir()):
            if not path.name.isdecimal():
                continue
            if path.name not in self._terms:
                self._terms[path.name] = Tail(path)
            tail = self._terms[path.name]
            is_header = tail.offset == 0
            for line in tail.lines():
                if not is_header:
                    try:
                        yield decode_record(line)
                    except TornLineError:  # a crash's last words
                        continue
                is_header = False

    def _take(self, record: Record) -> None:
        body = record.body
        if isinstance(body, Decided):
            self._decided(body.decision)
            return
        match body:
            case JobSubmitted():
                self.submitted = body
            case TermBegan():
                self.term = body.term
            case NodeUp():
                self.domains[body.node] = body.domain
            case NodeLost():
                self.workers = {n: w for n, w in self.workers.items() if w.node != body.node}
            case WorkerDied():
                self.workers.pop(body.worker, None)
            case CheckpointSealed():
                self.sealed[body.step] = body.uri
            case Progress():
                self._went_on(body)
            case Reported(report=WorkerReady() as ready):
                self.workers[ready.worker] = LiveWorker(ready.worker, ready.pid, body.node)

    def _went_on(self, progress: Progress) -> None:
        """Once a step shows that a command took effect, the new homes have their state."""
        asked = self._protect
        if asked is None or progress.generation != asked.generation:
            return
        if progress.instructed >= asked.number:
            self._homed, self._protect = asked.plan, None

    def _decided(self, decision: Any) -> None:
        if isinstance(decision, Form):
            self.form, self._protect = decision, None
        elif isinstance(decision, Protect):
            self._protect = decision
        elif isinstance(decision, Recover):
            self.rungs.append(decision.rung)
        elif isinstance(decision, Train):
            self._homed = self.form.plan if self.form else None
        phase = _PHASES.get(type(decision))
        if phase is not None:
            self.phase = phase
            self.entered[phase] += 1

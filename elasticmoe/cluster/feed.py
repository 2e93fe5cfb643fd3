"""What people and dashboards are told while a job runs: numbered lines, and metrics."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Final

from elasticmoe.controller.avoided import shunned_nodes
from elasticmoe.controller.decisions import Break, Recover, Regroup
from elasticmoe.controller.protocols import Journal
from elasticmoe.controller.record import Decided, Record
from elasticmoe.controller.state import JobState, WorkerStatus
from elasticmoe.controller.story import Story
from elasticmoe.messages.events import (
    CheckpointLost,
    CheckpointSealed,
    NodeLeaving,
    NodeLost,
    Reported,
    WorkerDied,
    WorkerSilent,
)
from elasticmoe.messages.worker import StepDone, WorkerLeaving, WorkerReady
from elasticmoe.telemetry.log import get_log
from elasticmoe.telemetry.metrics import Metrics

log = get_log(__name__)

MAX_LINES: Final = 20_000
"""Older lines are forgotten here; the journal has them."""
LINES_PER_TERM: Final = 1_000_000_000
"""Every controller numbers its lines from its own range, so that a follower misses none."""


class Feed:
    """Numbered lines of JSON that any number of threads can follow."""

    def __init__(self, term: int) -> None:
        self._next = (term - 1) * LINES_PER_TERM + 1
        self._lines: deque[bytes] = deque(maxlen=MAX_LINES)
        self._changed = threading.Condition()
        self.is_over = False

    def add(self, kind: str, at_s: float, **fields: Any) -> bytes:
        """Append a line, and return it; `end` is the last one."""
        with self._changed:
            plain = {"n": self._next, "at_s": at_s, "kind": kind, **fields}
            line = json.dumps(plain).encode() + b"\n"
            self._lines.append(line)
            self._next += 1
            self.is_over = self.is_over or kind == "end"
            self._changed.notify_all()
        return line

    def after(self, number: int, timeout_s: float) -> list[tuple[int, bytes]]:
        """Lines behind a number, with theirs; waits for one, and is empty if none came."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while self._next <= number + 1 and not self.is_over:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return []
            first = self._next - len(self._lines)
            skip = max(number + 1 - first, 0)
            return list(enumerate(islice(self._lines, skip, None), first + skip))


@contextmanager
def _telling() -> Iterator[None]:
    """Whatever goes wrong in telling people about the job must not stop it."""
    try:
        yield
    except Exception:
        log.exception("not_told")


class Narrator:
    """Turns what the controller records into lines and metrics. Decides nothing."""

    def __init__(self, term: int, steps_file: Path) -> None:
        """
        Args:
            term: of the controller that speaks.
            steps_file: gets every `step` line, for whoever comes later.
        """
        self.feed = Feed(term)
        self.metrics = Metrics()
        self._steps_file = steps_file
        self._story = Story()
        self._workers: dict[int, dict[str, Any]] = {}
        self._newest_step = 0
        self._outage: tuple[float, str] | None = None
        self._ignored = 0

    def catch_up(self, records: list[Record]) -> None:
        """Take in what earlier controllers recorded, without telling it again."""
        for record in records:
            self._story.tell(record)

    def recorded(self, record: Record) -> None:
        """A record was written."""
        with _telling():
            self._recorded(record)

    def _recorded(self, record: Record) -> None:
        sentence = self._story.tell(record)
        if sentence is not None:
            self.feed.add("story", sentence.at_s, text=sentence.text)
        if isinstance(record.body, Decided):
            self._decided(record.body.decision)
        elif isinstance(record.body, Reported) and isinstance(record.body.report, WorkerReady):
            report = record.body.report
            self._workers[report.worker] = {**asdict(report), "node": record.body.node}
            self._tell_workers(record.body.at_s)
        elif isinstance(record.body, Reported) and isinstance(record.body.report, WorkerLeaving):
            self.metrics.add("elasticmoe_faults_total", kind="worker_leaving")
        elif isinstance(record.body, WorkerSilent):
            self.metrics.add("elasticmoe_faults_total", kind="worker_silent")
        elif isinstance(record.body, NodeLeaving):
            self.metrics.add("elasticmoe_faults_total", kind="node_leaving")
        elif isinstance(record.body, WorkerDied):
            self.metrics.add("elasticmoe_faults_total", kind="worker_died")
            if self._workers.pop(record.body.worker, None):
                self._tell_workers(record.body.at_s)
        elif isinstance(record.body, NodeLost):
            self.metrics.add("elasticmoe_faults_total", kind="node_lost")
            self._workers = {
                number: worker
                for number, worker in self._workers.items()
                if worker["node"] != record.body.node
            }
            self._tell_workers(record.body.at_s)
        elif isinstance(record.body, CheckpointSealed):
            self.metrics.add("elasticmoe_checkpoints_total", outcome="sealed")
            self.metrics.set("elasticmoe_checkpoint_step", record.body.step)
            self.metrics.set("elasticmoe_checkpoint_bytes", record.body.bytes)
        elif isinstance(record.body, CheckpointLost):
            self.metrics.add("elasticmoe_checkpoints_total", outcome="lost")

    def step_done(self, at_s: float, done: StepDone) -> None:
        """A step was committed."""
        with _telling():
            self._step_done(at_s, done)

    def _step_done(self, at_s: float, done: StepDone) -> None:
        line = self.feed.add(
            "step",
            at_s,
            step=done.step,
            generation=done.generation,
            seconds=done.seconds,
            loss=done.loss,
            metrics=done.metrics,
        )
        with self._steps_file.open("ab") as steps:
            steps.write(line)
        if done.step <= self._newest_step:
            self.metrics.add("elasticmoe_repeated_steps_total")
        self._newest_step = max(self._newest_step, done.step)
        self.metrics.set("elasticmoe_generation", done.generation)
        known = {name: value for name, value in done.metrics.items() if value is not None}
        self.metrics.observe_step(done.step, seconds=done.seconds, loss=done.loss, report=known)
        if self._outage is not None and self._outage[1]:
            since_s, rung = self._outage
            self.metrics.observe("elasticmoe_recovery_duration_seconds", at_s - since_s, rung=rung)
            self._outage = None

    def notice(self, at_s: float, text: str) -> None:
        """Something that changes no decision."""
        self.feed.add("story", at_s, text=text)

    def metrics_text(self, state: JobState) -> bytes:
        """All metrics in Prometheus' text format."""
        for status in WorkerStatus:
            count = sum(worker.status is status for worker in state.workers.values())
            self.metrics.set("elasticmoe_workers", count, state=status.value)
        self.metrics.set("elasticmoe_avoided_nodes", len(shunned_nodes(state)))
        self.metrics.add("elasticmoe_ignored_events_total", state.tally.ignored - self._ignored)
        self._ignored = state.tally.ignored
        return self.metrics.to_text()

    def _decided(self, decision: Any) -> None:
        if isinstance(decision, Break):
            self._outage = self._outage or (decision.at_s, "")
        elif isinstance(decision, Recover):
            since_s = self._outage[0] if self._outage else decision.at_s
            self._outage = (since_s, decision.rung)
            self.metrics.add("elasticmoe_recoveries_total", rung=decision.rung)
        elif isinstance(decision, Regroup):
            self.metrics.add("elasticmoe_regroupings_total")

    def _tell_workers(self, at_s: float) -> None:
        workers = [self._workers[number] for number in sorted(self._workers)]
        self.feed.add("workers", at_s, workers=workers)


class Told:
    """A journal whose records are told to people at once.

    That may be before they can be written: what a controller decides, and tells, while the disk is
    full is neither on record nor done, and the next controller does not know of it.
    """

    def __init__(self, journal: Journal, records: list[Record], narrator: Narrator) -> None:
        """
        Args:
            records: what was read from it; nobody is told of these.
        """
        self._journal, self._records, self._narrator = journal, records, narrator
        narrator.catch_up(records)

    def read(self) -> list[Record]:
        """See `Journal.read`; the records that were given."""
        records, self._records = self._records, []
        return records

    def append(self, record: Record) -> None:
        """See `Journal.append`."""
        self._journal.append(record)
        self._narrator.recorded(record)

    def sync(self) -> None:
        """See `Journal.sync`."""
        self._journal.sync()

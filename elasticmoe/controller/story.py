"""The journal as sentences for people."""

from collections.abc import Iterable
from dataclasses import dataclass

from elasticmoe.controller.capacity import gathered
from elasticmoe.controller.decisions import (
    Break,
    Decision,
    Drain,
    Fence,
    Finish,
    Gather,
    GiveUp,
    Protect,
    Quarantine,
    Recover,
    Stay,
    Stop,
    TakeCheckpoint,
    Train,
    Wait,
)
from elasticmoe.controller.record import Decided, Entry, Progress, Record
from elasticmoe.controller.wording import command_failed, listed, plural
from elasticmoe.messages.events import (
    CheckpointLost,
    CheckpointSealed,
    CommandFailed,
    JobSubmitted,
    NodeLost,
    NodeUp,
    Reported,
    StopAsked,
    TermBegan,
)
from elasticmoe.messages.worker import CheckpointFailed


@dataclass(frozen=True, slots=True)
class Sentence:
    """One line of the story."""

    at_s: float
    text: str


class Story:
    """Tells one record after the other; a fault and its cure are one line, told at its end."""

    def __init__(self) -> None:
        self._nodes: dict[str, int] = {}
        self._unsaved: set[tuple[int, int]] = set()
        self._in_outage = False
        self._protect: Protect | None = None

    def tell(self, record: Record) -> Sentence | None:
        """What a record says to people; none for details."""
        if isinstance(record.body, Decided):
            decision = record.body.decision
            text = self._decision(decision)
            return Sentence(decision.at_s, text) if text else None
        text = self._entry(record.body)
        return Sentence(record.body.at_s, text) if text else None

    def _entry(self, entry: Entry) -> str | None:
        match entry:
            case Progress():
                return self._progress(entry)
            case JobSubmitted():
                return _submitted(entry)
            case TermBegan():
                return f"a new controller took over (term {entry.term})" if entry.term > 1 else None
            case NodeUp():
                known = self._nodes.get(entry.node)
                self._nodes[entry.node] = entry.capacity
                places = plural(entry.capacity, "worker")
                return None if known == entry.capacity else f"{_node(entry)}: room for {places}"
            case NodeLost():
                self._nodes.pop(entry.node, None)
                return f"node {entry.node} was lost ({entry.evidence})"
            case CheckpointSealed():
                return f"checkpoint of step {entry.step} saved ({entry.bytes / 1e6:.1f} MB)"
            case CheckpointLost():
                return _unsaved(entry.step, entry.reason)
            case Reported(report=CheckpointFailed() as report):
                key = (report.generation, report.step)
                told, self._unsaved = key in self._unsaved, self._unsaved | {key}
                why = f"worker {report.worker}: {report.message}"
                return None if told else _unsaved(report.step, why)
            case CommandFailed():
                return command_failed(entry)
            case StopAsked():
                return f"{entry.by} asked to stop"
        return None

    def _progress(self, entry: Progress) -> str | None:
        told = (self._restored(entry), _skipped(entry))
        return "; ".join(filter(None, told)) or None

    def _restored(self, entry: Progress) -> str | None:
        begun = self._protect
        if begun is None or entry.instructed < begun.number:
            return None
        self._protect = None
        took_s = (entry.arrivals[0] if entry.arrivals else entry.at_s) - begun.at_s
        return f"protection restored after {took_s:.2f} s"

    def _decision(self, decision: Decision) -> str | None:
        match decision:
            case Break():
                self._in_outage, self._protect = True, None
            case Gather():
                return None if self._in_outage else gathered(decision)
            case Train():
                self._in_outage = False
                return decision.reason
            case Wait():
                self._in_outage = False
                return decision.reason
            case Recover():
                self._in_outage = True
                return decision.reason if decision.attempt > 1 else None
            case Protect():
                self._protect = decision
                return f"restoring protection: {decision.reason}"
            case Drain(purpose="grow"):
                return f"growing: {decision.reason}"
            case TakeCheckpoint():
                return f"taking a checkpoint: {decision.reason}"
            case Fence() | Finish() | Stop() | Stay() | Quarantine():
                return decision.reason
            case GiveUp():
                return f"gave up: {decision.reason}"
        return None


def story(records: Iterable[Record]) -> list[str]:
    """The whole story, each line with the seconds since the job was submitted."""
    teller = Story()
    sentences = [told for told in map(teller.tell, records) if told is not None]
    begin_s = sentences[0].at_s if sentences else 0.0
    return [f"{told.at_s - begin_s:9.2f} s  {told.text}" for told in sentences]


def _submitted(entry: JobSubmitted) -> str:
    workers = entry.spec["workers"]
    steps = plural(entry.spec["schedule"]["steps"], "step")
    found = entry.checkpoints
    start = f", from the checkpoint of step {found[-1]['step']}" if found else ""
    return (
        f"job {entry.spec['name']}: {steps} on {plural(workers['replicas'], 'worker')} "
        f"({workers['min']} at least){start}"
    )


def _node(entry: NodeUp) -> str:
    where = "" if entry.domain in ("", entry.node) else f" in {entry.domain}"
    return f"node {entry.node}{where} is up"


def _skipped(entry: Progress) -> str | None:
    if not entry.skipped:
        return None
    steps = f"step{'' if len(entry.skipped) == 1 else 's'} {listed(entry.skipped)}"
    return f"{steps} changed no weights: not finite, or the loss rose beyond its bound"


def _unsaved(step: int, why: str) -> str:
    return f"the checkpoint of step {step} could not be written ({why}); training goes on"

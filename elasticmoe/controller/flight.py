"""Flight records: every recovery as one trace, read from the journal alone.

A flight begins with the first sign of a fault and ends with the first step committed afterwards (or
with the job). It holds the evidence, what each worker did last, what survived, the decisions with
their reasons, and spans: how long each part took, and for whom.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from elasticmoe.controller.decisions import Break, Decision, Form, Recover, Train, Wait
from elasticmoe.controller.record import Entry, Progress, Record, turns
from elasticmoe.controller.wording import described
from elasticmoe.messages.events import NodeLost, Reported, WorkerDied, WorkerSilent
from elasticmoe.messages.worker import Copies, GangFormed, WorkerParked, WorkerReady

ONLY_DECIDED: Final = ("failed", "stalled", "command", "stuck")
"""Signs of a fault that are no event of their own in the journal, or one that says less."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time."""

    name: str
    """`park`, `decide`, `start`, `form`, `form: groups`, ..., `first step`."""
    lane: str
    """Whose time it was: `controller`, `worker 3`, `gang`."""
    start_s: float
    end_s: float


@dataclass(slots=True)
class Flight:
    """One recovery, from its first sign on."""

    number: int
    """Counted from 1 within the job."""
    began_s: float
    evidence: list[str] = field(default_factory=list)
    """What was seen, in the order in which it was seen."""
    last_done: dict[int, str] = field(default_factory=dict)
    """Per worker: phase and collective that it was in."""
    copies: dict[int, str] = field(default_factory=dict)
    """Per worker: what its vault holds."""
    decisions: list[tuple[float, str, str]] = field(default_factory=list)
    """Time, kind and reason of each."""
    spans: list[Span] = field(default_factory=list)
    generation: int = 0
    """The one that trained again; 0: none did."""
    rung: str = ""
    step: int = 0
    """Committed steps that it went on from."""
    ended_s: float = 0.0


class FlightRecorder:
    """Takes the journal's records in order; a finished flight comes out of `take`."""

    def __init__(self) -> None:
        self._flight: Flight | None = None
        self._count = 0
        self._broken_s = self._recover_s = self._form_s = self._train_s = 0.0
        self._generation = 0

    @property
    def open(self) -> Flight | None:
        """The recovery that is not over yet."""
        return self._flight

    def take(self, entry: Entry, decisions: Iterable[Decision]) -> Flight | None:
        """Take in what happened and what was decided upon it."""
        finished = self._absorb(entry)
        for decision in decisions:
            self._decide(entry, decision)
        return finished

    def _absorb(self, entry: Entry) -> Flight | None:
        flight = self._flight
        if flight is None:
            return None
        match entry:
            case Reported(report=WorkerParked() as report):
                self._span("park", f"worker {report.worker}", self._broken_s, entry.at_s)
                self._note(report.copies, f"worker {report.worker} parked: {report.reason}")
            case WorkerDied():
                self._note(entry.copies, f"worker {entry.worker} died: {entry.evidence}")
            case WorkerSilent():
                self._note(None, f"worker {entry.worker} is silent: {entry.evidence}")
            case NodeLost():
                self._note(None, f"node {entry.node} was lost: {entry.evidence}")
            case Reported(report=WorkerReady() as report):
                self._span("start", f"worker {report.worker}", self._broken_s, entry.at_s)
            case Reported(report=GangFormed() as report) if report.generation == flight.generation:
                self._formed(report, entry.at_s)
            case Progress() if entry.generation == flight.generation:
                begin_s = self._train_s or self._form_s
                # folded over some seconds: its first step ended after the average of its steps
                steps = entry.last_step - entry.first_step + 1
                first_s = min(entry.at_s, begin_s + entry.seconds / steps)
                self._span("first step", "gang", begin_s, first_s)
                flight.ended_s = first_s
                self._flight = None
                return flight
        return None

    def _decide(self, entry: Entry, decision: Decision) -> None:
        if isinstance(decision, Break) and self._flight is None:
            self._count += 1
            self._flight = Flight(self._count, entry.at_s)
            self._broken_s = self._recover_s = self._form_s = decision.at_s
            self._train_s = 0.0
            self._absorb(entry)
            self._span("notice", "controller", entry.at_s, decision.at_s)
        flight = self._flight
        if flight is None:
            return
        flight.decisions.append((decision.at_s, type(decision).__name__, decision.reason))
        if isinstance(decision, Break | Recover):
            told = [described((one,)) for one in decision.evidence if one.kind in ONLY_DECIDED]
            flight.evidence += [text for text in told if text not in flight.evidence]
        match decision:
            case Recover():
                flight.rung, flight.step = decision.rung, decision.step
                self._span("account for everybody", "controller", self._broken_s, decision.at_s)
                self._recover_s = decision.at_s
            case Wait():
                flight.rung, flight.step = "wait", decision.step
            case Form():
                flight.generation = decision.generation
                self._span("wait for newcomers", "controller", self._recover_s, decision.at_s)
                self._form_s = decision.at_s
            case Train():
                self._span("form", "gang", self._form_s, decision.at_s)
                self._train_s = flight.ended_s = decision.at_s

    def _formed(self, report: GangFormed, at_s: float) -> None:
        lane, end_s = f"worker {report.worker}", at_s
        for phase, seconds in reversed(report.seconds.items()):
            self._span(f"form: {phase}", lane, end_s - seconds, end_s)
            end_s -= seconds

    def _span(self, name: str, lane: str, start_s: float, end_s: float) -> None:
        assert self._flight is not None, "spans belong to a flight"
        self._flight.spans.append(Span(name, lane, start_s, max(start_s, end_s)))

    def _note(self, copies: Copies | None, evidence: str) -> None:
        flight = self._flight
        assert flight is not None, "evidence belongs to a flight"
        flight.evidence.append(evidence)
        if copies is not None:
            flight.last_done[copies.worker] = f"{copies.phase}, collective {copies.collective}"
            flight.copies[copies.worker] = _described(copies)


def find_flights(records: Iterable[Record]) -> list[Flight]:
    """All recoveries of a job, the one that is under way included."""
    recorder = FlightRecorder()
    found = [recorder.take(turn.entry, turn.decisions) for turn in turns(records)]
    flights = [flight for flight in found if flight is not None]
    return flights + ([recorder.open] if recorder.open is not None else [])


def trace_events(flight: Flight) -> dict[str, Any]:
    """A flight in the Trace Event Format, as Perfetto and chrome://tracing read it.

    Source: the "Trace Event Format" document of the Chromium project.
    """
    lanes = {lane: number for number, lane in enumerate(dict.fromkeys(_lanes(flight)))}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": lane}}
        for lane, number in lanes.items()
    ]
    events += [
        {
            "ph": "X",
            "name": span.name,
            "pid": 1,
            "tid": lanes[span.lane],
            "ts": 1e6 * (span.start_s - flight.began_s),
            "dur": 1e6 * (span.end_s - span.start_s),
        }
        for span in flight.spans
    ]
    events += [
        {
            "ph": "i",
            "s": "g",
            "name": kind,
            "pid": 1,
            "tid": 0,
            "ts": 1e6 * (at_s - flight.began_s),
            "args": {"reason": reason},
        }
        for at_s, kind, reason in flight.decisions
    ]
    about = {
        "rung": flight.rung,
        "step": flight.step,
        "generation": flight.generation,
        "evidence": flight.evidence,
        "last_done": {f"worker {worker}": done for worker, done in flight.last_done.items()},
        "copies": {f"worker {worker}": held for worker, held in flight.copies.items()},
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def describe_flight(flight: Flight) -> list[str]:
    """A flight as lines for people: milliseconds from the first sign."""

    def when(at_s: float) -> str:
        return f"{1e3 * (at_s - flight.began_s):9.1f} ms"

    took = f"{flight.ended_s - flight.began_s:.3f} s" if flight.ended_s else "not over"
    lines = [f"recovery {flight.number}: {flight.rung or 'undecided'}, {took}"]
    lines += [f"  saw       {text}" for text in flight.evidence]
    lines += [
        f"  worker {worker}: {done}; holds {flight.copies[worker]}"
        for worker, done in flight.last_done.items()
    ]
    lines += [f"  {when(at_s)}  {kind}: {reason}" for at_s, kind, reason in flight.decisions]
    for span in sorted(flight.spans, key=lambda span: (span.start_s, -span.end_s)):
        took_ms = 1e3 * (span.end_s - span.start_s)
        lines.append(f"  {when(span.start_s)}  {took_ms:8.1f} ms  {span.lane}: {span.name}")
    return lines


def _lanes(flight: Flight) -> list[str]:
    return ["controller", "gang", *sorted(span.lane for span in flight.spans)]


def _described(copies: Copies) -> str:
    whole = ", ".join(f"{len(units)} units at step {step}" for step, units in copies.whole)
    torn = f", {len(copies.torn)} torn" if copies.torn else ""
    prepared = f", prepared for {copies.prepared}" if copies.prepared else ""
    return f"{whole or 'nothing'}{torn}{prepared}"

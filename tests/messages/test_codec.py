"""Messages survive JSON; what is not a message is a clear error."""

import json
from dataclasses import dataclass

import pytest

from elasticmoe.messages.codec import build, by_name, decode, encode, from_line, to_line
from elasticmoe.messages.commands import Command, FormGeneration, SealCheckpoint, StartWorkers
from elasticmoe.messages.events import (
    CheckpointSealed,
    CommandFailed,
    Event,
    Reported,
    StopAsked,
)
from elasticmoe.messages.worker import (
    CheckpointPart,
    FormGang,
    GangEnded,
    StepDone,
    WorkerCommand,
    WorkerFailed,
    WorkerReport,
)

DONE = StepDone(2, 7, 0.5, 3.25, {"load": [[1, 2], [3, 4]]}, (24, 28), 1)
PART = CheckpointPart(2, 1, 7, [{"name": "a", "bytes": 3}], {"step": 7})


@pytest.mark.parametrize(
    "union, message",
    [
        (Event, Reported(1.5, "a", DONE)),
        (Event, Reported(1.5, "a", PART)),
        (Event, Reported(1.5, "a", GangEnded(2, 1, 7, instructed=3))),
        (Event, CommandFailed(1.0, "StartWorkers", "no fork", node="a", workers=(3, 4))),
        (Event, CheckpointSealed(1.0, 200, "c/200", 12, 3)),
        (Command, StartWorkers("a", (0, 1))),
        (Command, FormGeneration(1, {"members": []}, "a", None, 1, "why")),
        (Command, SealCheckpoint(7, 2, ({"name": "a"},), {"step": 7})),
        (WorkerCommand, FormGang(1, 0, {"x": 1}, "host", 80, None)),
        (WorkerReport, DONE),
    ],
)
def test_a_message_comes_back_equal(union: object, message: object) -> None:
    assert from_line(by_name(union), to_line(message)) == message


def test_a_message_inside_another_is_tagged_where_several_kinds_fit() -> None:
    plain = encode(Reported(1.0, "a", DONE))

    assert plain["report"]["kind"] == "StepDone"
    json.dumps(plain)


def test_every_message_class_can_be_described_as_json_and_has_its_own_name() -> None:
    kinds = [by_name(Event), by_name(Command), by_name(WorkerReport), by_name(WorkerCommand)]

    assert len(set().union(*kinds)) == sum(map(len, kinds))


def test_fields_with_defaults_may_be_missing_so_that_old_records_can_be_read() -> None:
    old = {"kind": "CheckpointSealed", "at_s": 1.0, "step": 5, "uri": "c/5", "bytes": 9}

    assert decode(by_name(Event), old) == CheckpointSealed(1.0, 5, "c/5", 9, generation=0)


@pytest.mark.parametrize(
    "line, complaint",
    [
        (b'{"kind":"Nonsense"}\n', "'Nonsense' is not one of"),
        (b"{}\n", "message kind None is not one of"),
        (b'{"kind":"StopAsked","at_s":1,"by":"me","why":2}\n', "StopAsked has no field why"),
        (b'{"kind":"StopAsked","at_s":1}\n', "StopAsked.*missing.*'by'"),
        (b"[1]\n", "a message is a JSON object, not list"),
        (b'{"kind":"Stop', "Unterminated string"),
    ],
)
def test_what_is_not_a_message_is_a_clear_error(line: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        from_line(by_name(Event), line)


def test_an_unknown_report_inside_an_event_is_a_clear_error() -> None:
    plain = encode(Reported(1.0, "a", WorkerFailed(1, 0, 3, "bad_data", "row 7")))
    plain["report"]["kind"] = "Song"

    with pytest.raises(ValueError, match="'Song' is not one of"):
        decode(by_name(Event), plain)


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    pair: tuple[int, str]
    maybe: Inner | None = None


def test_nested_data_is_built_by_its_types() -> None:
    outer = Outer((Inner((1, 2)), Inner(())), (3, "x"), Inner((4,)))

    plain = json.loads(to_line(outer))

    assert decode({"Outer": Outer}, plain) == outer
    assert build(Inner | None, None) is None


def test_events_keep_their_order_of_fields_in_text() -> None:
    assert to_line(StopAsked(1.0, "me")) == b'{"kind":"StopAsked","at_s":1.0,"by":"me"}\n'

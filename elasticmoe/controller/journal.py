"""The journal as lines of text: numbered JSON with a checksum in front.

A line is sixteen hexadecimal digits (of the rest's SHA-256), a blank, and one JSON object. The
pure half only: files are written by `cluster`.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final

from elasticmoe.controller.decisions import Decision
from elasticmoe.controller.record import Decided, Progress, Record
from elasticmoe.errors import StorageError
from elasticmoe.messages.codec import by_name, decode, encode
from elasticmoe.messages.events import Event

_EVENTS: Final = by_name(Event)
_DECISIONS: Final = by_name(Decision)


class JournalError(StorageError):
    """The journal is damaged before its end: replaying it would invent history."""

    code = "bad_journal"


class TornLineError(ValueError):
    """A line is cut short or damaged; at the end of a journal that is what a crash leaves."""


def encode_record(record: Record) -> bytes:
    """One line, its newline included."""
    body: dict[str, Any]
    match record.body:
        case Decided(after, decision):
            body = {"after": after, "decision": encode(decision)}
        case Progress():
            body = {"progress": encode(record.body)}
        case _:
            body = {"event": encode(record.body)}
    text = json.dumps({"number": record.number, **body}, separators=(",", ":")).encode()
    return b"%s %s\n" % (_checksum(text), text)


def decode_record(line: bytes) -> Record:
    """Inverse of `encode_record`.

    Raises:
        TornLineError: the line is cut short or damaged.
        ValueError: the line is whole, but holds nothing this version knows.
    """
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n"):
        raise TornLineError(f"{line[:16]!r}... has no end")
    if checksum != _checksum(text):
        raise TornLineError(f"checksum {checksum[:16]!r} does not match the text")
    plain = json.loads(text)
    if "decision" in plain:
        decision = decode(_DECISIONS, plain["decision"])
        return Record(plain["number"], Decided(plain["after"], decision))
    if "progress" in plain:
        return Record(plain["number"], decode({"Progress": Progress}, plain["progress"]))
    return Record(plain["number"], decode(_EVENTS, plain["event"]))


def decode_records(lines: Iterable[bytes], *, first_number: int = 0) -> list[Record]:
    """Read one term's lines; a torn last line is left out.

    Args:
        lines: each with its newline.
        first_number: the number that the first record must have.

    Raises:
        JournalError: a line before the last is damaged, a number is missing, or a newer version
            wrote something that this one does not know.
    """
    records: list[Record] = []
    torn: TornLineError | None = None
    for position, line in enumerate(lines, start=1):
        if torn is not None:
            raise JournalError(f"journal line {position - 1} is damaged, not just torn: {torn}")
        try:
            record = decode_record(line)
        except TornLineError as error:
            torn = error
            continue
        except (ValueError, KeyError) as error:
            raise JournalError(f"journal line {position} cannot be understood: {error}") from error
        expected = first_number + len(records)
        if record.number != expected:
            raise JournalError(
                f"journal line {position} has number {record.number}, expected {expected}"
            )
        records.append(record)
    return records


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()

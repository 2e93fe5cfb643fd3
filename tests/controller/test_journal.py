"""The journal as lines: what comes back is what went in, or a clear error."""

import pytest
from fake_world import World
from hypothesis import given
from hypothesis import strategies as st

from elasticmoe.controller.journal import (
    JournalError,
    TornLineError,
    decode_record,
    decode_records,
    encode_record,
)
from elasticmoe.controller.machine import replay
from elasticmoe.controller.record import Record
from elasticmoe.messages.events import TimePassed


@pytest.fixture(scope="module")
def world() -> World:
    made = World()
    made.on_step[12] = lambda: made.kill(1)
    made.submit()
    made.run()
    assert made.fired == ["kill 1"]
    return made


def test_a_job_is_rebuilt_from_its_journals_text(world: World) -> None:
    lines = [encode_record(record) for record in world.records]

    records = decode_records(lines)

    assert replay(records) == world.state
    assert [encode_record(record) for record in records] == lines


def test_a_torn_last_line_is_left_out(world: World) -> None:
    lines = [encode_record(record) for record in world.records]

    for cut in range(len(lines[-1])):
        assert len(decode_records([*lines[:-1], lines[-1][:cut]])) == len(lines) - 1


def test_damage_before_the_end_is_refused_with_its_place(world: World) -> None:
    lines = [encode_record(record) for record in world.records]
    lines[4] = lines[4].replace(b"a", b"b", 1)

    with pytest.raises(JournalError, match="line 5 is damaged, not just torn"):
        decode_records(lines)


def test_a_missing_line_is_refused(world: World) -> None:
    lines = [encode_record(record) for record in world.records]

    with pytest.raises(JournalError, match="line 4 has number 4, expected 3"):
        decode_records(lines[:3] + lines[4:])


def test_a_whole_line_of_a_newer_version_is_refused_and_not_taken_for_a_torn_one() -> None:
    line = encode_record(Record(0, TimePassed(1.0)))
    newer = line.replace(b"TimePassed", b"MoonPassed")
    with pytest.raises(TornLineError):
        decode_record(newer)

    from elasticmoe.controller import journal

    text = newer.partition(b" ")[2].rstrip(b"\n")
    signed = b"%s %s\n" % (journal._checksum(text), text)

    with pytest.raises(JournalError, match=r"cannot be understood.*MoonPassed"):
        decode_records([signed])


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_every_flipped_bit_is_noticed(position: int, bit: int) -> None:
    line = encode_record(Record(7, TimePassed(1.5)))
    flipped = bytearray(line)
    flipped[position % len(line)] ^= 1 << bit

    with pytest.raises(ValueError, match=r"."):
        decode_record(bytes(flipped))


def test_a_later_term_counts_on() -> None:
    line = encode_record(Record(12, TimePassed(1.0)))

    assert decode_records([line], first_number=12) == [Record(12, TimePassed(1.0))]

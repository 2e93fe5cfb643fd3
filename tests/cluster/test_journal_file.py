"""The journal on disk: terms, fences, torn ends."""

from pathlib import Path

import pytest

from elasticmoe.cluster.journal_file import FileJournal, read_journal
from elasticmoe.controller.journal import JournalError
from elasticmoe.controller.record import Record
from elasticmoe.messages.events import CheckpointAsked, StopAsked

RECORDS = [Record(0, StopAsked(1.0, "a")), Record(1, StopAsked(2.0, "b"))]


def test_a_new_term_reads_what_the_one_before_wrote(tmp_path: Path) -> None:
    first = FileJournal(tmp_path / "journal", run="x")
    for record in RECORDS:
        first.append(record)

    second = FileJournal(tmp_path / "journal", run="x")

    assert (first.term, second.term) == (1, 2)
    assert second.read() == RECORDS
    assert read_journal(tmp_path / "journal") == RECORDS


def test_what_a_replaced_controller_still_writes_does_not_count(tmp_path: Path) -> None:
    old = FileJournal(tmp_path / "journal", run="x")
    old.append(RECORDS[0])
    new = FileJournal(tmp_path / "journal", run="x")

    old.append(Record(1, CheckpointAsked(3.0)))
    new.append(RECORDS[1])

    assert FileJournal(tmp_path / "journal", run="x").read() == RECORDS


def test_a_torn_last_line_is_left_out_and_the_next_term_writes_its_number_again(
    tmp_path: Path,
) -> None:
    journal = FileJournal(tmp_path / "journal", run="x")
    journal.append(RECORDS[0])
    with (tmp_path / "journal" / "00000001").open("ab") as file:
        file.write(b"deadbeef {half a rec")

    after = FileJournal(tmp_path / "journal", run="x")
    after.append(RECORDS[1])

    assert read_journal(tmp_path / "journal") == RECORDS


def test_a_controller_that_died_before_its_first_line_is_passed_over(tmp_path: Path) -> None:
    FileJournal(tmp_path / "journal", run="x").append(RECORDS[0])
    (tmp_path / "journal" / "00000002").touch()

    third = FileJournal(tmp_path / "journal", run="x")

    assert third.term == 3
    assert third.read() == RECORDS[:1]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal", run="x")
    for record in RECORDS:
        journal.append(record)
    path = tmp_path / "journal" / "00000001"
    path.write_bytes(path.read_bytes().replace(b'"by":"a"', b'"by":"z"'))

    with pytest.raises(JournalError, match="damaged"):
        read_journal(tmp_path / "journal")


def test_a_new_run_in_the_same_directory_keeps_the_old_journal_beside_its_own(
    tmp_path: Path,
) -> None:
    FileJournal(tmp_path / "journal", run="x").append(RECORDS[0])

    fresh = FileJournal(tmp_path / "journal", run="y")

    assert fresh.term == 1
    assert fresh.read() == []
    assert read_journal(tmp_path / "journal-1") == RECORDS[:1]

from pathlib import Path

import pytest
from untrained import build_job

from elasticmoe.cluster.journal_file import FileJournal
from elasticmoe.controller.record import Record
from elasticmoe.errors import StorageError
from elasticmoe.messages.events import JobSubmitted
from elasticmoe.report.job_dir import checkpoint_store, read_outcome, read_spec
from elasticmoe.spec.load import to_data


def test_a_jobs_spec_is_read_from_its_journal(tmp_path: Path) -> None:
    job = build_job(tmp_path)
    journal = FileJournal(tmp_path / "run" / "journal", run="1")
    journal.append(Record(0, JobSubmitted(1.0, to_data(job), {}, [])))
    journal.close()

    assert read_spec(tmp_path / "run") == job


def test_a_directory_without_a_journal_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not the directory of a job"):
        read_spec(tmp_path)


def test_a_job_that_runs_has_no_outcome(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None


def test_checkpoints_of_a_moved_directory_are_found_beside_it(tmp_path: Path) -> None:
    store = checkpoint_store(build_job(tmp_path), tmp_path / "moved")

    assert store.root == str(tmp_path / "moved" / "checkpoints")

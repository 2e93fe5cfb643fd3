"""A job's directory as someone who comes later reads it."""

import json
import os
from pathlib import Path
from typing import Any

from elasticmoe.checkpoint.store import Store, open_store
from elasticmoe.cluster.journal_file import read_journal
from elasticmoe.controller.record import Record
from elasticmoe.errors import StorageError
from elasticmoe.messages.events import JobSubmitted
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data


def read_records(job_dir: Path) -> list[Record]:
    """A job's journal.

    Raises:
        StorageError: this is no job's directory, or the journal is damaged.
    """
    records = read_journal(job_dir / "journal")
    if not records:
        raise StorageError(f"{job_dir} is not the directory of a job: it holds no journal")
    return records


def read_spec(job_dir: Path) -> JobSpec:
    """What was asked of the job that lives, or lived, in a directory.

    Raises:
        StorageError: see `read_records`.
    """
    for record in read_records(job_dir):
        if isinstance(record.body, JobSubmitted):
            return parse_data(record.body.spec)
    raise StorageError(f"the journal in {job_dir} does not begin with a job")


def checkpoint_store(job: JobSpec, job_dir: Path | None = None) -> Store:
    """Where a job's checkpoints are.

    Args:
        job: its spec.
        job_dir: where the job's directory is now, if it may have been moved.
    """
    beside = os.path.join(job_dir or job.storage.dir, "checkpoints")
    return open_store(job.storage.checkpoints or beside)


def store_in(job_dir: Path) -> Store:
    """The checkpoints of the job in a directory; of imported weights, if no job ran there yet.

    Raises:
        StorageError: there is neither a job nor a checkpoint.
    """
    if (job_dir / "journal").is_dir():
        return checkpoint_store(read_spec(job_dir), job_dir)
    if (job_dir / "checkpoints").is_dir():
        return open_store(job_dir / "checkpoints")
    raise StorageError(f"{job_dir} is not the directory of a job: it holds no journal")


def read_outcome(job_dir: Path) -> dict[str, Any] | None:
    """How the job ended, as its controller wrote it; none: it has not."""
    path = job_dir / "outcome.json"
    if not path.exists():
        return None
    outcome: dict[str, Any] = json.loads(path.read_text())
    return outcome

"""A job's directory that holds a finished run: shown again, or set aside for a fresh one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticmoe.errors import SpecError
from elasticmoe.spec.job import JobSpec

if TYPE_CHECKING:
    from elasticmoe.report.summary import Summary


def finished_outcome(job: JobSpec) -> dict[str, Any] | None:
    """The outcome of this very job, if its directory holds all of its steps; else none.

    A changed model, batch or corpus is no finished run: whoever submits it is told the difference.

    Raises:
        StorageError: the directory cannot be read.
    """
    from elasticmoe.report.job_dir import checkpoint_store, read_outcome, read_spec

    job_dir = Path(job.storage.dir)
    outcome = read_outcome(job_dir)
    if outcome is None or outcome["outcome"] != "done" or outcome["steps"] < job.schedule.steps:
        return None
    from elasticmoe.checkpoint.read import find_checkpoints
    from elasticmoe.cluster.jobs import with_absolute_paths

    asked, ran = with_absolute_paths(job), read_spec(job_dir)
    if (asked.model, asked.data, asked.batch) != (ran.model, ran.data, ran.batch):
        return None
    steps = find_checkpoints(checkpoint_store(job))
    return outcome if steps and steps[-1] >= job.schedule.steps else None


def read_summary(job_dir: Path) -> "Summary | None":
    """What was shown when the run ended; none: nobody waited for it."""
    from elasticmoe.report.summary import SUMMARY_FILE, Summary

    path = job_dir / SUMMARY_FILE
    return Summary(**json.loads(path.read_text())) if path.exists() else None


def set_aside(job: JobSpec) -> Path | None:
    """Rename a job's directory to the first free `DIR.1`, `DIR.2`, ...; none: there is none yet.

    Raises:
        StorageError: a running job has it.
        SpecError: its checkpoints lie elsewhere and would stay.
    """
    from elasticmoe.cluster.directory import lock_directory

    job_dir = Path(job.storage.dir)
    if job.storage.checkpoints is not None:
        raise SpecError(
            (
                f"storage.checkpoints = {job.storage.checkpoints!r}: --fresh moves only "
                "storage.dir; choose another place for both",
            )
        )
    if not job_dir.exists():
        return None
    with lock_directory(job_dir):
        number = 1
        while (kept := job_dir.with_name(f"{job_dir.name}.{number}")).exists():
            number += 1
        return job_dir.rename(kept)

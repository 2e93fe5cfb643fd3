"""The Python face: train a job and get its summary. The command line is built on it too."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elasticmoe.client import JobClient, JobEvent, UnreachableError
from elasticmoe.cluster.jobs import JobHandle, submit, with_absolute_paths
from elasticmoe.errors import JobFailedError, SpecError
from elasticmoe.job_file import read_job
from elasticmoe.report.job_dir import read_outcome
from elasticmoe.report.summary import Summary, conclude
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data

Watch = Callable[[JobEvent], None]
"""Told every event of a job as it arrives."""


def train(
    job: JobSpec | Mapping[str, Any] | str | Path,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    watch: Watch | None = None,
) -> Summary:
    """Train a job to its end.

    Args:
        job: a spec, the same as plain data, or the path of a TOML or JSON file.
        overrides: `path=value`, as `--set` on the command line; not with a finished spec.
        address: of a Ray cluster; none: a Ray of its own on this machine.
        watch: told every event.

    Raises:
        SpecError: the job is wrong.
        JobFailedError: it ended without finishing.
        ElasticMoEError: it could not begin; see `cluster.jobs.submit`.
    """
    spec = as_spec(job, overrides)
    handle = submit(spec, address)
    outcome = follow(client_of(handle), handle.directory, watch)
    return finish(spec, outcome)


def as_spec(
    job: JobSpec | Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()
) -> JobSpec:
    """A spec from whatever describes a job.

    Raises:
        SpecError: it cannot be read, or is not a valid job.
    """
    if isinstance(job, JobSpec):
        if overrides:
            raise SpecError(("overrides need a file or plain data, not a finished JobSpec",))
        return job
    if isinstance(job, Mapping):
        return parse_data(job, overrides)
    return read_job(Path(job), overrides)


def client_of(handle: JobHandle) -> JobClient:
    """Follow and ask a job that was just submitted."""
    return JobClient(handle.url, handle.token, handle.directory)


def follow(client: JobClient, job_dir: Path, watch: Watch | None, after: int = 0) -> dict[str, Any]:
    """Tell every event to `watch` until the job ends; return its outcome.

    Raises:
        ClusterError: the controller is out of reach, and has left no outcome.
    """
    try:
        for event in client.events(after):
            if watch is not None:
                watch(event)
            if event.kind == "end":
                return dict(event.fields["summary"])
    except UnreachableError:
        outcome = read_outcome(job_dir)
        if outcome is not None:  # it ended while nobody could listen
            return outcome
        raise
    raise AssertionError("a stream ends with `end`")


def finish(job: JobSpec, outcome: Mapping[str, Any]) -> Summary:
    """Write the summary of a job that ended.

    Raises:
        JobFailedError: it ended without finishing; the summary is written all the same.
    """
    summary = conclude(with_absolute_paths(job), outcome)
    if summary.outcome == "failed":
        log = summary.first_error_log or str(Path(summary.directory) / "logs")
        first = f"first error: {summary.first_error}\n" if summary.first_error else ""
        raise JobFailedError(
            f"the job ended at step {summary.steps}: {summary.reason}\n{first}logs: {log}"
        )
    return summary

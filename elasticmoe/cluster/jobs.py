"""Submit a job: on this machine with a Ray of its own, or on a cluster that is there."""

import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elasticmoe.cluster.directory import check_directory
from elasticmoe.cluster.forking import same_modules
from elasticmoe.cluster.run import DEFAULT_ENTRY, Run, error_from
from elasticmoe.errors import ClusterError
from elasticmoe.spec.job import JobSpec


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A running job."""

    url: str
    """Of the controller's HTTP server; `elasticmoe.client.JobClient` takes it."""
    token: str
    directory: Path
    """`storage.dir`: journal, logs, `outcome.json` at the end."""
    pids: dict[str, int]
    """`controller`, and `supervisor` for a run on this machine."""


def submit(
    job: JobSpec,
    address: str | None = None,
    *,
    entry: str = DEFAULT_ENTRY,
    patience_s: float = 30.0,
) -> JobHandle:
    """Start a job and return once it runs; it goes on when this process ends.

    Args:
        job: what to train.
        address: `HOST:PORT` of a Ray cluster, or `auto`; none: a Ray of its own is started on
            this machine and ends with the job.
        entry: the training process as `module:function`; for tests.
        patience_s: how long a node trains on without hearing from the controller.

    Raises:
        StorageError: the job's directory is read-only, full, or taken by a running job.
        DataError: the training data cannot be read.
        CheckpointError: the directory's checkpoint is of another model, other data or batch.
        PlanError: the model does not fit the memory that is there.
        ClusterError: Ray does not start, cannot be reached, or is of another version.
    """
    check_directory(Path(job.storage.dir))
    job_json = with_absolute_paths(job).model_dump_json()
    run = Run(secrets.token_hex(4), job_json, entry, ours=address is None, patience_s=patience_s)
    if address is None:
        return _submit_here(run)
    return _submit_to(run, address)


def with_absolute_paths(job: JobSpec) -> JobSpec:
    """The same job for processes that work in other directories."""
    sources = [
        source.model_copy(update={"path": _absolute(source.path)}) for source in job.data.sources
    ]
    checkpoints = job.storage.checkpoints
    places = {
        "dir": os.path.abspath(job.storage.dir),
        "checkpoints": None if checkpoints is None else _absolute(checkpoints),
    }
    return job.model_copy(
        update={
            "data": job.data.model_copy(update={"sources": tuple(sources)}),
            "storage": job.storage.model_copy(update=places),
        }
    )


def _absolute(path_or_uri: str) -> str:
    return path_or_uri if "://" in path_or_uri else os.path.abspath(path_or_uri)


def _submit_here(run: Run) -> JobHandle:
    run.log_dir.mkdir(exist_ok=True)
    log = run.log_dir / "supervisor.log"
    reading, writing = os.pipe()
    with log.open("ab") as output, os.fdopen(reading, "rb") as answers:
        process = subprocess.Popen(
            [sys.executable, "-m", "elasticmoe.cluster.supervisor", str(writing)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(writing,),
            start_new_session=True,  # a closed terminal or Ctrl-C does not reach it
            env={**os.environ, **same_modules()},
        )
        os.close(writing)
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(run.to_text().encode())
        line = answers.readline()
    if not line:
        raise ClusterError(f"the run did not start; {log} says why")
    answer = json.loads(line)
    if "error" in answer:
        raise error_from(answer["error"])
    return _handle(run, answer["service"], {"supervisor": process.pid})


def _submit_to(run: Run, address: str) -> JobHandle:
    import ray
    from ray.exceptions import RayError

    from elasticmoe.cluster.connect import connect_to_ray, unwrapped
    from elasticmoe.cluster.controller_actor import start_controller

    connect_to_ray(address)
    controller = start_controller(run)
    try:
        service = ray.get(controller.begin.remote())
    except RayError as error:
        ray.kill(controller, no_restart=True)
        raise unwrapped(error) from error
    return _handle(run, service, {})


def _handle(run: Run, service: dict[str, Any], pids: dict[str, int]) -> JobHandle:
    pids = {**service["pids"], **pids}
    return JobHandle(service["url"], service["token"], run.directory, pids)

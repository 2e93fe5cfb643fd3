"""A job that runs already in the directory of the one to be trained: watched again, not refused."""

from pathlib import Path

from elasticmoe.client import JobClient, UnreachableError
from elasticmoe.errors import ClusterError
from elasticmoe.spec.job import JobSpec


def running_job(job: JobSpec) -> tuple[JobClient, int] | None:
    """The very job that is asked for, if it runs: who to ask about it, and its newest step.

    A terminal that was closed, or a `train` that was killed, leaves the job running. Whoever
    wants another job in this directory is told by `submit` that it is taken.

    Raises:
        ClusterError: it runs, and its controller refuses.
    """
    from elasticmoe.cluster.jobs import with_absolute_paths
    from elasticmoe.report.job_dir import read_spec

    directory = Path(job.storage.dir)
    try:
        client = JobClient.of_directory(directory)
    except ClusterError:
        return None  # nobody says that one runs
    try:
        status = client.status()
    except UnreachableError:
        return None  # it left without a word, or is being restarted: the directory's lock knows
    if read_spec(directory) != with_absolute_paths(job):
        return None
    return client, int(status["step"])

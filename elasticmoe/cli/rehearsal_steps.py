"""Real steps of a rehearsal: real workers, by the same way as `train` takes, for a few steps."""

import shutil
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Final, Self

from elasticmoe.cli.display import View, open_view
from elasticmoe.cli.progress import Progress
from elasticmoe.cli.watching import ask_to_stop, watch_job
from elasticmoe.client import JobEvent
from elasticmoe.errors import JobFailedError, PlanError, SpecError, StorageError
from elasticmoe.plan.types import Inventory
from elasticmoe.report.rehearsal import RealSteps
from elasticmoe.spec.job import JobSpec

LEAVE_S: Final = 30.0
"""A run that has ended takes its time to go: Ray shuts down."""
LOOK_S: Final = 0.1


def check_fits_here(job: JobSpec, inventory: Inventory) -> None:
    """Make sure that this machine can take real steps of a job on one node.

    Raises:
        PlanError: not enough memory; says how much it takes.
        SpecError: not enough GPUs.
    """
    import torch

    from elasticmoe.cluster.clerk import check_memory
    from elasticmoe.cluster.memory import available_bytes

    workers, name = job.workers.replicas, socket.gethostname()
    gpus = torch.cuda.device_count() if job.workers.device != "cpu" else 0
    if 0 < gpus < workers:
        raise SpecError(
            (
                f"workers.device = {job.workers.device!r}: {workers} workers, one per stage or "
                f"home, need a GPU each and this machine has {gpus}; "
                "--set workers.device=cpu, or only simulate: --steps 0",
            )
        )
    node = {
        "node": name, "domain": name, "capacity": workers, "memory_bytes": available_bytes(),
    }  # fmt: skip
    try:
        check_memory(job, inventory, [node])
    except PlanError as error:
        raise PlanError(
            f"no real steps here, even with {workers} workers: {error} "
            "Or rehearse on a larger machine, or only simulate: --steps 0"
        ) from None


def take_steps(
    job: JobSpec, inventory: Inventory, steps: int, full_workers: int, *, plain: bool
) -> RealSteps:
    """Train a job in its directory until so many steps are committed, and stop it.

    Args:
        job: the smallest layout; its directory is removed afterwards unless it failed.
        full_workers: workers of the full size.
        plain: lines instead of a live display.

    Raises:
        JobFailedError: it ended by itself before, or was interrupted.
        ElasticMoEError: it could not begin; see `cluster.jobs.submit`.
    """
    from elasticmoe.api import client_of
    from elasticmoe.cluster.jobs import submit

    _clear(Path(job.storage.dir))
    handle = submit(job)
    client = client_of(handle)
    tokens = job.batch.global_samples * job.data.seq_len
    progress = Progress(job.name, total_steps=steps, step_tokens=tokens)
    view = StopAfter(
        open_view(progress, plain=plain, local=False),
        steps,
        lambda: ask_to_stop(client, handle.directory),
    )
    outcome = watch_job(client, handle.directory, view)
    _check_taken(outcome, progress, steps, handle.directory)
    _remove_when_over(handle.directory)
    return _figures(job, inventory, progress, view.seen_bytes, full_workers)


class StopAfter:
    """A view that looks at the workers' memory after so many steps, and has the job end."""

    def __init__(self, view: View, steps: int, stop: Callable[[], None]) -> None:
        self.progress = view.progress
        self.seen_bytes = 0
        """Largest resident memory of any worker; 0: not known."""
        self._view, self._steps, self._stop = view, steps, stop
        self._asked = False

    def take(self, event: JobEvent) -> None:
        """See `View`."""
        self._view.take(event)
        if self.progress.step >= self._steps and not self._asked:
            self._asked = True
            pids = [int(worker["pid"]) for worker in self.progress.workers]
            self.seen_bytes = max((largest_memory(pid) for pid in pids), default=0)
            self._stop()

    def say(self, text: str) -> None:
        """See `View`."""
        self._view.say(text)

    def __enter__(self) -> Self:
        self._view.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._view.__exit__(kind, error, trace)


def largest_memory(pid: int) -> int:
    """Bytes that a process of this machine had in memory at most; 0: it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields.get("VmHWM", "0").split()[0]) * 1024


def _check_taken(
    outcome: dict[str, Any] | None, progress: Progress, steps: int, directory: Path
) -> None:
    if outcome is not None and outcome["outcome"] != "failed" and progress.step >= steps:
        return
    why = "it was interrupted" if outcome is None else outcome["first_error"] or outcome["reason"]
    raise JobFailedError(
        f"after {progress.step} of {steps} real steps: {why}; journal and logs are in {directory}"
    )


def _clear(directory: Path) -> None:
    """Remove what a rehearsal that failed has left; one that runs is an error."""
    from elasticmoe.cluster.directory import lock_directory

    if directory.exists():
        lock_directory(directory).close()
        shutil.rmtree(directory)


def _remove_when_over(directory: Path) -> None:
    from elasticmoe.cluster.directory import lock_directory

    deadline_s = time.monotonic() + LEAVE_S
    while time.monotonic() < deadline_s:
        try:
            lock_directory(directory).close()
            break
        except StorageError:
            time.sleep(LOOK_S)
    shutil.rmtree(directory, ignore_errors=True)


def _figures(
    job: JobSpec, inventory: Inventory, progress: Progress, seen_bytes: int, full_workers: int
) -> RealSteps:
    from elasticmoe.plan.make import make_plan
    from elasticmoe.plan.memory import plan_memory
    from elasticmoe.plan.types import Member

    workers = job.workers.replicas
    members = tuple(Member(number, "here", "here") for number in range(workers))
    plan = make_plan(job, inventory, members)
    records = list(progress.history.steps.values())
    times = [later.at_s - one.at_s for one, later in pairwise(records)]
    step_s = median(times)
    return RealSteps(
        workers=workers,
        stages=len(plan.stages),
        steps=len(records),
        step_s=step_s,
        slowest_step_s=max(times),
        first_loss=records[0].loss,
        last_loss=records[-1].loss,
        planned_bytes=int(plan_memory(job, inventory, plan).total_M.max()),
        seen_bytes=seen_bytes,
        full_step_s=step_s * workers / full_workers,
    )

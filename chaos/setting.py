"""The stage for a scenario: cluster, disk, clock and job are put up, and taken down again."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from chaos.clock import Clock
from chaos.cluster import Cluster
from chaos.errors import ChaosError
from chaos.jobs import make_job
from chaos.live import LiveJob
from chaos.proc import kill_if_there
from chaos.scenario import Scenario
from chaos.world import World
from elasticmoe.cluster.jobs import submit
from elasticmoe.spec.job import JobSpec

LEAVE_S: Final = 15.0
"""What has ended by itself takes its time to go: Ray shuts down."""


@contextmanager
def set_stage(scenario: Scenario, out: Path) -> Iterator[tuple[World, JobSpec]]:
    """Start a scenario's job with everything around it; all of it ends with the context.

    Raises:
        ChaosError: something that the scenario needs is not to be had here.
    """
    job_dir = out / "job"
    with ExitStack() as stack:
        clock = Clock(out / "clock") if scenario.skewable_clocks else None
        environment = clock.environment if clock else {}
        disk = None
        if scenario.disk_mb is not None:
            disk = stack.enter_context(small_disk(out / "disk", scenario.disk_mb))
        job = make_job(scenario, job_dir, disk / "checkpoints" if disk else None)
        cluster = None
        if scenario.cluster is not None:
            wanted = scenario.cluster
            cluster = Cluster(
                wanted.nodes, wanted.workers, out / "cluster", environment,
                durable_head=wanted.durable_head,
            )  # fmt: skip
            stack.callback(cluster.close)
        stack.callback(end_run, job_dir)
        with clock.for_children() if clock else nullcontext():
            if cluster is not None:
                cluster.submit(job)
            else:
                submit(job)
        yield World(job_dir, LiveJob(job_dir), cluster, disk, clock), job


@contextmanager
def small_disk(at: Path, megabytes: int) -> Iterator[Path]:
    """A file system of a given size; what is on it afterwards is kept in its place.

    Raises:
        ChaosError: not permitted here.
    """
    if os.geteuid() != 0:
        raise ChaosError("a small disk needs root: it is a tmpfs that is mounted")
    at.mkdir(parents=True)
    size = f"size={megabytes}m"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(at)], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise ChaosError(f"a small disk cannot be mounted: {done.stderr.strip()}")
    kept = at.with_name(f"{at.name}.kept")
    try:
        yield at
    finally:
        (at / "filler").unlink(missing_ok=True)
        shutil.copytree(at, kept)
        subprocess.run(["umount", "--lazy", str(at)], check=True)
        at.rmdir()
        kept.rename(at)


def end_run(job_dir: Path) -> None:
    """End a job's processes: those of a job that was given up on, at once."""
    world = World.attach(job_dir)
    deadline_s = time.monotonic() + (LEAVE_S if world.live.is_over else 0.0)
    while (left := world.run_pids()) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    for pid in left:
        kill_if_there(pid)

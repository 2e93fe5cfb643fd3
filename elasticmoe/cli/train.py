"""`train`, `attach` and `stop`: running jobs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from elasticmoe.cli.display import open_view
from elasticmoe.cli.finished import finished_outcome, read_summary, set_aside
from elasticmoe.cli.progress import Progress
from elasticmoe.cli.running import running_job
from elasticmoe.cli.saying import say
from elasticmoe.cli.summary import show_summary
from elasticmoe.cli.watching import how_to_return, interrupts_deferred, watch_job
from elasticmoe.client import JobClient
from elasticmoe.errors import SpecError
from elasticmoe.job_file import read_job
from elasticmoe.spec.job import JobSpec

JobFile = Annotated[Path, typer.Argument(help="A TOML or JSON job file.", metavar="JOB.toml")]
JobDir = Annotated[Path, typer.Argument(help="A job's storage.dir.", metavar="JOBDIR")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace a field: --set workers.replicas=2", metavar="PATH=VALUE"),
]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of a live display.")]


def train_job(
    job: JobFile,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster, HOST:PORT or auto; else a Ray of its own starts here."),
    ] = None,
    plain: Plain = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew; what the directory holds is kept beside.")
    ] = False,
) -> None:
    """Train a job to its end, and show how it goes."""
    spec = read_job(job, overrides or [])
    check_data_is_packed(spec)
    if fresh:
        if kept := set_aside(spec):
            say(f"what {spec.storage.dir} held is now in {kept}")
    elif outcome := finished_outcome(spec):
        _show_finished(job, spec, outcome)
        return
    elif running := running_job(spec):
        _watch_again(spec, *running, plain=plain)
        return
    say(f"{spec.name}: starting {spec.workers.replicas} workers")
    from elasticmoe.api import client_of
    from elasticmoe.cluster.jobs import submit

    with interrupts_deferred() as pressed:
        handle = submit(spec, address)
    view = open_view(_progress_of(spec), plain=plain, local=address is None)
    outcome = watch_job(client_of(handle), handle.directory, view, interrupted=pressed())
    _conclude(spec, handle.directory, outcome)


def attach_to_job(job_dir: JobDir, plain: Plain = False) -> None:
    """Watch a job that runs already; Ctrl-C asks it to stop."""
    from elasticmoe.report.job_dir import read_spec

    client = JobClient.of_directory(job_dir)
    spec = read_spec(job_dir)
    view = open_view(_progress_of(spec), plain=plain, local=_is_here(client))
    _conclude(spec, job_dir, watch_job(client, job_dir, view))


def stop_job(job_dir: JobDir) -> None:
    """Ask a running job to write a checkpoint and end."""
    JobClient.of_directory(job_dir).stop()
    say(f"asked; the job in {job_dir} writes a checkpoint and ends")


def _watch_again(job: JobSpec, client: JobClient, step: int, *, plain: bool) -> None:
    job_dir = Path(job.storage.dir)
    say(
        f"{job.name} runs already and is at step {step} of {job.schedule.steps}: watching it again "
        "(Ctrl-C asks it to stop)"
    )
    view = open_view(_progress_of(job), plain=plain, local=_is_here(client))
    _conclude(job, job_dir, watch_job(client, job_dir, view))


def check_data_is_packed(job: JobSpec) -> None:
    """Make sure that every source is there.

    Raises:
        SpecError: names those that are not, and how to make them.
    """
    missing = [
        source.path
        for source in job.data.sources
        if not os.path.exists(os.path.join(source.path, "dataset.json"))
    ]
    if missing:
        raise SpecError(
            tuple(
                f"data.sources: {path} holds no packed text. Pack some: elasticmoe data pack "
                f"FILES --out {path}   (the standard library's sources, as the quickstart uses: "
                f"elasticmoe data pack --stdlib --out {path})"
                for path in missing
            )
        )


def _show_finished(file: Path, job: JobSpec, outcome: dict[str, object]) -> None:
    job_dir = Path(job.storage.dir)
    summary = read_summary(job_dir)
    if summary is None:
        _conclude(job, job_dir, outcome)
    else:
        show_summary(summary)
    say(
        f"{job_dir} holds this finished run already. To train anew and keep it beside: "
        f"elasticmoe train {file} --fresh   "
        f"To train longer: --set schedule.steps={2 * job.schedule.steps}"
    )


def _progress_of(job: JobSpec) -> Progress:
    tokens = job.batch.global_samples * job.data.seq_len
    return Progress(job.name, total_steps=job.schedule.steps, step_tokens=tokens)


def _is_here(client: JobClient) -> bool:
    return client.url.startswith("http://127.")


def _conclude(job: JobSpec, job_dir: Path, outcome: dict[str, object] | None) -> None:
    if outcome is None:
        say(how_to_return(job_dir))
        sys.exit(130)
    if outcome["outcome"] == "done":
        say("evaluating on held-out text")
    from elasticmoe.api import finish

    show_summary(finish(job, outcome))

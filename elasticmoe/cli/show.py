"""`plan`, `story`, `checkpoint` and `version`: look at something without starting anything."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from elasticmoe.cli.checking import make_directory
from elasticmoe.cli.saying import say
from elasticmoe.cli.train import JobDir, JobFile, Overrides
from elasticmoe.version import VERSION

checkpoint_app = typer.Typer(help="Look at a job's checkpoints.", no_args_is_help=True)


def show_plan(
    job: JobFile,
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers; else workers.replicas.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that the workers are spread over.")] = 1,
) -> None:
    """Print who would compute and keep what, with memory, traffic and what a loss would cost."""
    from elasticmoe.job_file import read_job
    from elasticmoe.model.inventory import build_inventory
    from elasticmoe.plan.describe import describe_plan
    from elasticmoe.plan.make import make_plan
    from elasticmoe.plan.types import Member

    spec = read_job(job, overrides or [])
    count = workers or spec.workers.replicas
    names = [f"node-{number * nodes // count}" for number in range(count)]
    members = tuple(Member(number, name, name) for number, name in enumerate(names))
    inventory = build_inventory(spec.model, spec.data.seq_len)
    for line in describe_plan(spec, inventory, make_plan(spec, inventory, members)):
        say(line)


def show_story(
    job_dir: JobDir,
    recoveries: Annotated[
        bool, typer.Option("--recoveries", help="Every recovery instead, in milliseconds.")
    ] = False,
    traces: Annotated[
        Path | None,
        typer.Option(help="Also write each recovery to this directory, for ui.perfetto.dev."),
    ] = None,
) -> None:
    """Tell what happened to a job, and why it did what it did."""
    from elasticmoe.controller.flight import describe_flight, find_flights, trace_events
    from elasticmoe.controller.story import story
    from elasticmoe.report.job_dir import read_records

    records = list(read_records(job_dir))
    flights = find_flights(records) if recoveries or traces else []
    for line in () if recoveries else story(records):
        say(line)
    for flight in flights if recoveries else ():
        for line in describe_flight(flight):
            say(line)
    if traces is not None:
        make_directory(traces, "--traces")
        for flight in flights:
            path = traces / f"recovery-{flight.number:04d}.json"
            path.write_text(json.dumps(trace_events(flight)))
        say(f"{len(flights)} traces written to {traces}")


@checkpoint_app.command("list")
def list_checkpoints(job_dir: JobDir) -> None:
    """List a job's checkpoints, oldest first."""
    from elasticmoe.checkpoint.read import find_checkpoints, open_checkpoint
    from elasticmoe.errors import CheckpointError
    from elasticmoe.report.job_dir import store_in

    store = store_in(job_dir)
    steps = find_checkpoints(store)
    for step in steps:
        try:
            manifest = open_checkpoint(store, step).manifest
        except CheckpointError as error:
            say(f"step {step:>8}  {error}")
            continue
        files = len(manifest.files)
        say(
            f"step {step:>8}  {manifest.num_bytes / 1e6:>10,.1f} MB  "
            f"{files:>3} files  generation {manifest.generation}"
        )
    if not steps:
        say(f"{store.uri} holds no checkpoint")


@checkpoint_app.command("verify")
def verify_checkpoints(
    job_dir: JobDir,
    step: Annotated[int | None, typer.Option(help="Only the checkpoint of this step.")] = None,
) -> None:
    """Check every byte of a job's checkpoints against its hash; 1 if any is damaged."""
    from elasticmoe.checkpoint.read import find_checkpoints, open_verified
    from elasticmoe.errors import CheckpointError
    from elasticmoe.report.job_dir import store_in

    store = store_in(job_dir)
    steps = find_checkpoints(store) if step is None else [step]
    if not steps:
        raise CheckpointError(f"{store.uri} holds no checkpoint")
    damaged = 0
    for number in steps:
        try:
            manifest = open_verified(store, number).manifest
            say(f"step {number:>8}  good, {manifest.num_bytes:,} bytes")
        except CheckpointError as error:
            damaged += 1
            say(f"step {number:>8}  DAMAGED: {error}")
    if damaged:
        sys.exit(1)


def show_version() -> None:
    """Print this version."""
    say(VERSION)

"""`rehearse`: the job at full size in the simulator, then some real steps of it, then a report."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from elasticmoe.cli.checking import (
    check_above_zero,
    make_directory,
    read_costs_file,
    read_trace_file,
)
from elasticmoe.cli.saying import console, say
from elasticmoe.cli.simulate import (
    ControllerMtbf,
    CostsFile,
    Domains,
    Mtbf,
    TraceFile,
    endless_job,
)
from elasticmoe.cli.train import JobFile, Overrides, Plain, check_data_is_packed
from elasticmoe.errors import ElasticMoEError, SpecError

if TYPE_CHECKING:
    from elasticmoe.cli.rehearsal_fleet import Fleet
    from elasticmoe.plan.types import Inventory
    from elasticmoe.report.rehearsal import RealSteps, Rehearsal, Simulated
    from elasticmoe.simulator.costs import Costs
    from elasticmoe.spec.job import JobSpec

LEAST_STEPS = 3
"""Fewer real steps say nothing about speed: the first one warms up."""
LEFT_OUT = "what the simulator leaves out, and all its other times: docs/simulator.md"

Steps = Annotated[int, typer.Option(help="Real steps on this machine, 3 or more; 0: none.")]
Seeds = Annotated[int, typer.Option(min=2, help="Simulated runs: the range is over them.")]
Nodes = Annotated[
    int | None, typer.Option(min=1, help="Nodes; else one for every 8 workers, at least 2.")
]
NodeGb = Annotated[
    float | None, typer.Option(help="Memory of a node in GB: no more workers there than fit.")
]
Hours = Annotated[
    float | None,
    typer.Option(help="Simulated time; else the job's, cut to some 10 failures or 20,000 steps."),
]
StepS = Annotated[
    float | None, typer.Option(help="Seconds of a step on the full cluster; else estimated.")
]
Out = Annotated[
    Path | None, typer.Option(help="Directory of the report; else STORAGE.DIR-rehearsal.")
]


def rehearse_job(
    job: JobFile,
    overrides: Overrides = None,
    steps: Steps = 20,
    seeds: Seeds = 8,
    seed: Annotated[int, typer.Option(min=0, help="The first; others follow it.")] = 0,
    nodes: Nodes = None,
    node_gb: NodeGb = None,
    domains: Domains = None,
    hours: Hours = None,
    mtbf: Mtbf = 24.0,
    controller_mtbf: ControllerMtbf = 0.0,
    trace: TraceFile = None,
    step_s: StepS = None,
    costs: CostsFile = None,
    out: Out = None,
    plain: Plain = False,
) -> None:
    """Simulate a job at full size, take real steps of it here, and say what to expect."""
    _check_steps(steps)
    rates_h = {"--mtbf": mtbf or None, "--controller-mtbf": controller_mtbf or None}
    check_above_zero({"--hours": hours, "--step-s": step_s, "--node-gb": node_gb, **rates_h})
    from elasticmoe.cli.rehearsal_fleet import Size, fleet_of_trace, fleet_with_rates, size_up
    from elasticmoe.job_file import read_job
    from elasticmoe.model.inventory import build_inventory
    from elasticmoe.report.rehearsal import Rehearsal, choose_hours, smallest_layout
    from elasticmoe.simulator.costs import Costs
    from elasticmoe.simulator.schedules import Rates

    spec, known = read_job(job, overrides or []), read_costs_file(costs)
    recorded = None if trace is None else read_trace_file(trace)
    directory = out or Path(f"{spec.storage.dir.rstrip('/')}-rehearsal")
    inventory = build_inventory(spec.model, spec.data.seq_len)
    small, cut = smallest_layout(spec, directory / "scratch")
    if steps:
        _check_real_steps(small, inventory)

    measured_s = known.step_s if known.step_s != Costs().step_s else None
    size = Size(nodes, node_gb, domains, step_s or measured_s)
    full, machines = size_up(spec, inventory, size)
    rates = Rates(mtbf * 3600.0, controller_mtbf_s=controller_mtbf * 3600.0)
    fleet = fleet_with_rates(machines, rates)
    if recorded is not None:
        fleet = fleet_of_trace(recorded, machines[0].capacity, str(trace))
    longest = min(full.job_hours, fleet.longest_hours)
    full = replace(full, hours=hours or choose_hours(longest, full.step_s, fleet.failures_per_hour))
    known = replace(known, step_s=full.step_s)
    make_directory(directory)
    endless = endless_job(spec, None, full.hours, known)
    simulated = _simulate(endless, inventory, fleet, known, full.hours, range(seed, seed + seeds))

    real, problems = _take_steps(small, inventory, steps, full.workers, plain=plain)
    assumed = (fleet.assumed, *_assumed_costs(costs), LEFT_OUT)
    rehearsal = Rehearsal(spec.name, full, simulated, real, cut, assumed, problems)
    _conclude(rehearsal, directory)


def _simulate(
    job: "JobSpec",
    inventory: "Inventory",
    fleet: "Fleet",
    costs: "Costs",
    hours: float,
    seeds: range,
) -> "Simulated":
    """Run the full size once per seed; each is told, because large ones take a while."""
    from elasticmoe.report.rehearsal import sum_up
    from elasticmoe.simulator.run import Scenario, simulate

    length_s = hours * 3600.0
    outcomes = {}
    for number, seed in enumerate(seeds, start=1):
        faults = fleet.draw(length_s, seed)
        scenario = Scenario(fleet.machines, faults, seed, costs, length_s, must_end=False)
        outcomes[seed] = simulate(job, inventory, scenario)
        say(
            f"simulated {number} of {len(seeds)}: goodput {outcomes[seed].account.goodput:.2%}, "
            f"{len(outcomes[seed].fired)} faults"
        )
    return sum_up(outcomes)


def _take_steps(
    small: "JobSpec", inventory: "Inventory", steps: int, full_workers: int, *, plain: bool
) -> tuple["RealSteps | None", tuple[str, ...]]:
    """What the real steps showed, or why they failed: the report says that too."""
    from elasticmoe.cli.rehearsal_steps import take_steps

    if not steps:
        return None, ()
    say(f"{steps} real steps on {small.workers.replicas} workers of this machine")
    try:
        return take_steps(small, inventory, steps, full_workers, plain=plain), ()
    except ElasticMoEError as error:
        return None, tuple(str(error).splitlines())


def _conclude(rehearsal: "Rehearsal", directory: Path) -> None:
    from elasticmoe.cli.rehearsal_text import rehearsal_rows
    from elasticmoe.report.rehearsal import JSON_FILE, write_rehearsal

    rows = rehearsal_rows(rehearsal)
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, style="cyan"), Text(value, overflow="fold"))
    console().print(table)
    width = max(len(name) for name, _ in rows)
    write_rehearsal(rehearsal, [f"{n:{width}}  {value}" for n, value in rows], directory)
    say(f"report: {directory / JSON_FILE}")
    if not rehearsal.is_sound:
        sys.exit(1)


def _check_steps(steps: int) -> None:
    if steps and steps < LEAST_STEPS:
        raise SpecError((f"--steps {steps}: {LEAST_STEPS} or more show a speed; 0 only simulates",))


def _check_real_steps(small: "JobSpec", inventory: "Inventory") -> None:
    from elasticmoe.cli.rehearsal_steps import check_fits_here

    check_data_is_packed(small)
    check_fits_here(small, inventory)


def _assumed_costs(costs: Path | None) -> tuple[str, ...]:
    return () if costs is None else (f"times that {costs} names",)

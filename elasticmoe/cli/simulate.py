"""`simulate`: the job's own brain in a pretend world, before a large cluster is asked for."""

import sys
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
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
from elasticmoe.cli.saying import console, format_duration, say
from elasticmoe.cli.train import Overrides
from elasticmoe.errors import SpecError

if TYPE_CHECKING:
    from elasticmoe.simulator.costs import Costs
    from elasticmoe.simulator.run import Outcome, Scenario
    from elasticmoe.spec.job import JobSpec

File = Annotated[
    Path | None,
    typer.Argument(help="A TOML or JSON job file; not with --schedules.", metavar="[JOB.toml]"),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Workers; else workers.replicas.")]
Nodes = Annotated[
    int | None, typer.Option(min=1, help="Nodes; else one for every 8 workers, at least 2.")
]
Domains = Annotated[
    int | None, typer.Option(min=1, help="Failure domains; else each node is its own.")
]
Mtbf = Annotated[
    float, typer.Option(min=0.0, help="Mean hours between the failures of one node; 0: none.")
]
ControllerMtbf = Annotated[float, typer.Option(min=0.0, help="The same for the controller.")]
TraceFile = Annotated[
    Path | None, typer.Option(help="Nodes that join and leave instead: rows `ms,op,node`.")
]
Schedules = Annotated[
    int | None,
    typer.Option(min=1, help="Instead: so many hostile schedules, one per seed from --seed on."),
]
Processes = Annotated[
    int, typer.Option(min=1, help="With --schedules: processes that share the work.")
]
CostsFile = Annotated[
    Path | None, typer.Option(help="JSON file: how long things take, where it is known.")
]
Rivals = Annotated[
    bool, typer.Option("--rivals", help="Instead: models of other systems beside, on --trace.")
]
Measured = Annotated[
    list[Path] | None,
    typer.Option(help="With --rivals: JSON of benchmarks/recovery.py; may be given several times."),
]
Out = Annotated[Path | None, typer.Option(help="Directory for figures, plot and story.")]


def simulate_job(
    job: File = None,
    overrides: Overrides = None,
    workers: Workers = None,
    nodes: Nodes = None,
    domains: Domains = None,
    hours: Annotated[float, typer.Option(min=0.001, help="Simulated time.")] = 1.0,
    mtbf: Mtbf = 24.0,
    controller_mtbf: ControllerMtbf = 0.0,
    trace: TraceFile = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal runs.")] = 0,
    schedules: Schedules = None,
    processes: Processes = 1,
    costs: CostsFile = None,
    rivals: Rivals = False,
    measured: Measured = None,
    out: Out = None,
) -> None:
    """Run a job through faults in a pretend world: goodput, lost steps, rungs, broken promises."""
    rates_h = {"--mtbf": mtbf or None, "--controller-mtbf": controller_mtbf or None}
    check_above_zero({"--hours": hours, **rates_h})
    if schedules is not None:
        from elasticmoe.cli.schedules import search

        search(seed, schedules, workers, processes)
        return
    if out is not None:
        make_directory(out)
    if rivals:
        from elasticmoe.cli.rivals import compare_rivals

        if trace is None:
            raise SpecError(("--rivals compares on a trace of nodes: add --trace FILE",))
        compare_rivals(read_trace_file(trace), measured or [], out)
        return
    if job is None:
        raise SpecError(("name a job file, or ask for hostile schedules: --schedules 100",))
    from elasticmoe.job_file import read_job
    from elasticmoe.model.inventory import build_inventory
    from elasticmoe.simulator.run import Scenario, simulate
    from elasticmoe.simulator.schedules import Rates, draw_faults, faults_of_trace, spread_machines

    known = read_costs_file(costs)
    spec = endless_job(read_job(job, overrides or []), workers, hours, known)
    count = spec.workers.replicas
    spread = nodes or max(2, -(-count // 8))
    machines = spread_machines(count, spread, domains)
    offered_s = 0.0
    if trace is None:
        rates = Rates(mtbf * 3600.0, controller_mtbf_s=controller_mtbf * 3600.0)
        faults = draw_faults(machines, hours * 3600.0, rates, seed)
    else:
        read = read_trace_file(trace)
        offered_s = read.node_seconds(hours * 3600.0) * -(-count // spread)
        machines, faults = faults_of_trace(read, -(-count // spread))
    scenario = Scenario(machines, faults, seed, known, limit_s=hours * 3600.0, must_end=False)
    inventory = build_inventory(spec.model, spec.data.seq_len)
    began_s = perf_counter()
    outcome = simulate(spec, inventory, scenario, stopwatch=perf_counter)
    _show(spec, scenario, outcome, offered_s, perf_counter() - began_s)
    _report(spec, outcome, out)


def _show(
    spec: "JobSpec", scenario: "Scenario", outcome: "Outcome", offered_s: float, took_s: float
) -> None:
    """`offered_s`: worker-seconds that a trace's nodes are there; 0: there is none."""
    table = Table.grid(padding=(0, 2))
    rows = report_rows(spec, scenario, outcome)
    if offered_s:
        used_s = outcome.account.steps * scenario.costs.step_s * spec.workers.replicas
        rows.insert(2, ("on the trace", f"{used_s / offered_s:.2%} of what its nodes could do"))
    for name, value in rows:
        table.add_row(Text(name, style="cyan"), Text(value, overflow="fold"))
    table.add_row(
        Text("brain", style="cyan"),
        Text(
            f"slowest decision {outcome.slowest_decision_s:.3f} s ({outcome.slowest_decision}); "
            f"simulated in {took_s:.1f} s"
        ),
    )
    console().print(table)


def report_rows(spec: "JobSpec", scenario: "Scenario", outcome: "Outcome") -> list[tuple[str, str]]:
    """What is shown of a run: names and values."""
    account = outcome.account
    kinds: dict[str, int] = {}
    for _, kind in account.marks:
        kinds[kind] = kinds.get(kind, 0) + 1
    rows = [
        ("job", f"{spec.name}: {spec.workers.replicas} workers on {len(scenario.machines)} nodes"),
        ("goodput", f"{account.goodput:.2%} of the steps of an undisturbed run"),
        ("committed steps", f"{account.steps:,} in {format_duration(scenario.limit_s)}"),
        ("rolled back", f"{account.rolled_back} committed steps"),
        ("faults", _counts(kinds) or "none fell into this time; try a smaller --mtbf"),
        ("rungs", _counts(account.rungs) or "none"),
        ("waits for nodes", str(account.waits)),
        ("controller crashes", str(outcome.crashes)),
    ]
    if account.outage_s:
        times = sorted(account.outage_s)
        worst = quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
        rows.append(
            ("an outage", f"median {median(times):.3f} s, p95 {worst:.3f} s, {len(times)} in all")
        )
        rows += [
            (f"  {phase}", f"{total / account.outages * 1000:,.1f} ms on average")
            for phase, total in account.phase_s.items()
        ]
    return rows


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items()))


def _report(spec: "JobSpec", outcome: "Outcome", out: Path | None) -> None:
    if out is not None:
        from elasticmoe.report.simulated import write_report

        write_report(spec, outcome, out)
        say(f"figures, plot and story: {out}")
    for problem in outcome.problems:
        say(f"BROKEN at {problem.at_s:.3f} s: {problem.text}")
    if outcome.problems:
        say(f"again: elasticmoe {' '.join(sys.argv[1:])}")
        sys.exit(1)


def endless_job(spec: "JobSpec", workers: int | None, hours: float, costs: "Costs") -> "JobSpec":
    """The job with more steps than fit into the time, and with as many workers as asked for."""
    steps = int(hours * 3600.0 / costs.step_s * 2) + spec.schedule.steps
    size = workers or spec.workers.replicas
    wanted = spec.workers.model_copy(
        update={
            "replicas": size,
            "min": min(spec.workers.min, size),
            "max": max(spec.workers.max, size),
        }
    )
    schedule = spec.schedule.model_copy(update={"steps": steps})
    return spec.model_copy(update={"workers": wanted, "schedule": schedule})

"""`python -m chaos`: run a scenario, a kill storm, or a soak, and say what came of it.

    python -m chaos list
    python -m chaos run kill_worker [--out DIR] [--seed N] [--set PATH=VALUE ...]
    python -m chaos run my.toml --attach runs/quickstart
    python -m chaos storm --kills 300 --mean-steps 10 --precision fp64
    python -m chaos soak --faults 200 --seed 7

Exit status 0: clean; 1: a checker complains, or the run proves nothing; 2: the scenario is wrong.
"""

import argparse
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from chaos.checkers import Evidence, StepLine, check_all, read_lines
from chaos.conductor import Conductor
from chaos.errors import ChaosError, ScenarioError
from chaos.jobs import reference_of
from chaos.live import LiveJob
from chaos.report import Report, figures_of
from chaos.scenario import SCENARIOS, FaultSpec, Scenario, from_plain, read_scenario
from chaos.setting import end_run, set_stage
from chaos.tensors import check_final, final_checkpoint
from chaos.world import World
from elasticmoe.cluster.jobs import submit
from elasticmoe.cluster.journal_file import read_journal
from elasticmoe.errors import ElasticMoEError
from elasticmoe.spec.job import JobSpec


def main(arguments: list[str]) -> int:
    """Do what the command line says; returns the exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was put up is taken down
    if options.command == "list":
        for path in sorted(SCENARIOS.glob("*.toml")):
            _say(f"{path.stem:24} {read_scenario(path.stem).about}")
        return 0
    try:
        scenario = _scenario(options)
    except ScenarioError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    out = Path(options.out or f"runs/chaos/{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    again = f"python -m chaos {shlex.join(arguments)}"
    if "--seed" not in arguments:
        again += f" --seed {scenario.seed}"
    attach = Path(options.attach).absolute() if getattr(options, "attach", None) else None
    report = execute(scenario, out, again=again, attach=attach)
    _say(report.to_markdown().split("| # |")[0].strip())
    _say(f"\nreport: {out / 'report.md'}")
    return 0 if report.is_clean else 1


def execute(
    scenario: Scenario, out: Path, *, again: str = "", attach: Path | None = None
) -> Report:
    """Run a scenario once and judge it.

    Args:
        out: an empty directory for the job, its undisturbed twin and the report.
        again: the command that repeats this.
        attach: the directory of a job that runs already; it is neither started nor ended here.
    """
    until_s = time.monotonic() + scenario.limit_s
    if attach is not None:
        world = World.attach(attach)
        problems, conductor = _conduct(world, scenario, out, until_s)
        return _judge(conductor, None, problems, out, again)
    try:
        with set_stage(scenario, out) as (world, job):
            problems, conductor = _conduct(world, scenario, out, until_s)
            return _judge(conductor, job, problems, out, again)
    except (ChaosError, ElasticMoEError) as error:
        report = Report(scenario, again, str(out / "job"), (), {}, (f"not run: {error}",))
        report.write(out)
        return report


def _conduct(
    world: World, scenario: Scenario, out: Path, until_s: float
) -> tuple[tuple[str, ...], Conductor]:
    conductor = Conductor(world, scenario, out / "strikes.jsonl", _say, until_s)
    try:
        conductor.run()
    except (ChaosError, ElasticMoEError) as error:
        return (f"the run proves nothing: {type(error).__name__}: {error}",), conductor
    wanted = sum(fault.count for fault in scenario.fault)
    if len(conductor.strikes) < wanted:
        return (f"the job ended before {wanted - len(conductor.strikes)} faults",), conductor
    return (), conductor


def _judge(
    conductor: Conductor,
    job: JobSpec | None,
    problems: tuple[str, ...],
    out: Path,
    again: str,
) -> Report:
    scenario, world = conductor.scenario, conductor.world
    evidence = Evidence(
        read_journal(world.job_dir / "journal"),
        _read_steps(world.job_dir / "steps.jsonl"),
        tuple(conductor.strikes),
    )
    expect = scenario.expect
    if job is None:  # somebody else's job goes on
        expect = expect.model_copy(update={"final": "ignore"})
        checked = tuple(
            problem
            for problem in check_all(evidence, expect)
            if not problem.startswith("the job has not ended")
        )
    else:
        checked = check_all(evidence, expect)
    worst = None
    if expect.final != "ignore" and job is not None and not problems:
        differing, worst = _compare(job, scenario, out, conductor.until_s)
        checked = (*checked, *differing)
    report = Report(
        scenario,
        again,
        str(world.job_dir),
        tuple(conductor.strikes),
        dict(conductor.skipped),
        (*problems, *checked),
        figures_of(evidence, worst),
    )
    report.write(out)
    return report


def _read_steps(path: Path) -> list[StepLine]:
    """None if the job never took one."""
    if not path.exists():
        return []
    with path.open() as file:
        return read_lines(file)


def _compare(
    job: JobSpec, scenario: Scenario, out: Path, until_s: float
) -> tuple[tuple[str, ...], float | None]:
    """Run the job's undisturbed twin to the same step and compare what both ended with."""
    expect = scenario.expect
    try:
        found = final_checkpoint(Path(job.storage.checkpoints or f"{job.storage.dir}/checkpoints"))
        twin = reference_of(job, found.manifest.step, out / "undisturbed")
        live = LiveJob(submit(twin).directory)
        if not live.wait_for("is_over", until_s - time.monotonic()):
            return (
                f"time limit of {scenario.limit_s:g} s: the undisturbed run is at step "
                f"{live.committed} of {twin.schedule.steps}",
            ), None
        wanted = final_checkpoint(out / "undisturbed" / "checkpoints")
    except ElasticMoEError as error:
        return (f"the final states cannot be compared: {error}",), None
    finally:
        end_run(out / "undisturbed")
    return check_final(found, wanted, bitwise=expect.final == "bitwise", tolerance=expect.tolerance)


def _scenario(options: argparse.Namespace) -> Scenario:
    scenario = read_scenario(options.scenario)
    plain: dict[str, Any] = {}
    if options.seed is not None:
        plain["seed"] = options.seed
    plain["job"] = scenario.job.model_copy(
        update={"set": (*scenario.job.set, *options.set, *_of_storm(options))}
    )
    if options.command in ("storm", "soak"):
        (fault,) = scenario.fault
        changes: dict[str, Any] = {"count": options.count}
        if options.mean_steps is not None:
            changes["every_steps"] = options.mean_steps
        plain["fault"] = (FaultSpec.model_validate(fault.model_copy(update=changes)),)
    if options.command == "storm" and options.precision != "fp64":
        plain["expect"] = scenario.expect.model_copy(update={"final": "bitwise"})
    changed = scenario.model_copy(update=plain)
    return from_plain(changed.model_dump(mode="json", by_alias=True))


def _of_storm(options: argparse.Namespace) -> list[str]:
    return [f"model.precision={options.precision}"] if options.command == "storm" else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the scenarios that ship")
    run = commands.add_parser("run", help="one scenario")
    run.add_argument("scenario", help="a TOML file, or the name of one that ships")
    run.add_argument("--attach", help="directory of a live job; it is not ended")
    storm = commands.add_parser("storm", help="kill workers, again and again")
    storm.add_argument("--kills", dest="count", type=int, default=300)
    storm.add_argument("--precision", choices=("fp64", "fp32", "bf16"), default="fp64")
    storm.set_defaults(scenario="storm")
    soak = commands.add_parser("soak", help="all nemeses mixed")
    soak.add_argument("--faults", dest="count", type=int, default=200)
    soak.set_defaults(scenario="soak")
    for command in (storm, soak):
        command.add_argument("--mean-steps", type=float)
    for command in (run, storm, soak):
        command.add_argument("--out", help="an empty directory; none: one under runs/chaos")
        command.add_argument("--seed", type=int)
        command.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()

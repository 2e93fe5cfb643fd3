"""A job before its cluster is asked for: what it will need, what failures will cost it.

Everything here is arithmetic on a job, its plan and simulated runs; `cli.rehearse` runs them.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, sqrt
from pathlib import Path
from statistics import mean, median, stdev
from typing import Final

from scipy.special import stdtrit

from elasticmoe.plan.cost import expected_bubble, step_flops
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.memory import host_bytes, plan_memory
from elasticmoe.plan.types import Inventory, Member, Plan
from elasticmoe.simulator.costs import Costs
from elasticmoe.simulator.run import Machine, Outcome
from elasticmoe.spec.job import JobSpec

JSON_FILE: Final = "rehearsal.json"
TEXT_FILE: Final = "rehearsal.txt"
CORE_FLOPS_PER_S: Final = 2e10
"""Assumed of a CPU worker: one core in fp32."""
DEVICE_FLOPS_PER_S: Final = 2e14
"""Assumed of any other worker: some 20 % of an H100's bf16 peak. DeepSeek-V3's report has 14.8e12
tokens in 2.66e6 H800 hours, which is 1,540 tokens/s at 37e9 active parameters: 3.4e14."""
WORKERS_PER_NODE: Final = 8
EXPECTED_FAILURES: Final = 10.0
"""A seed's run is so long that about so many failures fall into it, if the job is."""
MOST_STEPS: Final = 20_000
"""A seed's run is not longer than that."""
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Bounds:
    """A figure over all seeds."""

    mean: float
    low: float
    """Of the mean's 95 % confidence interval, after Student."""
    high: float
    smallest: float
    largest: float
    """Smallest and largest of any seed."""


@dataclass(frozen=True, slots=True)
class FullSize:
    """The job as its cluster would have it."""

    workers: int
    nodes: int
    domains: int
    stages: int
    parameters: int
    stage_worker_bytes: tuple[int, ...]
    """Planned memory of the fullest worker of each stage."""
    node_bytes: int
    """Of the fullest node, if workers keep everything in host memory."""
    step_s: float
    step_is: str
    """Where `step_s` comes from."""
    job_hours: float
    """All steps of the job, undisturbed."""
    hours: float
    """Simulated, of each seed."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What the failures did to the full size, over all seeds."""

    seeds: int
    goodput: Bounds
    """Time of the kept steps on all wanted workers over all time, start included."""
    steps_lost: Bounds
    """Committed steps that were given up and done again, per run."""
    faults: Mapping[str, int]
    rungs: Mapping[str, int]
    rung_s: Mapping[str, Sequence[float]]
    """Time from the fault to the first new step of every outage, by the rung that ended it."""
    waits: int
    """Times at which fewer than `workers.min` were left, or no node had room."""
    problems: tuple[str, ...]
    """Promises that were broken."""


@dataclass(frozen=True, slots=True)
class RealSteps:
    """What the smallest layout with every stage did on this machine."""

    workers: int
    stages: int
    steps: int
    step_s: float
    """Median."""
    slowest_step_s: float
    first_loss: float
    last_loss: float
    planned_bytes: int
    """Of the fullest worker, by the plan."""
    seen_bytes: int
    """Largest resident memory of any worker, Python and torch included; 0: it could not be read."""
    full_step_s: float
    """A step of the full size if each of its workers had what these had, and nothing else cost."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """All of it."""

    name: str
    full: FullSize
    simulated: Simulated
    real: RealSteps | None
    """None: not asked for, or it failed."""
    cut: tuple[str, ...]
    """How the real steps differ from the job."""
    assumed: tuple[str, ...]
    problems: tuple[str, ...]
    """What went wrong with the real steps."""

    @property
    def is_sound(self) -> bool:
        """Whether no promise was broken and the real steps, if any, were taken."""
        return not self.simulated.problems and not self.problems


def bounds_of(values: Sequence[float], at_least: float = -inf, at_most: float = inf) -> Bounds:
    """Mean, confidence interval and extremes of at least two values.

    Args:
        at_least: no such value can be smaller; the interval neither.
        at_most: the same for the other end.

    >>> bounds = bounds_of([1.0, 2.0, 3.0])
    >>> bounds.mean, round(bounds.low, 2), round(bounds.high, 2)
    (2.0, -0.48, 4.48)
    """
    middle = mean(values)
    quantile = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    half = quantile * stdev(values) / sqrt(len(values))
    low, high = max(middle - half, at_least), min(middle + half, at_most)
    return Bounds(middle, low, high, min(values), max(values))


def plan_full_size(
    job: JobSpec, inventory: Inventory, machines: Sequence[Machine], step_s: float | None = None
) -> FullSize:
    """Lay the job out on its cluster; `hours` is left at 0.

    Args:
        step_s: what a step takes there; none: estimated from the model's flops.
    """
    count = job.workers.replicas
    at = [machines[number * len(machines) // count] for number in range(count)]
    members = tuple(Member(number, on.name, on.domain) for number, on in enumerate(at))
    plan = make_plan(job, inventory, members)
    use = plan_memory(job, inventory, plan)
    nodes = host_bytes(plan, use, homes_on_host=True, device_is_host=True)
    step_is = "given"
    if step_s is None:
        step_s, step_is = estimate_step(job, inventory, plan)
    return FullSize(
        workers=count,
        nodes=len(machines),
        domains=len({machine.domain for machine in machines}),
        stages=len(plan.stages),
        parameters=inventory.num_parameters,
        stage_worker_bytes=tuple(
            int(use.total_M[list(stage.members)].max()) for stage in plan.stages
        ),
        node_bytes=max(nodes.values()),
        step_s=step_s,
        step_is=step_is,
        job_hours=job.schedule.steps * step_s / 3600,
        hours=0.0,
    )


def estimate_step(job: JobSpec, inventory: Inventory, plan: Plan) -> tuple[float, str]:
    """Seconds of a step, and how they were found: flops at an assumed speed, bubble included; a
    small model's step is not shorter than the prototype's."""
    rate = CORE_FLOPS_PER_S if job.workers.device == "cpu" else DEVICE_FLOPS_PER_S
    bubble = expected_bubble(job, inventory, plan)
    step_s = step_flops(job, inventory) / (len(plan.members) * rate) / (1 - bubble)
    least_s = Costs().step_s
    if step_s < least_s:
        return least_s, "assumed: the prototype's, the least there is"
    return step_s, f"estimated: {rate:.0e} FLOP/s per worker, bubble {bubble:.1%}"


def choose_hours(job_hours: float, step_s: float, failures_per_hour: float) -> float:
    """How long each seed's run is: the whole job, but no longer than `EXPECTED_FAILURES` and
    `MOST_STEPS` take.

    >>> choose_hours(100.0, 1.0, failures_per_hour=2.0)
    5.0
    """
    longest = MOST_STEPS * step_s / 3600
    if failures_per_hour:
        longest = min(longest, EXPECTED_FAILURES / failures_per_hour)
    return min(job_hours, longest)


def sum_up(outcomes: Mapping[int, Outcome]) -> Simulated:
    """Fold the runs of all seeds, at least two.

    Args:
        outcomes: by seed.
    """
    accounts = [outcome.account for outcome in outcomes.values()]
    faults, rungs = Counter[str](), Counter[str]()
    rung_s: dict[str, list[float]] = {}
    for account in accounts:
        faults.update(kind for _, kind in account.marks)
        rungs.update(account.rungs)
        for rung, times in account.rung_s.items():
            rung_s.setdefault(rung, []).extend(times)
    return Simulated(
        seeds=len(accounts),
        goodput=bounds_of([account.goodput for account in accounts], 0.0, 1.0),
        steps_lost=bounds_of([float(account.rolled_back) for account in accounts], 0.0),
        faults=dict(sorted(faults.items())),
        rungs=dict(sorted(rungs.items())),
        rung_s=dict(sorted(rung_s.items())),
        waits=sum(account.waits for account in accounts),
        problems=tuple(
            f"seed {seed}, {problem.at_s:.3f} s: {problem.text}"
            for seed, outcome in outcomes.items()
            for problem in outcome.problems
        ),
    )


def smallest_layout(job: JobSpec, directory: Path) -> tuple[JobSpec, tuple[str, ...]]:
    """The job on as few workers as have every stage and keep a unit's homes apart.

    Args:
        directory: where it is to live.

    Returns:
        The job, and how it differs.
    """
    wanted = job.workers.replicas
    count = max(min(job.parallel.stages, wanted), min(job.protection.redundancy, wanted))
    size = {"replicas": count, "min": count, "max": count, "spares": 0}
    storage = {"dir": str(directory), "checkpoints": None}
    small = job.model_copy(
        update={
            "workers": job.workers.model_copy(update=size),
            "storage": job.storage.model_copy(update=storage),
        }
    )
    cut = (
        f"{count} of {wanted} workers: every stage, and the homes of a unit on different workers",
        "one node: this machine, with a Ray of its own",
        "a scratch directory for journal and checkpoints",
    )
    return small, cut


def write_rehearsal(rehearsal: Rehearsal, lines: Sequence[str], directory: Path) -> None:
    """Write `rehearsal.json`, and the text that was shown as `rehearsal.txt`."""
    directory.mkdir(parents=True, exist_ok=True)
    plain = {**asdict(rehearsal), "sound": rehearsal.is_sound}
    simulated = plain["simulated"]
    simulated["rung_s"] = {
        rung: {"outages": len(times), "median_s": median(times), "largest_s": max(times)}
        for rung, times in rehearsal.simulated.rung_s.items()
    }
    (directory / JSON_FILE).write_text(json.dumps(plain, indent=2) + "\n")
    (directory / TEXT_FILE).write_text("\n".join(lines) + "\n")

"""`simulate --schedules`: hostile schedules, one per seed, told where a promise breaks."""

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter, process_time

from elasticmoe.cli.saying import format_duration, say
from elasticmoe.cluster.memory import collect_rarely

MAX_TOLD = 3
"""Failing schedules whose story is told."""
PROGRESS_S = 30.0
"""Between two lines that say how many schedules were run."""
PER_BATCH = 8
"""Schedules that a process is given at a time: they differ in length by a factor of a hundred."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What is told of one schedule."""

    seed: int
    faults: int
    problems: tuple[str, ...]
    """Broken promises."""
    story: tuple[str, ...]
    """Of the job and its faults; empty where nobody asks for it."""
    slowest: tuple[float, str]
    """Seconds of the brain's longest turn, and what it decided."""


def search(first_seed: int, count: int, workers: int | None, processes: int) -> None:
    """Run hostile schedules; each that breaks a promise is told, with how to run it again.

    Args:
        processes: that share the work; what is said does not depend on it.
    """
    collect_rarely()  # as a controller does
    began_s, failing, faults = perf_counter(), 0, 0
    slowest, told_s = (0.0, "nothing"), began_s
    seeds = range(first_seed, first_seed + count)
    with _tried(seeds, workers, processes) as found:
        for done, tried in enumerate(found, start=1):
            faults += tried.faults
            failing += bool(tried.problems)
            slowest = max(slowest, tried.slowest)
            if (tried.problems and failing <= MAX_TOLD) or (count == 1 and tried.faults):
                for line in (*tried.story, *tried.problems):
                    say(line)
            if tried.problems:
                size = f" --workers {workers}" if workers else ""
                say(f"again: elasticmoe simulate --schedules 1 --seed {tried.seed}{size}")
            if perf_counter() > told_s + PROGRESS_S:
                told_s = perf_counter()
                took = format_duration(told_s - began_s)
                say(f"{done} of {count} schedules, {failing} failing, after {took}")
    took = format_duration(perf_counter() - began_s)
    figures = {
        "schedules": count,
        "faults": faults,
        "failing": failing,
        "slowest_decision_s": round(slowest[0], 4),
        "slowest_decision": slowest[1],
    }
    say(f"{count} schedules, {faults} faults, {failing} with a broken promise, in {took}")
    say(json.dumps(figures))
    if failing:
        sys.exit(1)


@contextmanager
def _tried(seeds: Sequence[int], workers: int | None, processes: int) -> Iterator[Iterator[Tried]]:
    """Run schedules; their results come in the order of the seeds."""
    run = partial(try_schedule, workers=workers, is_alone=len(seeds) == 1)
    if processes == 1:
        yield map(run, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield pool.map(run, seeds, chunksize=PER_BATCH)


def try_schedule(seed: int, *, workers: int | None, is_alone: bool) -> Tried:
    """Run the hostile schedule of a seed.

    Args:
        workers: size of the job; none: the seed says.
        is_alone: its story is told in any case.
    """
    from elasticmoe.controller.story import story
    from elasticmoe.simulator.jobs import plain_inventory
    from elasticmoe.simulator.run import simulate
    from elasticmoe.simulator.schedules import hostile_schedule

    schedule = hostile_schedule(seed, workers=workers)
    inventory = plain_inventory(schedule.job)
    outcome = simulate(schedule.job, inventory, schedule.scenario, stopwatch=process_time)
    lines: list[str] = []
    if outcome.problems or is_alone:
        lines += story(outcome.records)
        lines += [f"{one.at_s:9.2f} s  fault: {one.kind} of {one.whom}" for one in outcome.fired]
    return Tried(
        seed=seed,
        faults=len(outcome.fired),
        problems=tuple(f"{one.at_s:9.2f} s  BROKEN: {one.text}" for one in outcome.problems),
        story=tuple(lines),
        slowest=(outcome.slowest_decision_s, outcome.slowest_decision),
    )

"""Timetables of a pipeline: which stage computes what, in which order.

`1f1b` and `gpipe` are executed; `plan.pipelines` holds the others, and how long any of them takes.

Letters: P = stages, F, B, W = duration of a forward, a whole backward and the weight-gradient part
of it.
"""

from dataclasses import dataclass
from typing import Literal

from elasticmoe.plan.types import Op

ScheduleName = Literal["1f1b", "gpipe", "zb1p", "dualpipe"]


@dataclass(frozen=True, slots=True)
class Durations:
    """How long one stage takes for one wave, in any unit."""

    forward: float = 1.0
    backward: float = 2.0
    """Input and weight gradients together."""
    weight_grad: float = 1.0
    overlapped: float = 3.0
    """A forward and a backward at once (DualPipe)."""


def plan_timetable(
    schedule: Literal["1f1b", "gpipe"], *, stage: int, num_stages: int, num_waves: int
) -> tuple[Op, ...]:
    """Write the timetable of one stage.

    `gpipe` runs all forwards, then all backwards. `1f1b` lets a stage run ahead of the last one
    by its distance to it, then alternates, so that it keeps at most P - stage waves in memory.
    """
    assert 0 <= stage < num_stages
    ahead = num_waves if schedule == "gpipe" else min(num_stages - 1 - stage, num_waves)
    ops = [Op("forward", wave) for wave in range(ahead)]
    for wave in range(num_waves - ahead):
        ops += [Op("forward", ahead + wave), Op("backward", wave)]
    ops += [Op("backward", wave) for wave in range(num_waves - ahead, num_waves)]
    return tuple(ops)


def waves_in_flight(timetable: tuple[Op, ...]) -> int:
    """Largest number of waves whose activations a stage keeps at once."""
    alive = most = 0
    for op in timetable:
        alive += 1 if op.kind == "forward" else -1
        most = max(most, alive)
    return most


def bubble_time(schedule: ScheduleName, num_stages: int, durations: Durations) -> float:
    """Time per step that a stage waits, in the unit of `durations`.

    Exact for `1f1b` and `gpipe`. For the others it is the published formula, exact where forward,
    input gradients and weight gradients take equally long; else `pipelines.simulate` knows better.

    Source: DeepSeek-V3, arXiv:2412.19437, table 2; GPipe waits as long as 1F1B and only keeps
    more activations.
    """
    forward, backward, weight = durations.forward, durations.backward, durations.weight_grad
    if schedule == "zb1p":
        return max(0.0, (num_stages - 1) * (forward + backward - 2 * weight))
    if schedule == "dualpipe":
        return max(0.0, (num_stages / 2 - 1) * (durations.overlapped + backward - 3 * weight))
    return (num_stages - 1) * (forward + backward)


def bubble_share(
    schedule: ScheduleName, num_stages: int, num_waves: int, durations: Durations
) -> float:
    """Waiting time of a stage as a share of its step, between 0 and 1."""
    busy = num_waves * (durations.forward + durations.backward)
    waiting = bubble_time(schedule, num_stages, durations)
    return waiting / (busy + waiting)

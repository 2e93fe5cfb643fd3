"""Which samples a step used is what was read, so the checker of histories sees a wrong reader."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gangs import RandomSamples, plan_for, tiny_job

from elasticmoe.controller.history import History
from elasticmoe.controller.record import as_progress
from elasticmoe.errors import PlanError
from elasticmoe.messages.events import Reported
from elasticmoe.messages.worker import StepDone
from elasticmoe.model.inventory import build_inventory
from elasticmoe.model.wave import SerialExchange, Wave
from elasticmoe.runtime.gang import Seat, form_gang
from elasticmoe.runtime.groups import Over, Rendezvous
from elasticmoe.runtime.record import StepRecord
from elasticmoe.runtime.step import train_step
from elasticmoe.runtime.workplace import Workplace

STEPS = 3
JOB = tiny_job()
SAMPLES = JOB.batch.global_samples
HALF = JOB.batch.wave_samples
_CPU = torch.device("cpu")


class Honest(RandomSamples):
    """Reads what it is asked for."""


class OffByOne(RandomSamples):
    """Leaves out the first sample of all."""

    def read(self, start: int, stop: int) -> np.ndarray:
        return super().read(start + 1, stop + 1)


class Repeating(RandomSamples):
    """From the third step on, every wave reads the samples of the step's first wave."""

    def read(self, start: int, stop: int) -> np.ndarray:
        back = start % SAMPLES if start >= 2 * SAMPLES else 0
        return super().read(start - back, stop - back)


class Restarting(RandomSamples):
    """Forgets the position: from the third step on, those of the first step come again."""

    def read(self, start: int, stop: int) -> np.ndarray:
        back = 2 * SAMPLES if start >= 2 * SAMPLES else 0
        return super().read(start - back, stop - back)


@pytest.mark.parametrize(
    "reader, problems",
    [
        (Honest, []),
        (OffByOne, ["step 1 begins with sample 1; no step was before it"]),
        (Repeating, ["step 3 left samples out or used some twice, behind sample 16"]),
        (
            Restarting,
            ["step 3 begins with sample 0; the step before ended with sample 15"],
        ),
    ],
)
def test_a_reader_that_reads_other_samples_is_caught_by_the_history(
    reader: type[RandomSamples], problems: list[str]
) -> None:
    inventory = build_inventory(JOB.model, JOB.data.seq_len)
    seat = Seat(plan_for(JOB, 1), 0, Rendezvous("", 0, 1))
    place = Workplace(JOB, inventory, _CPU)
    gang = form_gang(place, seat, over=Over(), reader=reader(JOB))
    history = History(0, STEPS, SAMPLES)

    for step in range(1, STEPS + 1):
        samples = train_step(gang, 0).result.samples
        done = StepDone(0, step, 0.1, 2.0, {}, samples, 0)
        history.commit(as_progress(Reported(0.1 * step, "node", done)))

    assert [one.partition(": ")[2] for one in history.problems[:1]] == problems


Change = Callable[[list[list[tuple[int, int]]]], None]


def _twice(read_WV: list[list[tuple[int, int]]]) -> None:
    read_WV[1] = read_WV[0]


def _gap(read_WV: list[list[tuple[int, int]]]) -> None:
    first, _ = read_WV[1][1]
    read_WV[1][1] = (first, first)


def _other_in_the_second_stage(read_WV: list[list[tuple[int, int]]]) -> None:
    for member in (2, 3):
        read_WV[member] = [(first + SAMPLES, end + SAMPLES) for first, end in read_WV[member]]


@pytest.mark.parametrize(
    "change, samples",
    [
        (lambda read_WV: None, (16, 24)),
        (_twice, (16, 16)),
        (_gap, (16, 16)),
        (_other_in_the_second_stage, (16, 16)),
    ],
)
def test_members_that_do_not_share_the_batch_as_planned_report_no_samples(
    change: Change, samples: tuple[int, int]
) -> None:
    job = tiny_job(parallel={"stages": 2})
    plan = plan_for(job, 4)
    assert [stage.members for stage in plan.stages] == [(0, 1), (2, 3)]
    inventory = build_inventory(job.model, job.data.seq_len)
    record = StepRecord(job, inventory, plan, _CPU)
    shares = [share for stage in plan.stages for share in stage.samples]
    starts = (2 * SAMPLES, 2 * SAMPLES + HALF)
    read_WV = [[(start + a, start + b) for start in starts] for a, b in shares]

    change(read_WV)
    gathered = torch.stack([record.pack(1.0, [], _waves(own), 0) for own in read_WV])

    assert record.read(gathered).samples == samples


def _waves(read_V: list[tuple[int, int]]) -> list[Wave]:
    nothing = torch.zeros(0)
    return [
        Wave(
            index=index,
            first_sample=0,
            num_samples=end - first,
            wave_samples=HALF,
            step_tokens=1,
            num_waves=len(read_V),
            exchange=SerialExchange({}),
            bias_LE=nothing,
            earlier_counts_LE=nothing,
            samples=(first, end),
        )
        for index, (first, end) in enumerate(read_V)
    ]


def test_members_that_follow_different_plans_do_not_add_up_what_they_computed() -> None:
    inventory = build_inventory(JOB.model, JOB.data.seq_len)
    here, there = (StepRecord(JOB, inventory, plan_for(JOB, size), _CPU) for size in (2, 3))
    records = [record.pack(0.0, [], [], 0) for record in (here, there, here)]

    with pytest.raises(PlanError, match=r"Members \[1\] follow another plan"):
        here.read(torch.stack(records))

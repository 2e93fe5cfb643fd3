"""A worker process as its agent sees it: lines in, lines out."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from forked import Worker
from forked import form as form_plan
from gangs import plan_for, tiny_job

from elasticmoe.messages.worker import (
    BreakGang,
    CheckpointPart,
    FormGang,
    FromMemory,
    GangEnded,
    GangFormed,
    Instruct,
    StepDone,
    WorkerFailed,
    WorkerLeaving,
    WorkerParked,
    WorkerReady,
)
from elasticmoe.runtime.pack import pack
from elasticmoe.spec.job import JobSpec

pytestmark = [pytest.mark.dist, pytest.mark.timeout(60)]


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    text = tmp_path / "corpus.txt"
    text.write_bytes(bytes(np.random.default_rng(0).integers(97, 123, 20_000, dtype=np.uint8)))
    pack([text], tmp_path / "data", holdout=0.0)
    return tiny_job(
        model={"vocab_size": 256, "precision": "fp32"},
        data={"sources": [{"path": str(tmp_path / "data")}]},
        schedule={"steps": 100_000},
        checkpoint={"interval_steps": 50_000},
        storage={"dir": str(tmp_path / "job")},
    )


def form(job: JobSpec, workers: list[Worker], generation: int) -> None:
    form_plan(plan_for(job, len(workers)), workers, generation)


@pytest.fixture
def workers(job: JobSpec) -> Iterator[list[Worker]]:
    made = [Worker(job, number) for number in range(2)]
    yield made
    for worker in made:
        try:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def test_a_stop_command_takes_effect_on_all_members_at_one_step_with_a_checkpoint(
    job: JobSpec, workers: list[Worker]
) -> None:
    form(job, workers, 1)
    for worker in workers:
        assert worker.next(WorkerReady).pid == worker.pid
        assert worker.next(GangFormed).step == 1
    workers[0].next(StepDone)

    for worker in workers:
        worker.tell(Instruct(1, 1, "stop"))

    parts = [worker.next(CheckpointPart) for worker in workers]
    ends = [worker.next(GangEnded) for worker in workers]
    assert parts[0].step == parts[1].step == ends[0].step == ends[1].step
    assert parts[0].state == parts[1].state
    assert [end.instructed for end in ends] == [1, 1]


def test_a_pause_ends_the_gang_at_one_step_without_a_checkpoint_and_another_goes_on_from_memory(
    job: JobSpec, workers: list[Worker]
) -> None:
    form(job, workers, 1)
    workers[0].next(StepDone)

    for worker in workers:
        worker.tell(Instruct(1, 1, "pause"))

    ended = []
    for worker in workers:
        for report in worker.reports():
            assert not isinstance(report, (CheckpointPart, WorkerParked))
            if isinstance(report, GangEnded):
                assert report.instructed == 1
                ended.append(report.step)
                break
    assert ended[0] == ended[1] >= 1
    plan = plan_for(job, 2)
    memory = FromMemory(ended[0], (), 0)
    form_plan(plan, workers, 2, memory)
    assert [worker.next(GangFormed).step for worker in workers] == [ended[0] + 1] * 2
    done = workers[0].next(StepDone)
    assert done.step == ended[0] + 1
    size = job.batch.global_samples
    assert done.samples == (ended[0] * size, done.step * size)  # what both have read, in fact


def test_a_terminated_worker_says_so_once_and_trains_on(
    job: JobSpec, workers: list[Worker]
) -> None:
    form(job, workers, 1)
    workers[0].next(StepDone)

    for _ in range(3):
        os.kill(workers[1].pid, signal.SIGTERM)

    leaving = workers[1].next(WorkerLeaving)
    assert (leaving.worker, leaving.evidence) == (1, "SIGTERM")
    newest = workers[0].next(StepDone).step
    while workers[0].next(StepDone).step < newest + 5:
        pass
    os.kill(workers[1].pid, signal.SIGKILL)
    assert not any(isinstance(report, WorkerLeaving) for report in workers[1].reports())


def test_after_a_death_the_survivor_parks_and_forms_the_next_generation(
    job: JobSpec, workers: list[Worker]
) -> None:
    form(job, workers, 1)
    workers[0].next(StepDone)

    os.kill(workers[1].pid, signal.SIGKILL)

    assert workers[1].end() == -signal.SIGKILL  # the fault fired
    parked = workers[0].next(WorkerParked)
    assert parked.generation == 1
    assert parked.committed_step >= 1
    form(job, workers[:1], 2)
    assert workers[0].next(GangFormed).generation == 2
    assert workers[0].next(StepDone).generation == 2


def test_breaking_a_generation_parks_everybody_at_once(job: JobSpec, workers: list[Worker]) -> None:
    form(job, workers, 1)
    workers[0].next(StepDone)

    began = time.monotonic()
    for worker in workers:
        worker.tell(BreakGang(1))
    parked = [worker.next(WorkerParked) for worker in workers]

    assert time.monotonic() - began < 5  # no library timeout was waited for
    assert [report.generation for report in parked] == [1, 1]


def test_a_generation_whose_peer_never_comes_can_be_broken(
    job: JobSpec, workers: list[Worker]
) -> None:
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    plan = plan_for(job, 2).to_json()
    workers[0].tell(FormGang(1, 0, plan, "127.0.0.1", store.port, None))
    workers[0].next(WorkerReady)

    workers[0].tell(BreakGang(1))

    assert workers[0].next(WorkerParked).generation == 1


def test_a_worker_ends_when_its_agent_hangs_up(job: JobSpec, workers: list[Worker]) -> None:
    form(job, workers, 1)
    workers[0].next(StepDone)

    for worker in workers:
        worker.hang_up()

    assert [worker.end() for worker in workers] == [0, 0]


def test_an_error_of_training_is_reported_with_its_code_before_the_worker_ends(
    job: JobSpec,
) -> None:
    shard = next(Path(job.data.sources[0].path).glob("train-*.arrow"))
    shard.unlink()

    worker = Worker(job, 0)

    failed = worker.next(WorkerFailed)
    assert failed.code == "bad_data"
    assert shard.name in failed.message
    assert worker.end() == 1

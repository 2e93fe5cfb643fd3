"""Who is computing when a member dies need not reach the end of a layer for others to go on."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import waiting_router
from forked import Worker, form
from gangs import plan_for, tiny_job

from elasticmoe.messages.worker import BreakGang, GangFormed, StepDone, WorkerParked
from elasticmoe.spec.job import JobSpec

pytestmark = [pytest.mark.dist, pytest.mark.timeout(60)]


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Computing waits as long as this file is there."""
    gate = tmp_path / "gate"
    monkeypatch.setenv(waiting_router.GATE, str(gate))
    yield gate
    gate.unlink(missing_ok=True)


class Pair:
    """Two workers in the middle of a forward pass that does not end; one of them dies."""

    def __init__(self, job: JobSpec, gate: Path) -> None:
        self.job = job
        self.workers = [Worker(job, number) for number in range(2)]
        self.left, self.dies = self.workers
        self.said: list[object] = []
        form(plan_for(job, 2), self.workers, 1)
        self.left.next(StepDone)
        gate.touch()
        self.wait(lambda: all(worker.pulse.phase == "compute" for worker in self.workers))
        self.dies.kill()
        threading.Thread(target=self._listen, daemon=True).start()

    def heard(self, kind: type) -> list[object]:
        return [report for report in self.said if isinstance(report, kind)]

    def wait(self, there: object) -> None:
        assert callable(there)
        deadline_s = time.monotonic() + 20
        while not there():
            assert time.monotonic() < deadline_s
            time.sleep(0.002)

    def _listen(self) -> None:
        for report in self.left.reports():
            self.said.append(report)


@pytest.fixture
def pair(tmp_path: Path, gate: Path, dataset: Path) -> Iterator[Pair]:
    pair = Pair(_job(tmp_path, dataset), gate)
    yield pair
    os.kill(pair.left.pid, 9)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    from elasticmoe.runtime.pack import pack

    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 500)
    pack([tmp_path / "text.txt"], tmp_path / "data", holdout=0.0)
    return tmp_path / "data"


def _job(directory: Path, dataset: Path) -> JobSpec:
    job = tiny_job(
        model={"vocab_size": 256, "precision": "fp32"},
        data={"sources": [{"path": str(dataset)}]},
        schedule={"steps": 100_000},
        checkpoint={"interval_steps": 50_000},
        storage={"dir": str(directory / "job")},
    )
    moe = job.model.moe.model_copy(update={"router": "waiting_router:WaitingRouter"})
    return job.model_copy(update={"model": job.model.model_copy(update={"moe": moe})})


def test_a_survivor_reports_while_it_computes_and_joins_when_it_has_left(
    pair: Pair, gate: Path
) -> None:
    pair.left.tell(BreakGang(1, peer_died=True))

    pair.wait(lambda: pair.heard(WorkerParked))
    (parked,) = pair.heard(WorkerParked)
    assert isinstance(parked, WorkerParked)
    assert parked.copies is not None
    assert parked.copies.phase == "compute"
    form(plan_for(pair.job, 1), [pair.left], 2)
    time.sleep(0.1)
    assert not pair.heard(GangFormed)[1:]  # it computes still
    gate.unlink()
    pair.wait(lambda: any(formed.generation == 2 for formed in pair.heard(GangFormed)))
    assert len(pair.heard(WorkerParked)) == 1


def test_who_may_be_the_cause_reports_only_when_it_has_left(pair: Pair, gate: Path) -> None:
    pair.left.tell(BreakGang(1))

    time.sleep(0.3)
    assert not pair.heard(WorkerParked)
    gate.unlink()
    pair.wait(lambda: pair.heard(WorkerParked))

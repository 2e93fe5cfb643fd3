"""What people and dashboards are told of faults and notices."""

import json
from pathlib import Path

import pytest

from elasticmoe.cluster.feed import Narrator
from elasticmoe.controller.decisions import Fence, Regroup
from elasticmoe.controller.record import Decided, Record
from elasticmoe.controller.state import JobState
from elasticmoe.messages.events import Event, NodeLeaving, Reported, WorkerSilent
from elasticmoe.messages.worker import WorkerLeaving


@pytest.mark.parametrize(
    "event, kind",
    [
        (WorkerSilent(1.0, "a", 3, "no heartbeat for 0.31 s"), "worker_silent"),
        (NodeLeaving(1.0, "a", 31.0, "Ray drains it"), "node_leaving"),
        (Reported(1.0, "a", WorkerLeaving(3, 30.0, "SIGTERM")), "worker_leaving"),
    ],
)
def test_silence_and_notices_are_counted(tmp_path: Path, event: Event, kind: str) -> None:
    narrator = Narrator(1, tmp_path / "steps.jsonl")

    narrator.recorded(Record(0, event))

    text = narrator.metrics_text(JobState()).decode()
    assert f'elasticmoe_faults_total{{kind="{kind}"}} 1.0' in text


def test_a_worker_that_fell_silent_is_a_line_with_its_evidence(tmp_path: Path) -> None:
    narrator = Narrator(1, tmp_path / "steps.jsonl")
    silent = WorkerSilent(1.0, "a", 3, "no heartbeat for 0.31 s, the process is stopped")
    why = f"worker 3 fell silent ({silent.evidence})"

    narrator.recorded(Record(0, silent))
    narrator.recorded(Record(1, Decided(0, Fence(1.0, (3,), why))))

    lines = [json.loads(line) for _, line in narrator.feed.after(0, 1.0)]
    assert [line["text"] for line in lines if line["kind"] == "story"] == [why]


def test_a_change_of_the_gang_between_two_steps_is_counted(tmp_path: Path) -> None:
    narrator = Narrator(1, tmp_path / "steps.jsonl")

    narrator.recorded(Record(0, Decided(0, Regroup(1.0, "node a goes away", "failover", 7))))

    assert b"elasticmoe_regroupings_total 1.0" in narrator.metrics_text(JobState())

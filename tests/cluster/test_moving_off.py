"""Nodes that go away with a notice, and nodes that are not to be trusted: real training on two."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from jobs_for_tests import tiny_job
from processes import PATIENCE_S, Follower, Processes, parent_of
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from chaos.live import LiveJob
from chaos.nemeses.memory import FlipBit
from chaos.proc import Process
from chaos.scenario import Target
from chaos.world import World
from elasticmoe.client import JobClient, JobEvent
from elasticmoe.cluster.forking import same_modules
from elasticmoe.cluster.jobs import JobHandle, submit
from elasticmoe.cluster.journal_file import read_journal
from elasticmoe.cluster.run import DOMAIN_LABEL
from elasticmoe.controller.history import check_history
from elasticmoe.spec.job import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]
FOREVER = 100_000


@pytest.fixture
def cluster(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without room for workers, and nodes `left` and `right` with room for two each."""
    monkeypatch.setenv("PYTHONPATH", same_modules()["PYTHONPATH"])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for domain in ("left", "right"):
        cluster.add_node(num_cpus=2, labels={DOMAIN_LABEL: domain})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def job_in(directory: Path, **protection: object) -> JobSpec:
    job = tiny_job(directory, steps=FOREVER, replicas=4)
    return job.model_copy(
        update={
            "schedule": job.schedule.model_copy(update={"kind": "constant"}),
            "protection": job.protection.model_copy(update=protection),
        }
    )


def without_controller(cluster: Cluster, handle: JobHandle) -> Any:
    """A node that the controller is not on: it goes to the head if it can, no promise of Ray's."""
    host = parent_of(handle.pids["controller"])
    for node in cluster.worker_nodes:
        pids = [info.process.pid for info in node.all_processes["raylet"]]
        if host not in pids:
            return node
    raise AssertionError("the controller is on every node")


def told(follower: Follower, pattern: str) -> JobEvent:
    """The first sentence of the story that matches."""

    def matches(event: JobEvent) -> bool:
        is_story = event.kind == "story"
        return is_story and re.search(pattern, str(event.fields["text"])) is not None

    return next(filter(matches, follower.events), None) or follower.until(matches)


def stop(handle: JobHandle, follower: Follower) -> dict[str, object]:
    """End the job; its summary. Nothing was lost on the way."""
    JobClient(handle.url, handle.token).stop()
    end = follower.until_kind("end").fields
    assert end["outcome"] == "stopped"
    assert end["summary"]["ignored_events"] == 0
    assert end["summary"]["steps_rolled_back"] == 0
    assert check_history(read_journal(handle.directory / "journal")) == []
    summary: dict[str, object] = dict(end["summary"])
    return summary


def test_a_node_that_ray_drains_is_left_before_it_goes_and_no_step_is_redone(
    tmp_path: Path, cluster: Cluster
) -> None:
    handle = submit(job_in(tmp_path / "run"), cluster.address)
    follower = Follower(handle)
    follower.until_step(5)
    node = without_controller(cluster, handle)

    until_ms = int((time.time() + PATIENCE_S) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=cluster.address).drain_node(
        node.node_id, reason, "a drill", until_ms
    )

    assert accepted, why
    sentence = told(follower, "goes away .Ray drains it").fields["text"]
    assert "2 workers went on without them" in sentence
    assert "no step redone" in sentence
    cluster.remove_node(node, allow_graceful=False)
    told(follower, "was lost")
    newest = max(int(event.fields["step"]) for event in follower.events if event.kind == "step")
    follower.until_step(newest + 20, generation=2)
    summary = stop(handle, follower)
    assert (summary["nodes_lost"], summary["regroupings"], summary["faults"]) == (1, 1, 0)
    assert summary["open_steps_redone"] == 0


def test_a_node_whose_memory_flips_bits_again_and_again_is_put_in_quarantine(
    tmp_path: Path, cluster: Cluster
) -> None:
    handle = submit(job_in(tmp_path / "run"), cluster.address)
    follower = Follower(handle)
    follower.until_step(5)
    live = LiveJob(handle.directory)
    world = World(handle.directory, live)
    live.poll()
    bad = min(worker.node for worker in live.members)
    victim = min(worker.number for worker in live.members if worker.node == bad)
    rng = np.random.default_rng(7)

    for count in range(1, 4):
        generation = live.generation
        blow = FlipBit().strike(world, Target(worker=victim), rng)
        assert blow.victims == (f"worker {victim}",)
        follower.until_step(1, generation=generation + 1)
        live.poll()
        assert live.rungs == ["retry"] * count

    told(follower, f"node {bad} had 3 faults of its own .* it gets no workers for 600 s")
    sentence = told(follower, f"node {bad} is in quarantine; 2 workers went on").fields["text"]
    assert "no step redone" in sentence
    summary = stop(handle, follower)
    live.poll()
    assert {worker.node for worker in live.members}.isdisjoint({bad})
    assert (summary["nodes_quarantined"], summary["regroupings"]) == (1, 1)


def test_a_terminated_worker_is_replaced_between_two_steps(
    tmp_path: Path, processes: Processes
) -> None:
    handle = submit(job_in(tmp_path / "run"))
    follower = Follower(handle)
    follower.until_step(5)
    live = LiveJob(handle.directory)
    live.poll()
    victim = live.members[0]
    process = Process.open(victim.pid)
    assert process is not None

    assert process.send(signal.SIGTERM)

    sentence = told(follower, r"was told to end \(SIGTERM\); replaced from").fields["text"]
    assert sentence.startswith(f"worker {victim.number} ")
    assert "no step redone" in sentence
    assert process.wait(PATIENCE_S)
    process.close()
    follower.until_step(1, generation=2)
    summary = stop(handle, follower)
    assert (summary["faults"], summary["workers_lost"], summary["regroupings"]) == (0, 1, 1)

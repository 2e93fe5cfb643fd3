"""A cluster that is there already: two raylets on one machine, fake training, real kills."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from jobs_for_tests import tiny_job
from processes import Follower, Processes
from ray.cluster_utils import Cluster

from elasticmoe.cluster.forking import same_modules
from elasticmoe.cluster.jobs import submit
from elasticmoe.cluster.run import DOMAIN_LABEL
from elasticmoe.errors import ClusterError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]
FAKE = "fake_worker:run_worker"


@pytest.fixture
def cluster(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without room for workers."""
    monkeypatch.setenv("PYTHONPATH", same_modules()["PYTHONPATH"])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_node_takes_its_workers_along_and_the_job_goes_on_with_the_rest(
    tmp_path: Path, cluster: Cluster, processes: Processes
) -> None:
    nodes = [
        cluster.add_node(num_cpus=1, labels={DOMAIN_LABEL: domain}) for domain in ("left", "right")
    ]
    handle = submit(tiny_job(tmp_path / "run", steps=200), cluster.address, entry=FAKE)
    follower = Follower(handle)
    follower.until_step(3)
    workers = processes.workers()
    assert len(workers) == 2

    raylets = [
        info.process.pid
        for node in nodes
        for kind, infos in node.all_processes.items()
        for info in infos
        if kind == "raylet"
    ]
    # Not the controller's: it goes to the head if it can, but Ray does not promise that.
    raylet = next(pid for pid in raylets if pid != psutil.Process(handle.pids["controller"]).ppid())
    os.kill(raylet, signal.SIGKILL)

    again = follower.until_step(1, generation=2)
    assert again.fields["generation"] == 2
    assert len(set(workers) & set(processes.found())) <= 1
    end = follower.until_kind("end").fields
    assert end["outcome"] == "done"
    assert end["summary"]["nodes_lost"] == 1
    assert end["summary"]["ignored_events"] == 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:10001"])
def test_an_address_where_no_ray_listens_is_refused_in_one_sentence(
    tmp_path: Path, address: str
) -> None:
    with pytest.raises(ClusterError, match=address):
        submit(tiny_job(tmp_path / "run"), address, entry=FAKE)

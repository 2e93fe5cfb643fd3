"""A cluster that is there already: two raylets on one machine, fake training, real kills."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from jobs_for_tests import tiny_job
from processes import Follower, Processes
from ray.cluster_utils import Cluster
from ray.exceptions import ActorDiedError

from elasticmoe.client import JobClient
from elasticmoe.cluster.agent_actor import AgentActor, place_agent
from elasticmoe.cluster.agent_config import AgentConfig
from elasticmoe.cluster.forking import same_modules
from elasticmoe.cluster.jobs import submit, with_absolute_paths
from elasticmoe.cluster.run import DOMAIN_LABEL, NAMESPACE, RayNode, Run, Seat
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
    handle = submit(tiny_job(tmp_path / "run", steps=150), cluster.address, entry=FAKE)
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


def test_an_agent_whose_controller_died_while_it_was_placed_is_claimed_by_the_next_one(
    tmp_path: Path, cluster: Cluster, processes: Processes
) -> None:
    cluster.add_node(num_cpus=1)
    job = tiny_job(tmp_path / "run", steps=100_000)
    handle = submit(job, cluster.address, entry=FAKE)
    events = JobClient(handle.url, handle.token, handle.directory).events()
    first = next(event for event in events if event.kind == "workers")
    assert len(first.fields["workers"]) == 1

    controller = handle.pids["controller"]
    os.kill(controller, signal.SIGSTOP)  # it sees nothing of what comes now
    known = {node["NodeID"] for node in ray.nodes()}
    cluster.add_node(num_cpus=1)
    new = next(RayNode.from_ray(node) for node in ray.nodes() if node["NodeID"] not in known)
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    run_id = next(name.split("-")[1] for name in names if name.endswith("-controller"))
    run = Run(run_id, with_absolute_paths(job).model_dump_json(), FAKE, ours=False)
    agent = place_agent(run, Seat(new, new.name, 1, {"CPU": 1.0}))
    assert ray.get(agent.whereabouts.remote()) == (new.id, 1)
    os.kill(controller, signal.SIGKILL)

    both = next(event for event in events if len(event.fields.get("workers", ())) == 2)
    assert new.name in {worker["node"] for worker in both.fields["workers"]}
    assert ray.get(agent.whereabouts.remote()) == (new.id, 1)  # no other one took its place
    JobClient.of_directory(handle.directory).stop()
    assert next(event for event in events if event.kind == "end").fields["outcome"] == "stopped"


def test_an_agent_that_no_controller_claims_ends_itself(
    tmp_path: Path, cluster: Cluster, processes: Processes
) -> None:
    job = tiny_job(tmp_path / "run").model_dump_json()
    config = AgentConfig("here", "here", "127.0.0.1", 1, job, str(tmp_path / "logs"), FAKE)
    ray.init(address=cluster.address, namespace=NAMESPACE)
    began_s = time.monotonic()
    kind = ray.remote(AgentActor).options(name="nobody's", lifetime="detached", num_cpus=0)

    agent = kind.remote(config, "no controller", False, claim_timeout_s=1.0)

    with pytest.raises(ActorDiedError):
        ray.get(agent.watch.remote(), timeout=60)
    assert time.monotonic() - began_s > 1.0
    assert (tmp_path / "logs" / "agent-here.log").exists()  # it had begun
    processes.wait_until_gone(processes.named("AgentActor"))  # its warm parent follows as late


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:10001"])
def test_an_address_where_no_ray_listens_is_refused_in_one_sentence(
    tmp_path: Path, address: str
) -> None:
    with pytest.raises(ClusterError, match=address):
        submit(tiny_job(tmp_path / "run"), address, entry=FAKE)

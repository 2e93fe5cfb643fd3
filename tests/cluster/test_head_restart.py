"""Ray's head (its GCS) is killed: it comes back from what it kept, or not at all. Real training."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jobs_for_tests import tiny_job
from processes import PATIENCE_S, Processes
from ray_heads import Head, free_port, ray_head

from chaos.live import LiveJob
from elasticmoe.client import JobClient
from elasticmoe.cluster.journal_file import read_journal
from elasticmoe.controller.history import check_history
from elasticmoe.controller.story import story

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]
REDIS = pytest.param(
    "redis",
    marks=pytest.mark.skipif(
        shutil.which("redis-server") is None, reason="redis-server is not installed"
    ),
)
RAY_PATIENCE_S = 8
"""Ray's own, where its head does not come back; by default a minute."""


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + PATIENCE_S
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline_s, "redis-server does not listen"
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def start(head: Head, directory: Path) -> LiveJob:
    """Submit a job from a process that ends, and wait for its first steps."""
    job = tiny_job(directory, steps=100_000)
    job = job.model_copy(update={"schedule": job.schedule.model_copy(update={"kind": "constant"})})
    subprocess.run(
        [sys.executable, "-m", "chaos.submit", head.address],
        input=job.model_dump_json(),
        env=head.environment,
        text=True,
        check=True,
        timeout=90,
        cwd=Path(__file__).parents[2],
    )
    live = LiveJob(directory)
    wait(live, lambda: live.committed >= 5, "its first steps")
    return live


def wait(live: LiveJob, there: object, what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    assert callable(there)
    while not there():
        assert time.monotonic() < deadline_s, f"{what} did not come within {timeout_s:g} s"
        time.sleep(0.02)
        live.poll()


@pytest.mark.parametrize("store", ["rocksdb", REDIS])
def test_training_goes_on_without_the_head_and_the_head_comes_back_to_it(
    store: str, tmp_path: Path, processes: Processes
) -> None:
    kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(tmp_path / "gcs")}
    with redis(tmp_path) if store == "redis" else _nothing() as address:
        more = {"RAY_REDIS_ADDRESS": address} if address else kept
        with ray_head(tmp_path, more) as head:
            live = start(head, tmp_path / "run")

            head.kill_gcs()
            before = live.committed
            wait(live, lambda: live.committed >= before + 50, "50 steps without a head")
            head.restart_gcs()

            victim = live.members[-1]
            os.kill(victim.pid, signal.SIGKILL)
            wait(live, lambda: live.reported_generation == 2, "a step after a worker's death")
            JobClient.of_directory(tmp_path / "run").stop()
            wait(live, lambda: live.is_over, "the end")
            outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
            assert (outcome["outcome"], outcome["steps_rolled_back"]) == ("stopped", 0)
            assert (outcome["controller_terms"], outcome["nodes_lost"]) == (1, 0)
            assert check_history(read_journal(tmp_path / "run" / "journal")) == []
            processes.kill_all()


def test_without_a_head_that_comes_back_the_job_ends_with_a_checkpoint_and_a_sentence(
    tmp_path: Path, processes: Processes
) -> None:
    more = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RAY_PATIENCE_S)}
    with ray_head(tmp_path, more) as head:
        live = start(head, tmp_path / "run")

        head.kill_gcs()

        wait(live, lambda: live.is_over, "the end")
        sentences = story(read_journal(tmp_path / "run" / "journal"))
        assert "stopped by the loss of Ray's head (6 s without answer) at step" in sentences[-1]
        assert "; saved in " in sentences[-1]
        assert "not kept" not in sentences[-1]
        processes.wait_until_job_gone()
        processes.kill_all()


@contextmanager
def _nothing() -> Iterator[str]:
    yield ""

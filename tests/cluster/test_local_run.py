"""A run on this machine with a Ray of its own: real processes, fake training, real kills."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jobs_for_tests import tiny_job
from processes import Follower, Processes, parent_of

from elasticmoe.client import JobClient
from elasticmoe.cluster.forking import same_modules
from elasticmoe.cluster.jobs import submit
from elasticmoe.cluster.journal_file import read_journal
from elasticmoe.controller.history import check_history
from elasticmoe.errors import DataError, StorageError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]
FAKE = "fake_worker:run_worker"


def test_a_job_runs_through_a_killed_worker_and_leaves_nothing_behind(
    tmp_path: Path, processes: Processes
) -> None:
    handle = submit(tiny_job(tmp_path / "run", steps=150), entry=FAKE)
    follower = Follower(handle)
    follower.until_step(3)

    os.kill(processes.workers()[-1], signal.SIGKILL)

    follower.until_step(1, generation=2)
    end = follower.until_kind("end")
    assert end.fields["outcome"] == "done"
    assert end.fields["summary"]["faults"] == 1
    assert end.fields["summary"]["ignored_events"] == 0
    processes.wait_until_none_left()
    assert check_history(read_journal(tmp_path / "run" / "journal")) == []


@pytest.mark.parametrize("victim", ["supervisor", "raylet"])
def test_nobody_trains_on_when_what_the_run_stands_on_is_killed(
    victim: str, tmp_path: Path, processes: Processes
) -> None:
    handle = submit(tiny_job(tmp_path / "run"), entry=FAKE, patience_s=3)
    Follower(handle).until_step(3)
    raylet = parent_of(handle.pids["controller"])
    pid = {"supervisor": handle.pids["supervisor"], "raylet": raylet}[victim]
    assert processes.workers()

    os.kill(pid, signal.SIGKILL)

    processes.wait_until_none_left()


def test_a_killed_agent_takes_its_workers_along_and_another_one_takes_its_place(
    tmp_path: Path, processes: Processes
) -> None:
    handle = submit(tiny_job(tmp_path / "run", steps=150), entry=FAKE)
    follower = Follower(handle)
    follower.until_step(3)
    orphans = processes.workers()
    (agent,) = processes.named("ray::AgentActor")

    os.kill(agent, signal.SIGKILL)

    follower.until_step(1, generation=2)
    assert orphans
    processes.wait_until_gone(orphans)
    assert follower.until_kind("end").fields["summary"]["nodes_lost"] == 1


def test_a_killed_controller_is_restarted_and_the_job_ends_well(
    tmp_path: Path, processes: Processes
) -> None:
    handle = submit(tiny_job(tmp_path / "run", steps=300), entry=FAKE)
    Follower(handle).until_step(3)
    workers = processes.workers()

    os.kill(handle.pids["controller"], signal.SIGKILL)

    processes.wait_until_none_left()
    records = read_journal(tmp_path / "run" / "journal")
    assert sorted(path.name for path in (tmp_path / "run" / "journal").iterdir())[-1] != "00000001"
    assert '"outcome": "done"' in (tmp_path / "run" / "outcome.json").read_text()
    assert check_history(records) == []
    assert workers


def test_a_job_goes_on_when_the_process_that_submitted_it_is_killed(
    tmp_path: Path, processes: Processes
) -> None:
    job = tmp_path / "job.json"
    job.write_text(tiny_job(tmp_path / "run", steps=150).model_dump_json())
    text = (
        "import sys, time; from pathlib import Path\n"
        "from elasticmoe.cluster.jobs import submit; from elasticmoe.spec.job import JobSpec\n"
        f"submit(JobSpec.model_validate_json(Path({str(job)!r}).read_text()), entry={FAKE!r})\n"
        "print('running', flush=True); time.sleep(60)\n"
    )
    terminal = subprocess.Popen(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        env={**os.environ, **same_modules()},
        start_new_session=True,
    )
    assert terminal.stdout is not None
    assert terminal.stdout.readline() == b"running\n"

    os.killpg(terminal.pid, signal.SIGKILL)

    assert terminal.wait() == -signal.SIGKILL
    assert processes.wait_for_workers(2)
    processes.wait_until_none_left()
    assert '"outcome": "done"' in (tmp_path / "run" / "outcome.json").read_text()


def test_a_stop_needs_the_token_and_ends_the_job_with_a_checkpoint(
    tmp_path: Path, processes: Processes
) -> None:
    job = tiny_job(tmp_path / "run")
    handle = submit(job, entry=FAKE)
    follower = Follower(handle)
    follower.until_step(3)
    assert b"elasticmoe_step " in _get(f"{handle.url}/metrics")
    with pytest.raises(Exception, match="401"):
        JobClient(handle.url, "wrong").stop()
    with pytest.raises(StorageError, match=f"pid {handle.pids['controller']}"):
        submit(job, entry=FAKE)

    JobClient(handle.url, handle.token).stop()

    end = follower.until_kind("end")
    assert end.fields["outcome"] == "stopped"
    assert end.fields["checkpoint"]
    processes.wait_until_none_left()


def test_a_job_without_its_data_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, processes: Processes
) -> None:
    job = tiny_job(tmp_path / "run")
    for shard in (tmp_path / "data").iterdir():
        shard.unlink()

    with pytest.raises(DataError, match="data"):
        submit(job, entry=FAKE)

    processes.wait_until_none_left()


def _get(url: str) -> bytes:
    import urllib.request

    with urllib.request.urlopen(url, timeout=5) as reply:
        body: bytes = reply.read()
    return body

"""What keeps a job from starting: one clear error each, without Ray."""

import os
from pathlib import Path

import pytest
from jobs_for_tests import tiny_job

from elasticmoe.cluster.clerk import check_memory, inspect_job
from elasticmoe.cluster.directory import check_directory, lock_directory
from elasticmoe.cluster.jobs import with_absolute_paths
from elasticmoe.errors import PlanError, StorageError
from elasticmoe.model.inventory import build_inventory


def node(memory_bytes: int) -> dict[str, object]:
    return {"node": "here", "domain": "here", "capacity": 8, "memory_bytes": memory_bytes}


def test_a_directory_of_a_running_job_is_refused_with_the_pid_that_has_it(tmp_path: Path) -> None:
    lock = lock_directory(tmp_path)

    with pytest.raises(StorageError, match=f"running job \\(pid {os.getpid()} on"):
        check_directory(tmp_path)

    lock.close()
    check_directory(tmp_path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")

    with pytest.raises(StorageError, match="cannot be used: Not a directory"):
        check_directory(tmp_path / "file" / "run")


def test_a_node_with_too_little_memory_is_refused_with_the_number_needed(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run")
    inventory = build_inventory(job.model, job.data.seq_len)

    with pytest.raises(PlanError, match=r"has 1,000 bytes of memory left, .* puts [\d,]+ there"):
        check_memory(job, inventory, [node(1000)])

    check_memory(job, inventory, [node(1 << 30)])


def test_a_fresh_job_starts_from_no_checkpoint(tmp_path: Path) -> None:
    found = inspect_job(tiny_job(tmp_path / "run"), [node(1 << 30)])

    assert found["checkpoints"] == []
    assert found["skipped"] == []
    assert found["inventory"]["units"]


def test_relative_paths_of_a_job_hold_for_processes_in_other_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = tiny_job(tmp_path / "run")
    storage = job.storage.model_copy(update={"dir": "run", "checkpoints": "s3://bucket/run"})

    absolute = with_absolute_paths(job.model_copy(update={"storage": storage}))

    assert absolute.storage.dir == str(tmp_path / "run")
    assert absolute.storage.checkpoints == "s3://bucket/run"

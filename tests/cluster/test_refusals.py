"""What keeps a job from starting: one clear error each, without Ray."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jobs_for_tests import tiny_job

from elasticmoe.checkpoint.store import open_store
from elasticmoe.checkpoint.write import write_part
from elasticmoe.cluster.clerk import check_memory, checkpoint_store, inspect_job, seal_checkpoint
from elasticmoe.cluster.directory import check_directory, lock_directory
from elasticmoe.cluster.jobs import with_absolute_paths
from elasticmoe.errors import CheckpointError, PlanError, StorageError
from elasticmoe.model.inventory import build_inventory
from elasticmoe.runtime.pack import pack
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data, to_data


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


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that may be looked at and not written, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            os.seteuid(user)
            os.chmod(directory, 0o700)


def test_a_read_only_directory_is_refused(read_only: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be used: Permission denied\. Choose another"):
        check_directory(read_only)

    with pytest.raises(StorageError, match="permission denied; choose a directory that this user"):
        open_store(read_only).check_usable()


def test_a_full_disk_is_refused_with_the_bytes_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(f_bavail=10, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: full)

    with pytest.raises(StorageError, match=r"has 40,960 bytes free, at least [\d,]+ are needed"):
        check_directory(tmp_path)


def checkpointed(root: Path) -> JobSpec:
    """A job whose directory holds a sealed checkpoint of step 10."""
    job = tiny_job(root / "run")
    files = write_part(checkpoint_store(job), 10, "g1-m0", [])
    seal_checkpoint(job, 10, 1, files, {"step": 10, "updates": 10})
    return job


def changed(job: JobSpec, *path: str, to: Any) -> JobSpec:
    data = to_data(job)
    table: Any = data
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = to
    return parse_data(data)


@pytest.mark.parametrize(
    "path, to, message",
    [
        (
            ("model", "num_layers"),
            3,
            r"model\.num_layers: the checkpoint has 2, the job asks for 3",
        ),
        (("batch", "global_samples"), 16, r"batch\.global_samples 8, the job asks for 16"),
        (("data", "seed"), 5, r"data\.seed 0, the job asks for 5"),
    ],
)
def test_a_job_that_changed_since_its_checkpoint_is_refused_with_both_values(
    tmp_path: Path, path: tuple[str, ...], to: int, message: str
) -> None:
    job = checkpointed(tmp_path)
    nodes = [node(1 << 30)]
    assert [one["step"] for one in inspect_job(job, nodes)["checkpoints"]] == [10]

    with pytest.raises(CheckpointError, match=message):
        inspect_job(changed(job, *path, to=to), nodes)


def test_other_text_under_the_same_path_is_refused(tmp_path: Path) -> None:
    job = checkpointed(tmp_path)
    (tmp_path / "text.txt").write_text("another text altogether\n" * 400)
    pack([tmp_path / "text.txt"], tmp_path / "data")

    with pytest.raises(CheckpointError, match="the training data changed: the checkpoint knows"):
        inspect_job(job, [node(1 << 30)])


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

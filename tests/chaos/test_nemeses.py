"""Nemeses prove that they struck, and refuse to claim it where they did not."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chaos.clock import Clock
from chaos.errors import GoneError
from chaos.live import LiveJob, LiveWorker
from chaos.nemeses.memory import flip as flip_bit
from chaos.nemeses.memory import pick
from chaos.nemeses.processes import KillWorker, StopWorker, TerminateWorker
from chaos.nemeses.storage import cut_short, fill, flip_byte
from chaos.proc import Process, kill
from chaos.scenario import Target
from chaos.setting import small_disk
from chaos.world import World
from elasticmoe.plan.types import Inventory, Unit
from elasticmoe.vault.layout import VaultLayout
from elasticmoe.vault.vault import Vault, create_vault

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A job of one worker: a process that writes its log and does nothing."""
    logs = tmp_path / "logs"
    logs.mkdir()
    with (logs / "worker-3.log").open("w") as log:
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=log)
    live = LiveJob(tmp_path)
    live.workers = {3: LiveWorker(3, worker.pid, "a")}
    live.form = type("Form", (), {"workers": (3,), "plan": {"stages": [{"members": [0]}]}})()
    yield World(tmp_path, live)
    worker.kill()
    worker.wait()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_a_killed_worker_is_gone(world: World, rng: np.random.Generator) -> None:
    blow = KillWorker().strike(world, Target(stage=0), rng)

    assert blow.victims == ("worker 3",)
    assert "ended after SIGKILL" in blow.evidence


def test_a_worker_that_is_gone_already_was_not_killed_by_us(
    world: World, rng: np.random.Generator
) -> None:
    KillWorker().strike(world, Target(), rng)

    with pytest.raises(GoneError):
        KillWorker().strike(world, Target(), rng)


def test_a_process_that_is_not_of_the_job_is_never_struck(
    world: World, rng: np.random.Generator
) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    world.live.workers = {3: LiveWorker(3, stranger.pid, "a")}

    with pytest.raises(GoneError):
        KillWorker().strike(world, Target(), rng)

    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_stopped_worker_is_in_state_t_until_it_is_continued(
    world: World, rng: np.random.Generator
) -> None:
    blow = StopWorker().strike(world, Target(), rng)

    process = Process.open(world.live.workers[3].pid)
    assert process is not None
    assert process.state == "T"
    assert "state T" in blow.evidence
    assert blow.undo is not None
    assert "continued" in blow.undo()
    assert process.state != "T"


def test_a_worker_that_heeds_its_notice_is_not_killed(
    world: World, rng: np.random.Generator
) -> None:
    blow = TerminateWorker().strike(world, Target(), rng)
    process = Process.open(world.live.workers[3].pid)
    assert process is None or process.wait(5)

    assert blow.undo is not None
    assert blow.undo() == "all left in time"


def test_nobody_fits_an_aim_at_another_stage(world: World) -> None:
    assert KillWorker().obstacle(world, Target()) == ""
    assert KillWorker().obstacle(world, Target(stage=1)) != ""
    assert KillWorker().obstacle(world, Target(worker=2)) != ""


def test_killing_a_pid_that_is_free_is_no_kill() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    with pytest.raises(GoneError):
        kill(ended.pid, "nobody")


def test_a_flipped_byte_differs_in_one_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))

    flip_byte(path, rng)

    assert sum(path.read_bytes()) == 0x10


def test_a_truncated_file_has_lost_its_second_half(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))

    assert cut_short(path, rng) == "file: 500 of 1000 bytes are left"
    assert path.stat().st_size == 500


@ROOT
def test_a_filled_disk_takes_nothing_more_and_what_was_on_it_is_kept(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        (disk / "kept").write_text("x")
        size = fill(disk / "filler")
        assert size > 1 << 20
        with pytest.raises(OSError, match="No space"):
            (disk / "more").write_bytes(bytes(8192))
        (disk / "filler").unlink()
        (disk / "more").write_bytes(bytes(8192))

    assert (tmp_path / "disk" / "kept").read_text() == "x"
    assert not os.path.ismount(tmp_path / "disk")


def test_a_flipped_bit_in_a_vault_changes_one_number_of_one_unit(
    rng: np.random.Generator,
) -> None:
    units = tuple(Unit(index, 0, -1, 0, 32, 32) for index in range(3))
    layout = VaultLayout.of(Inventory((), units), num_experts=1, itemsize=4)
    fd = create_vault("3")
    vault = Vault(fd, layout)
    master = vault.array(np.float32, (96,), layout.tensors[0])
    master[:] = 1.0
    path = Path(f"/proc/self/fd/{fd}")
    assert pick(path, [32, 32, 32], "master", 18, rng) is None  # no unit is whole
    vault.stamps_U2[1] = 5

    found = pick(path, [32, 32, 32], "master", 18, rng)
    assert found is not None
    unit, bit = found
    flip_bit(bit)

    assert unit == 1
    (changed,) = np.flatnonzero(master != 1.0)
    assert 32 <= changed < 64
    assert master[changed] == 1.0 + 2.0**-5
    os.close(fd)


def test_a_skewed_clock_is_read_by_python_alone(tmp_path: Path) -> None:
    clock = Clock(tmp_path)

    assert "3600 s ahead" in clock.shift(3600.0)
    date = subprocess.run(
        ["date", "+%s"], env={**os.environ, **clock.environment}, capture_output=True, check=True
    )
    assert abs(int(date.stdout) - time.time()) < 60

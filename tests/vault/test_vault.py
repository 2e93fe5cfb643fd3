"""A vault keeps what a killed process had written, and says what of it is whole."""

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from elasticmoe.errors import StorageError
from elasticmoe.vault.contents import read_copies
from elasticmoe.vault.layout import VaultLayout
from elasticmoe.vault.pulse import Pulse, create_pulse
from elasticmoe.vault.vault import Vault, create_vault

LAYOUT = VaultLayout(
    num_units=5, num_layers=2, num_experts=4, numel=50_000, largest_unit=20_000, itemsize=4
)


@pytest.fixture
def file() -> Iterator[int]:
    fd = create_vault("test")
    yield fd
    os.close(fd)


def set_whole(vault: Vault, step: int, *units: int) -> None:
    vault.stamps_U2[list(units)] = step + 1


def bias(value: float) -> np.ndarray:
    return np.full((2, 4), value)


def test_nothing_in_a_vault_overlaps() -> None:
    sizes = [
        (LAYOUT.head, 8 * 64),
        (LAYOUT.stamps, 16 * 5),
        (LAYOUT.hashes, 8 * 5),
        (LAYOUT.progress(0), 16 * 8),
        (LAYOUT.progress(1), 16 * 8),
        (LAYOUT.counts, 8 * 8),
        *((offset, 200_000) for offset in LAYOUT.tensors),
        (LAYOUT.undo, 3 * 80_000),
    ]

    ends = [offset + size for offset, size in sizes]

    assert all(end <= next_ for end, (next_, _) in zip(ends, sizes[1:], strict=False))
    assert ends[-1] <= LAYOUT.size


def test_what_a_killed_process_wrote_is_there_for_the_next(file: int) -> None:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        vault = Vault(file, LAYOUT)
        vault.array(np.float32, (50_000,), LAYOUT.tensors[0])[7] = 3.5
        set_whole(vault, 12, 0, 3)
        vault.write_progress(12, 11, bias(0.25), bias(9.0), (1.5,))
        os.write(tell, b"x")
        signal.pause()
    assert os.read(ready, 1) == b"x"
    os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL

    vault = Vault(file)

    assert vault.layout == LAYOUT
    assert vault.array(np.float32, (50_000,), LAYOUT.tensors[0])[7] == 3.5
    progress = vault.read_progress(12)
    assert progress is not None
    updates, bias_LE, running_LE, extras = progress
    assert (updates, bias_LE[0, 0], running_LE[1, 3], extras[0]) == (11, 0.25, 9.0, 1.5)
    assert read_copies(vault, 4, is_alive=False).whole == ((12, (0, 3)),)


def test_an_empty_file_and_another_models_state_are_refused(file: int) -> None:
    with pytest.raises(StorageError, match="empty"):
        Vault(file)
    Vault(file, LAYOUT)
    other = VaultLayout(6, 2, 4, 60_000, 20_000, 4)

    with pytest.raises(StorageError, match="another model"):
        Vault(file, other)


def test_the_progress_of_the_step_before_stays_until_the_next_is_whole(file: int) -> None:
    vault = Vault(file, LAYOUT)

    for step in range(5):
        vault.write_progress(step, step, bias(step), bias(-step))
        assert vault.step == step
        kept = [at for at in range(6) if vault.read_progress(at) is not None]
        assert kept == ([step - 1, step] if step else [0])

    vault.clear_progress()
    assert vault.step == -1


def test_copies_are_old_new_torn_or_not_there(file: int) -> None:
    vault = Vault(file, LAYOUT)
    set_whole(vault, 7, 0, 1)
    set_whole(vault, 8, 2)
    vault.stamps_U2[3] = (9, 8)  # the update to step 8 was cut off
    vault.prepare(8, is_finite=True, loss=2.0, counts_LE=np.ones((2, 4), dtype=np.int64))
    vault.vote(8)

    copies = read_copies(vault, 2, is_alive=False, phase="apply", collective=40)

    assert copies.whole == ((7, (0, 1)), (8, (2,)))
    assert copies.torn == (3,)
    assert (copies.prepared, copies.voted, copies.step) == (8, 8, -1)
    assert (copies.worker, copies.phase, copies.collective) == (2, "apply", 40)


def test_a_torn_unit_whose_earlier_state_was_kept_counts_as_whole_at_that_step(file: int) -> None:
    vault = Vault(file, LAYOUT)
    vault.set_undo(3)
    vault.stamps_U2[3] = (9, 8)

    assert read_copies(vault, 0, is_alive=False).whole == ((7, (3,)),)


def test_state_on_an_accelerator_dies_with_its_process(file: int) -> None:
    vault = Vault(file, LAYOUT)
    set_whole(vault, 3, 0, 1)
    vault.dies_with_process()

    assert read_copies(vault, 0, is_alive=True).whole == ((3, (0, 1)),)
    assert read_copies(vault, 0, is_alive=False).whole == ()


def test_a_new_generation_forgets_what_was_prepared_and_voted(file: int) -> None:
    vault = Vault(file, LAYOUT)
    vault.prepare(8, is_finite=True, loss=2.0, counts_LE=np.zeros((2, 4), dtype=np.int64))
    vault.vote(8)

    vault.join(5)

    assert (vault.generation, vault.prepared, vault.voted) == (5, 0, 0)


def test_released_memory_goes_back_to_the_machine(file: int) -> None:
    vault = Vault(file, LAYOUT)
    first = LAYOUT.tensors[1]
    vault.array(np.float32, (50_000,), first)[:] = 1.0
    used = os.fstat(file).st_blocks

    vault.release(first, first + 200_000)

    assert used - os.fstat(file).st_blocks >= 48 * 8
    assert vault.array(np.float32, (50_000,), first)[0] == 0.0


def test_a_pulse_shows_that_its_worker_lives_and_what_it_does() -> None:
    fd = create_pulse("test")
    watcher, worker = Pulse(fd), Pulse(fd)
    os.close(fd)
    assert watcher.age_s() is None

    worker.beat()
    worker.enter("vote", 12)
    worker.count_collective()
    worker.count_collective()

    age_s = watcher.age_s()
    assert age_s is not None
    assert 0 <= age_s < 60
    assert (watcher.phase, watcher.step, watcher.collective) == ("vote", 12, 2)
    worker.restart_count()
    assert watcher.collective == 0


def test_beats_come_at_the_same_moments_in_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, beats = 1000.037, []

    class Stopped(Exception):
        pass

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds + 0.004  # woken late
        if len(beats) == 5:
            raise Stopped

    fd = create_pulse("test")
    pulse = Pulse(fd)
    os.close(fd)
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(pulse, "beat", lambda: beats.append(now_s))

    with pytest.raises(Stopped):
        pulse.beat_for_ever()

    assert beats == pytest.approx([1000.037, 1000.104, 1000.204, 1000.304, 1000.404])

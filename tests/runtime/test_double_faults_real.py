"""A second death in the middle of what the first one led to: real processes, stopped exactly there.

A replacement is forked from this process, so what is patched here while it is forked makes it, and
nobody else, stop where it shall die.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crews import Crew, make_job, undisturbed
from forked import Worker
from gangs import plan_for

from elasticmoe.runtime import recall
from elasticmoe.runtime.memory import State
from elasticmoe.vault.vault import Vault

pytestmark = [pytest.mark.dist, pytest.mark.timeout(110)]
STOP_TIMEOUT_S = 20.0


def stop_myself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_until(is_so: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def is_stopped(worker: Worker) -> bool:
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stop_all_prepared(crew: Crew) -> list[Vault]:
    """Stop everybody where all are prepared for the next step, and nobody has applied any of it."""
    vaults = [Vault(worker.vault) for worker in crew.workers]
    while True:
        for worker in crew.workers:
            os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: all(map(is_stopped, crew.workers)))
        step = max(vault.step for vault in vaults)
        if all(v.prepared == step + 1 and v.voted <= step == v.step for v in vaults):
            return vaults
        for worker in crew.workers:
            os.kill(worker.pid, signal.SIGCONT)
        time.sleep(0.002)


def whole_units(vault: Vault, step: int) -> set[int]:
    return set(np.flatnonzero(vault.steps_U() == step))


def trained_pair(directory: Path, crews: list[Crew]) -> Crew:
    """Two workers that have committed three steps."""
    job = make_job(directory, "fp32")
    crew = Crew(job, plan_for(job, 2))
    crews.append(crew)
    crew.train(3)
    return crew


def assert_as_if_undisturbed(crew: Crew, crews: list[Crew]) -> None:
    state = crew.finish(crew.committed + 3)
    expected = undisturbed(crew.job, crew.plan, crew.committed, crews)
    assert all(np.array_equal(state[unit], expected[unit]) for unit in expected)


def test_a_second_death_after_some_have_rolled_forward_keeps_the_step(
    tmp_path: Path, crews: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = trained_pair(tmp_path, crews)
    survivors, victims = stop_all_prepared(crew)
    step = survivors.prepared
    crew.kill(1)
    os.kill(crew.workers[0].pid, signal.SIGCONT)

    def stop_then_roll_forward(*arguments: Any) -> tuple[int, ...]:
        stop_myself()
        return recall_roll_forward(*arguments)

    recall_roll_forward = recall.roll_forward
    with monkeypatch.context() as patch:
        patch.setattr(recall, "roll_forward", stop_then_roll_forward)
        settled = crew.replace(1, forms=False)
    assert (settled.step, settled.commits_open_step) == (step, True)
    homes = [{u for u, at in enumerate(crew.plan.homes) if member in at} for member in (0, 1)]
    wait_until(lambda: is_stopped(crew.workers[1]) and whole_units(survivors, step) == homes[0])
    assert whole_units(victims, step - 1) == homes[1]  # one has rolled forward, the other has not
    crew.kill(1)

    settled = crew.replace(1)

    assert settled.step == step
    assert_as_if_undisturbed(crew, crews)


def test_a_replacement_that_dies_while_it_copies_is_replaced_by_one_that_copies_the_rest(
    tmp_path: Path, crews: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = trained_pair(tmp_path, crews)
    crew.kill(1)

    def fill_one(state: State, *arguments: Any, **named: Any) -> bool:
        is_whole = fill(state, *arguments, **named)
        stop_myself()
        return is_whole

    fill = State.fill
    with monkeypatch.context() as patch:
        patch.setattr(State, "fill", fill_one)
        settled = crew.replace_from_peers(1, forms=False)
    wait_until(lambda: is_stopped(crew.workers[1]))
    vault = Vault(crew.workers[1].vault)
    assert len(whole_units(vault, settled.step)) == 1  # of many: it dies in the middle
    assert sum(1 in homes for homes in crew.plan.homes) > 2
    crew.kill(1)

    again = crew.replace(1)

    assert again.step == settled.step
    assert_as_if_undisturbed(crew, crews)


def test_both_homes_of_all_units_die_with_their_nodes_alive(
    tmp_path: Path, crews: list[Crew]
) -> None:
    crew = trained_pair(tmp_path, crews)
    assert all(sorted(homes) == [0, 1] for homes in crew.plan.homes)
    crew.kill(0, 1)  # asserts that both have ended

    crew.replace(0, 1)

    assert_as_if_undisturbed(crew, crews)

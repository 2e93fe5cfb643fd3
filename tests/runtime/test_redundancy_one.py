"""With one home per unit a death in the middle of an update is undone from what was kept."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from crews import Crew, make_job, undisturbed
from gangs import plan_for

from elasticmoe.plan.types import Unit
from elasticmoe.runtime import optimizer
from elasticmoe.runtime.memory import State
from elasticmoe.spec.job import OptimizerSpec
from elasticmoe.vault.vault import Vault

pytestmark = [pytest.mark.dist, pytest.mark.timeout(60)]


def die_updating(doomed: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Workers forked from now on die in their nth update of a unit, half of it written, if their
    number of process is in the file."""
    honest, done = optimizer._adamw, []

    def update_half(
        state: State, unit: Unit, number: torch.Tensor, spec: OptimizerSpec, rate: float
    ) -> None:
        before = [tensor.clone() for tensor in state.tensors_of(unit)]
        honest(state, unit, number, spec, rate)
        if not (doomed.exists() and doomed.read_text() == str(os.getpid())):
            return
        done.append(unit.index)
        if len(done) == nth:
            for tensor, old in zip(state.tensors_of(unit), before, strict=True):
                tensor[unit.numel // 2 :] = old[unit.numel // 2 :]
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(optimizer, "_adamw", update_half)


def test_a_unit_with_one_home_whose_update_was_cut_off_is_put_back_and_updated_again(
    tmp_path: Path, crews: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, "fp32", redundancy=1)
    plan = plan_for(job, 2)
    assert all(len(homes) == 1 for homes in plan.homes)
    doomed = tmp_path / "doomed"
    with monkeypatch.context() as patch:
        die_updating(doomed, patch, nth=2)
        crew = Crew(job, plan)
    crews.append(crew)
    crew.train(3)

    doomed.write_text(str(crew.workers[1].pid))
    assert crew.workers[1].end() == -signal.SIGKILL
    vault = Vault(crew.workers[1].vault)
    (torn,) = np.flatnonzero(vault.stamps_U2[:, 0] != vault.stamps_U2[:, 1])  # the fault fired
    assert vault.undo_unit == torn
    step = vault.voted
    assert vault.stamps_U2[torn].tolist() == [step + 1, step]
    settled = crew.replace(1)

    assert (settled.step, settled.commits_open_step) == (step, True)
    state = crew.finish(crew.committed + 3)
    expected = undisturbed(job, plan, crew.committed, crews)
    assert all(np.array_equal(state[unit], expected[unit]) for unit in expected)

"""What is reported of a committed step: load, entropy, drops, speed, MFU."""

import os
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from gangs import Case, Pool, plan_for, tiny_job

from elasticmoe.model.inventory import build_inventory
from elasticmoe.plan.cost import step_flops
from elasticmoe.runtime.gang import Gang
from elasticmoe.runtime.peak import count_processors, measure_peak
from elasticmoe.runtime.record import StepResult, layer_metrics
from elasticmoe.runtime.step import step_metrics, train_step

CPU = torch.device("cpu")
EXPERTS, TOP_K = 8, 2


def test_the_figures_of_a_layer_are_those_of_the_global_batch() -> None:
    job = tiny_job(model={"num_layers": 2, "mtp_depth": 0})  # one MoE layer
    tokens = 16
    counts_E = np.array([16, 8, 4, 4, 0, 0, 0, 0])
    result = StepResult(
        loss=1.0,
        mtp_losses=(),
        aux_loss=0.0,
        gradient_norm=1.0,
        clip=1.0,
        command=0,
        counts_LE=counts_E[None],
        sums_LX=np.array([[3.0, tokens * log(EXPERTS) / 2, tokens * 0.25]]),
        samples=(0, 8),
    )
    running_LE = np.array([[6.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 2.0]])

    (found,) = layer_metrics(build_inventory(job.model, 12), TOP_K, result, running_LE)

    assert found == {
        "layer": "layer.1",
        "max_violation": pytest.approx(16 / 4 - 1),
        "running_violation": pytest.approx(6 / 4 - 1),
        "entropy": pytest.approx(0.5),
        "confidence": pytest.approx(0.25),
        "dead_experts": 4,
        "drop_rate": pytest.approx(3 / 32),
        "load": (400, 200, 100, 100, 0, 0, 0, 0),
    }


def test_a_peak_grows_with_the_workers_that_have_a_core_of_their_own() -> None:
    cores = os.cpu_count() or 1

    assert count_processors(["a"], 1, CPU) == 1
    assert count_processors(["a"] * 2 * cores, 1, CPU) == cores
    assert count_processors(["a"] * cores + ["b"], 1, CPU) == cores + 1
    assert count_processors(["a"] * 9, 1, torch.device("cuda")) == 9
    assert measure_peak(torch.float32, CPU) > 1e8  # any processor of this century


def metrics_of_one_more_step(gang: Gang) -> tuple[dict[str, Any], float]:
    """Runs on every member."""
    unknown = step_metrics(gang, train_step(gang, 0))
    assert unknown["mfu"] is None  # the yardstick has not been measured
    gang.measure()
    return step_metrics(gang, train_step(gang, 0)), gang.peak_flops


@pytest.mark.dist
def test_speed_and_mfu_of_a_step_come_from_its_time_and_the_models_work(pool: Pool) -> None:
    job = tiny_job()
    case = Case(job, plan_for(job, 2), 1, after=metrics_of_one_more_step)

    reports = [extra for _, extra in pool.run(case)]

    for report, peak_flops in reports:
        seconds = sum(report["phases"].values())
        flops = step_flops(job, build_inventory(job.model, job.data.seq_len))
        assert report["tokens"] == 8 * 12
        assert report["tokens_per_s"] == pytest.approx(8 * 12 / seconds)
        assert report["flops_per_s"] == pytest.approx(flops / seconds)
        assert report["mfu"] == pytest.approx(flops / seconds / peak_flops)
        assert 0 < report["mfu"] < 1
        for layer in report["layers"]:
            assert sum(layer["load"]) == pytest.approx(100 * EXPERTS, abs=EXPERTS / 2)
            assert layer["drop_rate"] == 0
            assert 0 < layer["entropy"] <= 1

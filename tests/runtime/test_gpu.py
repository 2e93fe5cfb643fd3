"""The same engine on CUDA: one member on one GPU, a member per GPU where there are several."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gangs import Case, Outcome, Pool, merged, plan_for, run_member, serial_run, tiny_job

from elasticmoe.runtime.groups import Group, Over, Rendezvous, _new_backend
from elasticmoe.spec.job import JobSpec

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

STEPS = 5
SIZES: dict[str, Any] = {"hidden_size": 32, "moe": {"expert_hidden_size": 32}}


def job_in(precision: str, **sections: Any) -> JobSpec:
    return tiny_job(model={**SIZES, "precision": precision}, **sections)


def alone_on_cuda(job: JobSpec) -> Outcome:
    rendezvous = Rendezvous("127.0.0.1", 0, 1)
    case = Case(job, plan_for(job, 1), STEPS, device="cuda")
    return run_member(case, 0, rendezvous.port, rendezvous.generation)[0]


@pytest.mark.parametrize("precision, bound", [("fp64", 1e-9), ("fp32", 1e-4)], ids=["fp64", "fp32"])
def test_one_gpu_computes_what_the_cpu_computes(precision: str, bound: float) -> None:
    job = job_in(precision)

    found = alone_on_cuda(job)

    wanted = serial_run(job, STEPS)
    assert np.abs(np.array(found.losses) / np.array(wanted.losses) - 1).max() < bound
    if precision == "fp64":
        for unit, master in wanted.masters.items():
            scale = max(float(np.abs(master).max()), 1e-30)
            assert np.abs(found.masters[unit] - master).max() / scale < bound


@pytest.mark.parametrize("balance", [{}, {"loss": "global_batch"}, {"capacity_factor": 1.0}])
def test_bf16_on_cuda_follows_fp32_and_repeats_bit_for_bit(balance: dict[str, Any]) -> None:
    exact = serial_run(job_in("fp32", balance=balance), STEPS)

    first = alone_on_cuda(job_in("bf16", balance=balance))
    second = alone_on_cuda(job_in("bf16", balance=balance))

    assert np.abs(np.array(first.losses) / np.array(exact.losses) - 1).max() < 0.02
    assert first.losses == second.losses
    for unit, master in first.masters.items():
        assert np.array_equal(master, second.masters[unit])


def test_nccl_takes_every_call_that_the_exchanges_make() -> None:
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    torch.cuda.set_device(0)
    backend = _new_backend(dist.PrefixStore("g", store), 0, 1, "127.0.0.1", is_cuda=True)
    group = Group(backend, 0, 1, Over(), is_cuda=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64):
        rows = torch.arange(12, device="cuda").view(4, 3).to(dtype)
        arrived = torch.empty_like(rows)

        group._start("alltoall_base", arrived, rows, [4], [4], dist.AllToAllOptions()).wait()

        assert torch.equal(arrived, rows)
    group._start("barrier", dist.BarrierOptions()).wait()
    backend.abort()


needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@needs_two
@pytest.mark.dist
@pytest.mark.parametrize("replicas", ["one", "all"])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_gang_over_nccl_computes_what_one_process_computes(
    pool: Pool, stages: int, replicas: str
) -> None:
    parallel = {"stages": stages, "expert_replicas": replicas}
    job = job_in("fp64", parallel=parallel)
    members = min(torch.cuda.device_count(), 4)

    found = merged(pool.run(Case(job, plan_for(job, members), STEPS, device="cuda")))

    wanted = serial_run(job, STEPS)
    assert np.abs(np.array(found.losses) / np.array(wanted.losses) - 1).max() < 1e-9

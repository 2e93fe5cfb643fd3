"""Small gangs of real processes, and the one-process run they must equal.

Processes are made once and serve all tests; every run forms a new generation in them.
"""

import itertools
import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from elasticmoe.checkpoint.read import open_checkpoint_at
from elasticmoe.model.initialize import initial_unit
from elasticmoe.model.inventory import build_inventory
from elasticmoe.model.stage import StageModel
from elasticmoe.model.wave import SerialExchange, Wave
from elasticmoe.plan.bias import update_bias
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.types import Inventory, Member, Plan
from elasticmoe.runtime.gang import Gang, Seat, form_gang
from elasticmoe.runtime.groups import Over, Rendezvous
from elasticmoe.runtime.memory import COMPUTE_DTYPE, MASTER_DTYPE
from elasticmoe.runtime.optimizer import learning_rate
from elasticmoe.runtime.step import compare_homes, train_step
from elasticmoe.runtime.workplace import Workplace
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data

MAX_WORKERS = 8


def tiny_job(**sections: dict[str, Any]) -> JobSpec:
    """A job of seconds; each section's fields may be overridden."""
    base: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "model": {
            "vocab_size": 32,
            "hidden_size": 16,
            "num_layers": 4,
            "first_dense_layers": 1,
            "dense_hidden_size": 24,
            "attention": {
                "kind": "mla",
                "num_heads": 2,
                "q_lora_rank": 8,
                "kv_lora_rank": 8,
                "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 4,
                "v_head_dim": 8,
            },
            "moe": {
                "num_experts": 8,
                "top_k": 2,
                "expert_hidden_size": 16,
                "num_shared_experts": 1,
                "num_groups": 4,
                "top_groups": 2,
            },
            "mtp_depth": 1,
            "precision": "fp64",
            "init_std": 0.2,
        },
        "data": {"sources": [{"path": "nowhere"}], "seq_len": 12, "seed": 3},
        "batch": {"global_samples": 8, "num_waves": 2},
        "balance": {"bias_rate": 0.01},
        "optimizer": {"learning_rate": 0.01},
        "schedule": {"steps": 100, "warmup_steps": 2},
        "workers": {"replicas": 1, "min": 1, "max": 16},
        "storage": {"dir": "nowhere"},
    }
    for section, fields in sections.items():
        base[section] = _merged(base.get(section, {}), fields)
    return parse_data(base)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    nested = {k: _merged(base[k], v) for k, v in over.items() if isinstance(base.get(k), dict)}
    return {**base, **over, **nested}


class RandomSamples:
    """Token ids that are a pure function of the sample's number."""

    def __init__(self, job: JobSpec) -> None:
        self._tokens, self._vocab = job.sample_tokens, job.model.vocab_size
        self.newest = (0, 0)

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = [
            # the smaller ids are more frequent, so that there is something to learn
            np.random.default_rng(number).geometric(0.2, self._tokens) % self._vocab
            for number in range(start, stop)
        ]
        self.newest = (start, stop)
        return np.array(rows, dtype=np.int64).reshape(-1, self._tokens)


@dataclass
class Outcome:
    """What a run of some steps left, by unit index."""

    losses: list[float] = field(default_factory=list)
    mtp_losses: list[tuple[float, ...]] = field(default_factory=list)
    aux_losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[int, np.ndarray] = field(default_factory=dict)
    """Of the last step, clipped."""
    masters: dict[int, np.ndarray] = field(default_factory=dict)
    exp_avgs: dict[int, np.ndarray] = field(default_factory=dict)
    exp_avg_sqs: dict[int, np.ndarray] = field(default_factory=dict)
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: list[np.ndarray] = field(default_factory=list)
    drops: list[float] = field(default_factory=list)
    samples: list[tuple[int, int]] = field(default_factory=list)
    """What the members of every stage read: first number, and one behind the last."""


@dataclass(frozen=True)
class Case:
    """One gang's run."""

    job: JobSpec
    plan: Plan
    steps: int
    checkpoint: str | None = None
    device: str = "cpu"
    """`cuda`: member i on GPU i."""
    after: Callable[[Gang], Any] | None = None
    """Called on every member at the end; a module-level function."""


def plan_for(job: JobSpec, workers: int, nodes: int = 1) -> Plan:
    """The job's plan on this many workers, spread over nodes."""
    members = tuple(
        Member(index, f"node{index * nodes // workers}", f"node{index * nodes // workers}")
        for index in range(workers)
    )
    return make_plan(job, build_inventory(job.model, job.data.seq_len), members)


def run_member(case: Case, member: int, port: int, generation: int) -> tuple[Outcome, Any]:
    """One member's life in a worker process of the pool."""
    job = case.job
    inventory = build_inventory(job.model, job.data.seq_len)
    gang = form_gang(
        Workplace(job, inventory, _device(case, member)),
        Seat(case.plan, member, Rendezvous("127.0.0.1", port, generation)),
        over=Over(),
        start=None if case.checkpoint is None else open_checkpoint_at(case.checkpoint),
        reader=RandomSamples(job),
    )
    try:
        return _run(case, gang)
    finally:
        gang.groups.close()  # frees the others if this member failed


def _device(case: Case, member: int) -> torch.device:
    device = torch.device(f"cuda:{member}" if case.device == "cuda" else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _run(case: Case, gang: Gang) -> tuple[Outcome, Any]:
    outcome = Outcome()
    for _ in range(case.steps):
        done = train_step(gang, 0)
        compare_homes(gang)
        result = done.result
        outcome.losses.append(result.loss)
        outcome.mtp_losses.append(result.mtp_losses)
        outcome.aux_losses.append(result.aux_loss)
        outcome.norms.append(result.gradient_norm)
        outcome.counts.append(result.counts_LE)
        outcome.samples.append(result.samples)
        outcome.drops.append(float(result.sums_LX[:, 0].sum()))
    homes = gang.homes
    for unit in homes.units:
        kept = [tensor.cpu().numpy().copy() for tensor in homes.state.tensors_of(unit)]
        outcome.masters[unit.index], outcome.exp_avgs[unit.index] = kept[:2]
        outcome.exp_avg_sqs[unit.index] = kept[2]
        gradients = homes.state.prepared[homes.state.slice_of(unit)]
        outcome.gradients[unit.index] = gradients.cpu().numpy().copy()
    outcome.bias = gang.progress.bias_LE.cpu().numpy().copy()
    extra = case.after(gang) if case.after is not None else None
    gang.groups.world.barrier()
    return outcome, extra


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        order = pipe.recv()
        if order is None:
            os._exit(0)
        try:
            pipe.send(("done", run_member(*order)))
        except Exception as error:
            pipe.send(("failed", "".join(traceback.format_exception(error))))


class Pool:
    """Processes that gangs are formed from."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["gangs"])
        self._pipes, self._processes = [], []
        for _ in range(MAX_WORKERS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._generations = itertools.count(1)
        self._store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)

    def run(self, case: Case) -> list[tuple[Outcome, Any]]:
        """Run the case on as many processes as its plan has members."""
        generation = next(self._generations)
        members = len(case.plan.members)
        for member, pipe in zip(range(members), self._pipes, strict=False):
            pipe.send((case, member, self._store.port, generation))
        answers = [pipe.recv() for pipe in self._pipes[:members]]
        failures = [what for how, what in answers if how == "failed"]
        assert not failures, failures
        return [what for _, what in answers]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(5)


def merged(outcomes: Sequence[tuple[Outcome, Any]]) -> Outcome:
    """One outcome of a gang, from its members' homes."""
    whole = outcomes[0][0]
    for outcome, _ in outcomes[1:]:
        assert outcome.losses == whole.losses
        assert np.array_equal(outcome.bias, whole.bias)
        for name in ("masters", "exp_avgs", "exp_avg_sqs", "gradients"):
            getattr(whole, name).update(getattr(outcome, name))
    return whole


def serial_run(job: JobSpec, steps: int) -> Outcome:
    """The one-process reference: torch's own AdamW and clipping, no plan, no exchange."""
    inventory = build_inventory(job.model, job.data.seq_len)
    dtype, master = COMPUTE_DTYPE[job.model.precision], MASTER_DTYPE[job.model.precision]
    assert dtype == master, "the reference keeps no master weights"
    slots = {block.index: tuple(range(block.num_experts)) for block in inventory.moe_blocks}
    everything = tuple(block.index for block in inventory.blocks)
    device = torch.device("cpu")
    stage = StageModel(
        job, inventory, everything, slots, is_first=True, is_last=True, dtype=dtype, device=device
    )
    flats, gradients = _serial_memory(job, inventory, stage, dtype)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": job.optimizer.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for block in inventory.blocks:
        flat, gradient = flats[block.index], gradients[block.index]
        rows = zip(flat.view(-1, block.numel), gradient.view(-1, block.numel), strict=True)
        for values, grads in rows:
            for group, part in enumerate(
                (slice(0, block.decay_numel), slice(block.decay_numel, None))
            ):
                if values[part].numel():
                    leaf = values[part].detach().requires_grad_()
                    leaf.grad = grads[part]
                    groups[group]["params"].append(leaf)
    optimizer = torch.optim.AdamW(
        groups, lr=1.0, betas=job.optimizer.betas, eps=job.optimizer.eps, foreach=False
    )
    leaves = [leaf for group in groups for leaf in group["params"]]
    outcome = Outcome()
    samples = RandomSamples(job)
    bias_LE = torch.zeros(len(inventory.moe_blocks), job.model.moe.num_experts, dtype=master)
    exchange = SerialExchange({b: torch.arange(len(experts)) for b, experts in slots.items()})
    for step in range(steps):
        for leaf in leaves:
            leaf.grad.zero_()
        counts_LE = _serial_step(job, inventory, stage, samples, bias_LE, exchange, step, outcome)
        if job.optimizer.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(leaves, job.optimizer.clip_norm)
            outcome.norms.append(float(norm))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, job.optimizer, job.schedule)
        optimizer.step()
        bias_LE = torch.from_numpy(update_bias(bias_LE.numpy(), counts_LE, job.balance, step))
        outcome.counts.append(counts_LE)
    for unit in inventory.units:
        block = inventory.blocks[unit.block]
        at = unit.offset + max(unit.expert, 0) * block.numel
        outcome.masters[unit.index] = flats[unit.block][at : at + unit.numel].numpy().copy()
        outcome.gradients[unit.index] = gradients[unit.block][at : at + unit.numel].numpy().copy()
    outcome.bias = bias_LE.numpy().copy()
    return outcome


def _serial_memory(
    job: JobSpec, inventory: Inventory, stage: StageModel, dtype: torch.dtype
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    flats, gradients = {}, {}
    for block in inventory.blocks:
        copies = max(block.num_experts, 1)
        flat = torch.zeros(copies * block.numel, dtype=dtype)
        for unit in inventory.units_of_block[block.index]:
            at = unit.offset + max(unit.expert, 0) * block.numel
            initial = initial_unit(job.model, inventory, unit, job.data.seed, dtype)
            flat[at : at + unit.numel] = initial
        flats[block.index], gradients[block.index] = flat, torch.zeros_like(flat)
        shape = (copies, block.numel) if block.is_experts else (block.numel,)
        stage.bind(block.index, flat.view(shape), gradients[block.index].view(shape))
    return flats, gradients


def _serial_step(
    job: JobSpec,
    inventory: Inventory,
    stage: StageModel,
    samples: RandomSamples,
    bias_LE: torch.Tensor,
    exchange: SerialExchange,
    step: int,
    outcome: Outcome,
) -> np.ndarray:
    batch = job.batch
    tokens = batch.global_samples * job.data.seq_len
    earlier = torch.zeros(batch.num_waves, *bias_LE.shape, dtype=torch.int64)
    counts_LE = np.zeros(bias_LE.shape, dtype=np.int64)
    loss, aux, mtp = 0.0, 0.0, np.zeros(job.model.mtp_depth)
    for index in range(batch.num_waves):
        wave = Wave(
            index=index,
            first_sample=0,
            num_samples=batch.wave_samples,
            wave_samples=batch.wave_samples,
            step_tokens=tokens,
            num_waves=batch.num_waves,
            exchange=exchange,
            bias_LE=bias_LE,
            earlier_counts_LE=earlier,
        )
        start = step * batch.global_samples + index * batch.wave_samples
        ids = torch.from_numpy(samples.read(start, start + batch.wave_samples))
        output = stage(wave, ids, None)
        output.loss.backward()
        loss += output.lm_loss_sum / tokens
        mtp += np.array(output.mtp_loss_sums) / tokens
        aux += output.aux_loss
        for row, block in enumerate(inventory.moe_blocks):
            counts_LE[row] += wave.loads[block.index].counts_E.numpy()
    outcome.losses.append(loss)
    outcome.mtp_losses.append(tuple(mtp))
    outcome.aux_losses.append(aux)
    return counts_LE

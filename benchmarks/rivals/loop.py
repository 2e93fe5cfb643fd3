"""The training loop that one writes without this project: torch, AdamW, gradient accumulation.

The model is the same code as ours (`StageModel` over flat memory); what differs is everything
around it. All rivals share this loop and differ in their *team*: how gradients are summed.

Shapes: L = MoE layers, E = experts, M = rows, T = tokens, K = choices per token, D = hidden size.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from elasticmoe.model.initialize import initial_unit
from elasticmoe.model.inventory import build_inventory
from elasticmoe.model.stage import StageModel
from elasticmoe.model.wave import RunSlots, Wave
from elasticmoe.plan.bias import update_bias
from elasticmoe.plan.types import Block
from elasticmoe.runtime.data import SampleReader
from elasticmoe.spec.job import JobSpec


class Team(Protocol):
    """The workers of a data-parallel job, as one of them sees them."""

    rank: int
    size: int
    waited_s: float
    """In the newest step: what its sums waited until it was known who takes part."""

    @property
    def present(self) -> int:
        """Workers that took part in the newest step."""
        ...

    def begin(self) -> None:
        """A step begins."""
        ...

    def sum(self, tensor: Tensor) -> None:
        """Sum a tensor over all workers, in place."""
        ...

    def commit(self) -> bool:
        """Whether everybody's sums succeeded, so that the update may be applied."""
        ...


class Alone:
    """A team of one."""

    rank, size = 0, 1
    waited_s = 0.0

    @property
    def present(self) -> int:
        """See `Team`."""
        return self.size

    def begin(self) -> None:
        """See `Team`."""

    def sum(self, tensor: Tensor) -> None:
        """See `Team`."""

    def commit(self) -> bool:
        """See `Team`."""
        return True


class TorchTeam(Alone):
    """The default process group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, tensor: Tensor) -> None:
        """See `Team`."""
        dist.all_reduce(tensor)


class LocalExchange:
    """Token exchange of a worker that holds every expert: sort by expert, compute, sort back.

    Written for speed: `index_select` both ways, the way back by the inverse order (measured, 8,192
    rows forward + backward: 7.6 ms; with `index_copy` 9.5, with indexing more).
    """

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts

    def agree(self, block: int, counts_SE: Tensor) -> Tensor:
        """Own counts are everyone's."""
        return counts_SE

    def run(
        self,
        block: int,
        tokens_TD: Tensor,
        chosen_TK: Tensor,
        kept_NE: Tensor,
        slots: RunSlots,
        weights_TK: Tensor | None = None,
    ) -> Tensor:
        """See `TokenExchange.run`; nothing is ever dropped here."""
        chosen = chosen_TK.flatten()
        order = torch.argsort(chosen, stable=True)
        per_slot = torch.bincount(chosen, minlength=self._num_experts).tolist()
        rows_MD = slots(tokens_TD.index_select(0, order // chosen_TK.shape[1]), per_slot)
        rows_TKD = rows_MD.index_select(0, order.argsort()).view(*chosen_TK.shape, -1)
        if weights_TK is None:
            return rows_TKD
        return torch.bmm(weights_TK.to(rows_TKD.dtype)[:, None], rows_TKD).squeeze(1)


class TorchLoop:
    """Model, memory and optimizer of one worker of a data-parallel job."""

    def __init__(self, job: JobSpec, team: Team, *, ddp: bool = False) -> None:
        """
        Args:
            job: what to train, in fp32.
            team: who sums gradients; batches are split over it.
            ddp: dense gradients travel through DistributedDataParallel while the backward pass
                runs; else all gradients as one flat buffer behind it.
        """
        assert job.model.precision == "fp32", "the rivals keep no master weights"
        self.job, self.team, self.waves = job, team, job.batch.num_waves
        self.inventory = build_inventory(job.model, job.data.seq_len)
        self.steps_done = 0
        self.loss_share = 0.0
        """This worker's part of the newest step's loss; the parts of all add up to it."""
        self._reader = SampleReader(job.data, job.model.vocab_size, job.sample_tokens)
        blocks = tuple(block.index for block in self.inventory.blocks)
        slots = {b.index: tuple(range(b.num_experts)) for b in self.inventory.moe_blocks}
        self._stage = StageModel(
            job,
            self.inventory,
            blocks,
            slots,
            is_first=True,
            is_last=True,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self._exchange = LocalExchange(job.model.moe.num_experts)
        self._bias_LE = torch.zeros(len(slots), job.model.moe.num_experts)
        self._allocate()
        self._ddp = self._wrap() if ddp else None
        decayed, others = self._dense_leaves(ddp)
        decayed += [self._leaf(b, 0, b.num_experts * b.numel) for b in self.inventory.moe_blocks]
        self._leaves = decayed + others
        spec = job.optimizer
        groups = [
            {"params": decayed, "weight_decay": spec.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=True
        )

    def take(self, steps: int, waves: int | None = None) -> list[float]:
        """Take steps; returns the seconds of each. `waves`: micro-batches from now on."""
        self.waves = waves or self.waves
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - start)
        return seconds

    def step(self) -> bool:
        """One optimizer step; returns whether it was committed."""
        batch, team = self.job.batch, self.team
        team.begin()
        self.loss_share = 0.0
        if self._ddp is None:
            self.gradients.zero_()
        else:
            self.optimizer.zero_grad(set_to_none=False)
        mine = batch.global_samples // team.size
        first = self.steps_done * batch.global_samples + team.rank * mine
        counts_LE = torch.zeros(self._bias_LE.shape, dtype=torch.int64)
        for index in range(self.waves):
            with self._syncing(index == self.waves - 1):
                self._wave(index, mine // self.waves, first, counts_LE)
        team.sum(self.gradients if self._ddp is None else self._expert_gradients)
        team.sum(counts_LE)
        if not team.commit():
            return False
        if self.job.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._leaves, self.job.optimizer.clip_norm)
        self.optimizer.step()
        bias_LE = update_bias(
            self._bias_LE.numpy(), counts_LE.numpy(), self.job.balance, self.steps_done
        )
        self._bias_LE = torch.from_numpy(np.asarray(bias_LE, dtype=np.float32))
        self.steps_done += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """All there is to save; tensors are not copied."""
        return {
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "bias": self._bias_LE,
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.weights.copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._bias_LE = state["bias"].clone()
        self.steps_done = state["steps_done"]

    def _wave(self, index: int, samples: int, first: int, counts_LE: Tensor) -> None:
        start = first + index * samples
        wave = Wave(
            index=index,
            first_sample=0,
            num_samples=samples,
            wave_samples=samples,
            step_tokens=self.job.batch.global_samples * self.job.data.seq_len,
            num_waves=self.waves,
            exchange=self._exchange,
            bias_LE=self._bias_LE,
            earlier_counts_LE=torch.zeros(self.waves, *counts_LE.shape, dtype=torch.int64),
        )
        ids = torch.from_numpy(self._reader.read(start, start + samples))
        model: Callable[..., Any] = self._ddp or self._stage
        output = model(wave, ids, None)
        output.loss.backward()
        self.loss_share += output.lm_loss_sum / wave.step_tokens
        for row, block in enumerate(self.inventory.moe_blocks):
            counts_LE[row] += wave.loads[block.index].counts_E

    def _allocate(self) -> None:
        """One flat buffer each for weights and gradients; experts lie behind dense blocks."""
        blocks = sorted(self.inventory.blocks, key=lambda block: block.is_experts)
        self._start, numel = {}, 0
        for block in blocks:
            self._start[block.index] = numel
            numel += block.numel * max(block.num_experts, 1)
        self.weights, self.gradients = torch.zeros(numel), torch.zeros(numel)
        dense = sum(block.numel for block in blocks if not block.is_experts)
        self._expert_gradients = self.gradients[dense:]
        for unit in self.inventory.units:
            block = self.inventory.blocks[unit.block]
            at = self._start[unit.block] + unit.offset + max(unit.expert, 0) * block.numel
            self.weights[at : at + unit.numel] = initial_unit(
                self.job.model, self.inventory, unit, self.job.data.seed, torch.float32
            )
        for block in blocks:
            copies = max(block.num_experts, 1)
            here = slice(self._start[block.index], self._start[block.index] + copies * block.numel)
            shape = (copies, block.numel) if block.is_experts else (block.numel,)
            self._stage.bind(
                block.index, self.weights[here].view(shape), self.gradients[here].view(shape)
            )

    def _leaf(self, block: Block, start: int, stop: int) -> Tensor:
        """A slice of the flat memory as something an optimizer takes."""
        here = slice(self._start[block.index] + start, self._start[block.index] + stop)
        leaf = self.weights[here].detach().requires_grad_()
        leaf.grad = self.gradients[here]
        return leaf

    def _dense_leaves(self, ddp: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Dense weights with and without decay: few large ones, or what DDP put gradients in."""
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for block in self.inventory.blocks:
            if block.is_experts:
                continue
            if not ddp:
                parts = (0, block.decay_numel), (block.decay_numel, block.numel)
                for leaves, (start, stop) in zip((decayed, others), parts, strict=True):
                    leaves += [self._leaf(block, start, stop)] if start < stop else []
                continue
            module = self._stage.get_submodule(block.name.replace(".", "_"))
            for parameter in block.parameters:
                leaf = module.get_parameter(parameter.name)
                (decayed if parameter.decay else others).append(leaf)
        return decayed, others

    def _wrap(self) -> DistributedDataParallel:
        wrapped = DistributedDataParallel(self._stage, gradient_as_bucket_view=True)
        wrapped.register_comm_hook(None, _sum_bucket)
        return wrapped

    def _syncing(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if self._ddp is None or is_last else self._ddp.no_sync()


def _sum_bucket(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum instead of average: losses are already divided by the global batch."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])

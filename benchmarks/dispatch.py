"""What dispatch and combine of one MoE layer cost, against bare all-to-alls and a plain rival.

Shapes: S = samples of this worker, T = tokens, K = choices per token, D = hidden size,
E = experts, N = samples of the wave, M = rows.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.figures import Report
from benchmarks.member import Worker, start_gang
from benchmarks.rivals.job import Workload
from benchmarks.rivals.torch_dispatch import dispatch_and_combine
from elasticmoe.model.gate import choose
from elasticmoe.model.moe import LayerCall, MoE
from elasticmoe.model.router import route

LAYER = 3
"""Of the preset's six; its input has passed through attention and three MoE layers."""


class DispatchWorker(Worker):
    """A member that runs one MoE layer's exchange over and over."""

    def prepare(self, warmup_steps: int) -> None:
        """Take some steps, then catch what the layer is given in the first wave of the next."""
        self.join_torch()
        self.take(warmup_steps)
        caught: list[tuple[Tensor, LayerCall]] = []
        layer = min(LAYER, self.workload.job().model.num_layers - 1)
        module = self.gang.pipeline._stage.get_submodule(f"layer_{layer}.moe")
        assert isinstance(module, MoE)
        handle = module.register_forward_pre_hook(lambda _, given: caught.append(given))
        self.take(1)
        handle.remove()
        self._moe = module
        hidden_SPD, self._call = caught[0]
        self._hidden_SPD = hidden_SPD.detach().requires_grad_()
        self._tokens_TD = hidden_SPD.detach().flatten(0, 1).requires_grad_()
        bias_E = self._call.wave.bias_LE[self._call.row]
        choice = choose(route(module.router, self._tokens_TD), bias_E, module.moe)
        self._chosen_TK = choice.chosen_TK
        self._weights_TK = choice.weights_TK.detach().requires_grad_()

    def measure(self, rounds: int, balanced: bool, backward: bool) -> dict[str, list[float]]:
        """Time ours, the plain rival, bare all-to-alls and the whole layer, in turns.

        Returns:
            Seconds per round, the same on all workers: of the slowest one.
        """
        chosen_TK = self._balanced() if balanced else self._chosen_TK
        times = 4 if backward else 2
        turns: dict[str, Callable[[], Tensor | None]] = {
            "ours": lambda: self._ours(chosen_TK),
            "plain": lambda: self._plain(chosen_TK),
            "bare": self._make_bare(chosen_TK, times, _torch_all_to_all),
            "bare, own rows too": self._make_bare(chosen_TK, times, _torch_all_to_all, own=True),
            "bare, our wait": self._make_bare(chosen_TK, times, self.gang.groups.stage.all_to_all),
            "layer": lambda: self._moe(self._hidden_SPD, self._call)[0],
        }
        self._check(turns)
        gradient = torch.randn_like(self._tokens_TD)
        found: dict[str, list[float]] = {name: [] for name in turns}
        names = list(turns)
        for number in range(-len(names), rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                dist.barrier()
                start = time.perf_counter()
                out = turns[name]()
                if backward and out is not None:
                    out.backward(gradient.view(out.shape))
                seconds = time.perf_counter() - start
                if number >= 0:
                    found[name].append(seconds)
        slowest = torch.tensor(list(found.values()), dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        return dict(zip(found, slowest.tolist(), strict=True))

    def rows(self) -> tuple[int, int]:
        """Rows that this worker sends in all, and bytes of each."""
        return self._chosen_TK.numel(), self._tokens_TD.shape[1] * self._tokens_TD.element_size()

    def _ours(self, chosen_TK: Tensor) -> Tensor:
        exchange, block = self._call.wave.exchange, self._call.experts.block.index
        agreed_NE = exchange.agree(block, self._counts(chosen_TK))
        out_TD: Tensor = exchange.run(
            block, self._tokens_TD, chosen_TK, agreed_NE, _identity, self._weights_TK
        )
        return out_TD

    def _plain(self, chosen_TK: Tensor) -> Tensor:
        experts = self._moe.moe.num_experts
        return dispatch_and_combine(
            self._tokens_TD, chosen_TK, self._weights_TK, experts, _identity
        )

    def _make_bare(
        self, chosen_TK: Tensor, times: int, all_to_all: Callable[..., object], own: bool = False
    ) -> Callable[[], None]:
        """All-to-alls of the same bytes between buffers that are there already.

        Args:
            own: with the rows that a worker has for itself, which need not travel.
        """
        experts = self._moe.moe.num_experts
        sent = chosen_TK.flatten().bincount(minlength=experts).view(self.workers, -1).sum(1)
        if not own:
            sent[self.member] = 0
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        there, back = sent.tolist(), received.tolist()
        outgoing = torch.zeros(sum(there), self._tokens_TD.shape[1])
        arrived = torch.zeros(sum(back), self._tokens_TD.shape[1])

        def run() -> None:
            for _ in range(times // 2):
                all_to_all(arrived, outgoing, back, there)
                all_to_all(outgoing, arrived, there, back)

        return run

    def _counts(self, chosen_TK: Tensor) -> Tensor:
        samples, experts = self._hidden_SPD.shape[0], self._moe.moe.num_experts
        first = torch.arange(samples)[:, None] * experts
        keys = (chosen_TK.view(samples, -1) + first).flatten()
        return keys.bincount(minlength=samples * experts).view(samples, experts)

    def _balanced(self) -> Tensor:
        """Choices with equal numbers for all experts."""
        tokens, choices = self._chosen_TK.shape
        return (torch.arange(tokens * choices) % self._moe.moe.num_experts).view(tokens, choices)

    def _check(self, turns: dict[str, Any]) -> None:
        """With experts that change nothing both sides compute the same."""
        torch.testing.assert_close(turns["ours"](), turns["plain"](), rtol=1e-4, atol=1e-5)


def _torch_all_to_all(output: Tensor, source: Tensor, received: list[int], sent: list[int]) -> None:
    dist.all_to_all_single(output, source, received, sent)


def _identity(rows_MD: Tensor, per_slot: list[int]) -> Tensor:
    return rows_MD


def measure_dispatch(report: Report, workload: Workload, rounds: int, warmup_steps: int) -> None:
    """Add `dispatch_overhead_share` and `dispatch_vs_plain`, with natural and balanced routing."""
    one = replace(workload, overrides=(*workload.overrides, "parallel.expert_replicas=one"))
    crew, _store = start_gang(DispatchWorker, one, 2)
    with crew:
        crew.call("prepare", warmup_steps)
        rows, row_bytes = crew.call("rows")[0]
        report.section(f"dispatch + combine, one MoE layer, {rows} rows of {row_bytes} B a worker")
        for suffix, balanced in (("", False), ("_balanced", True)):
            found = crew.call("measure", rounds, balanced, False)[0]
            routing = "balanced" if balanced else "natural"
            for name, seconds in found.items():
                report.times(f"{routing} routing, forward: {name}", seconds)
            layer = statistics.median(found["layer"])
            excess = [a - b for a, b in zip(found["ours"], found["bare"], strict=True)]
            report.times(f"{routing} routing, forward: ours beyond bare", excess)
            share = statistics.median(excess) / layer
            report.figure(f"dispatch_overhead_share{suffix}", share, most=0.10)
            ratio = statistics.median(found["ours"]) / statistics.median(found["plain"])
            report.figure(f"dispatch_vs_plain{suffix}", ratio, most=1.0)
        both = crew.call("measure", rounds, False, True)[0]
        for name, seconds in both.items():
            report.times(f"natural routing, forward + backward: {name}", seconds)
        ratio = statistics.median(both["ours"]) / statistics.median(both["plain"])
        report.figure("dispatch_vs_plain_with_backward", ratio)

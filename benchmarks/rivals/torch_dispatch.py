"""Rival: token dispatch and combine of one MoE layer, written by hand in plain torch.

What one writes for experts spread evenly over the workers of the default group: sort, exchange
counts, exchange rows, sort by expert, compute, and all of it back.

Shapes: T = tokens, K = choices per token, M = rows, D = hidden size, E = experts, W = workers,
X = experts of this worker (E / W, consecutive).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

RunExperts = Callable[[Tensor, list[int]], Tensor]
"""(rows sorted by own expert, rows per own expert) -> rows."""


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, received: list[int], sent: list[int]) -> Tensor:
        ctx.splits = received, sent
        arrived = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(arrived, rows, received, sent)
        return arrived

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        received, sent = ctx.splits
        back = gradient.new_empty(sum(sent), gradient.shape[1])
        dist.all_to_all_single(back, gradient.contiguous(), sent, received)
        return back, None, None


def dispatch_and_combine(
    tokens_TD: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    num_experts: int,
    experts: RunExperts,
) -> Tensor:
    """Send tokens to their experts and sum up what comes back, weighted; [T, D]."""
    world = dist.get_world_size()
    chosen = chosen_TK.flatten()
    order = chosen.argsort(stable=True)
    token_of_row = order // chosen_TK.shape[1]
    counts_WX = chosen.bincount(minlength=num_experts).view(world, -1)
    arriving_WX = torch.empty_like(counts_WX)
    dist.all_to_all_single(arriving_WX, counts_WX)
    sent, received = counts_WX.sum(1).tolist(), arriving_WX.sum(1).tolist()
    arrived_MD = _AllToAll.apply(tokens_TD.index_select(0, token_of_row), received, sent)
    mine = torch.arange(counts_WX.shape[1]).repeat(world)
    by_expert = mine.repeat_interleave(arriving_WX.flatten()).argsort(stable=True)
    out_MD = experts(arrived_MD.index_select(0, by_expert), arriving_WX.sum(0).tolist())
    back_MD = _AllToAll.apply(out_MD.index_select(0, by_expert.argsort()), sent, received)
    weighted_MD = back_MD * weights_TK.flatten()[order, None]
    return torch.zeros_like(tokens_TD).index_add(0, token_of_row, weighted_MD)

"""Which experts a token goes to, and with what weight.

Shapes: T = tokens, E = experts, G = groups, K = experts per token.
Source: DeepSeek-V3, arXiv:2412.19437 eq. 12-16.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from elasticmoe.spec.model import MoESpec

_EPS = 1e-20
"""Keeps the normalisation finite; as in transformers' DeepSeek-V3."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the gate decided."""

    chosen_TK: Tensor
    """Expert ids, int64, best first."""
    weights_TK: Tensor
    """Factors of the experts' outputs."""
    scores_TE: Tensor
    """Unbiased scores of all experts."""


def choose(logits_TE: Tensor, bias_E: Tensor, moe: MoESpec) -> Choice:
    """Choose `top_k` experts per token.

    Args:
        logits_TE: the router's output, fp32 or fp64.
        bias_E: added to scores when choosing, never to weights.
        moe: the layer's settings.
    """
    scores_TE = logits_TE.sigmoid() if moe.score == "sigmoid" else logits_TE.softmax(dim=-1)
    with torch.no_grad():
        allowed_TE = limit_to_groups(scores_TE + bias_E, moe)
        chosen_TK = stable_top_k(allowed_TE, moe.top_k)
    weights_TK = scores_TE.gather(1, chosen_TK)
    if moe.normalize_weights:
        weights_TK = weights_TK / (weights_TK.sum(dim=1, keepdim=True) + _EPS)
    return Choice(chosen_TK, weights_TK * moe.routed_scaling, scores_TE)


def limit_to_groups(biased_TE: Tensor, moe: MoESpec) -> Tensor:
    """Set scores outside a token's best groups to -inf.

    Never to 0: with a negative bias every allowed score may be below it.
    """
    if moe.top_groups == moe.num_groups:
        return biased_TE
    grouped_TGE = biased_TE.unflatten(1, (moe.num_groups, -1))
    group_scores_TG = grouped_TGE.topk(moe.group_score_width, dim=-1).values.sum(dim=-1)
    best_TG = stable_top_k(group_scores_TG, moe.top_groups)
    outside_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter_(1, best_TG, False)
    return grouped_TGE.masked_fill(outside_TG[:, :, None], -torch.inf).flatten(1)


def stable_top_k(scores_TE: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores per row, largest first; of equal ones the lowest index.

    `topk` promises no order among equals, a stable sort of 256 experts takes 4 times as long on
    a CPU: sort only the rows that have equals among their first k + 1.
    """
    num_scores = scores_TE.shape[1]
    if k == num_scores or scores_TE.is_cuda:
        return scores_TE.sort(dim=1, descending=True, stable=True).indices[:, :k].contiguous()
    values, indices = scores_TE.topk(k + 1, dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    chosen = indices[:, :k].contiguous()
    if tied.numel():
        order = scores_TE[tied].sort(dim=1, descending=True, stable=True).indices
        chosen[tied] = order[:, :k]
    return chosen


def normalized_scores(scores_TE: Tensor, moe: MoESpec) -> Tensor:
    """Scores that add up to one per token."""
    if moe.score == "softmax":
        return scores_TE
    return scores_TE / (scores_TE.sum(dim=1, keepdim=True) + _EPS)

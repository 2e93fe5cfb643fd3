"""Auxiliary losses that push routers towards even load.

Shapes: T = tokens of this worker, S = its samples, P = positions, N = samples of the wave,
E = experts, W = windows, L = MoE layers.

Every loss is a mean over the step's tokens, so a worker's share is its own tokens' sum divided by
the step's token count; shares of all workers and waves add up to the loss.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from elasticmoe.model.gate import normalized_scores, stable_top_k
from elasticmoe.model.wave import Wave
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import MoESpec


def auxiliary_loss(
    logits_TE: Tensor,
    scores_TE: Tensor,
    agreed_NE: Tensor,
    *,
    wave: Wave,
    row: int,
    moe: MoESpec,
    balance: BalanceSpec,
    window_samples: int,
) -> Tensor | None:
    """This worker's share of one layer's auxiliary losses, weighted; none if there are none.

    Args:
        logits_TE: the router's output.
        scores_TE: unbiased scores.
        agreed_NE: counts of the whole wave, int64.
        wave: what is computed; row `wave.index` of its counts must be filled already.
        row: the layer's position among the MoE layers.
        moe: the layer's settings.
        balance: the job's settings.
        window_samples: samples of a balance window.
    """
    total: Tensor | None = None
    if balance.loss != "none":
        shares_TE = normalized_scores(scores_TE, moe)
        target_SE = _target(scores_TE, agreed_NE, wave, row, moe, balance.loss, window_samples)
        shares_SE = by_sample(shares_TE, wave.num_samples).sum(dim=1)
        total = balance.loss_weight * (target_SE.to(shares_SE.dtype) * shares_SE).sum()
    if balance.z_loss_weight:
        z = balance.z_loss_weight * logits_TE.logsumexp(dim=1).square().sum()
        total = z if total is None else total + z
    return None if total is None else total / wave.step_tokens


def load_fractions(counts_E: Tensor) -> Tensor:
    """Load relative to even load, [..., E]: E / (k T) * counts, since counts add up to k T."""
    counts = counts_E.double()
    return counts / counts.mean(dim=-1, keepdim=True).clamp(min=1e-9)


def by_sample(x_TE: Tensor, num_samples: int) -> Tensor:
    """Split tokens by sample, [S, P, E]; also when there is no sample."""
    return x_TE.view(num_samples, len(x_TE) // max(num_samples, 1), x_TE.shape[1])


@torch.no_grad()
def _target(
    scores_TE: Tensor,
    agreed_NE: Tensor,
    wave: Wave,
    row: int,
    moe: MoESpec,
    loss: str,
    window_samples: int,
) -> Tensor:
    """Load fractions that each of this worker's samples is held against, [S, E]."""
    own = slice(wave.first_sample, wave.first_sample + wave.num_samples)
    if loss == "sequence":
        chosen_SPK = by_sample(stable_top_k(scores_TE, moe.top_k), wave.num_samples)
        counts_SE = F.one_hot(chosen_SPK, moe.num_experts).sum(dim=(1, 2))
        return load_fractions(counts_SE)
    if loss == "micro_batch":
        counts_WE = agreed_NE.unflatten(0, (-1, window_samples)).sum(dim=1)
        return load_fractions(counts_WE).repeat_interleave(window_samples, dim=0)[own]
    assert loss == "global_batch", loss
    counts_E = wave.earlier_counts_LE[: wave.index + 1, row].sum(dim=0)
    return load_fractions(counts_E).expand(wave.num_samples, -1)

"""Room per expert: which assignments are dropped, independent of the layout.

Shapes: N = samples of a wave, S = samples of this worker, P = positions of a sample, E = experts,
K = experts per token, T = S * P tokens.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def expert_capacity(factor: float, top_k: int, window_tokens: int, num_experts: int) -> int:
    """Assignments that an expert takes from one balance window.

    >>> expert_capacity(1.25, top_k=2, window_tokens=64, num_experts=8)
    20
    """
    return math.ceil(factor * top_k * window_tokens / num_experts)


def kept_counts(counts_NE: Tensor, window_samples: int, capacity: int) -> Tensor:
    """Assignments that remain per sample and expert when earlier samples go first.

    Args:
        counts_NE: assignments of the whole wave, int64; N is a multiple of the window.
        window_samples: consecutive samples that share the room.
        capacity: room per window and expert.
    """
    counts_WNE = counts_NE.unflatten(0, (-1, window_samples))
    before_WNE = counts_WNE.cumsum(dim=1) - counts_WNE
    return torch.minimum(counts_WNE, (capacity - before_WNE).clamp(min=0)).flatten(0, 1)


def drop_beyond(chosen_TK: Tensor, kept_SE: Tensor) -> Tensor:
    """Mark what exceeds a sample's kept assignments, later positions first, with -1."""
    num_samples, num_experts = kept_SE.shape
    if not num_samples:
        return chosen_TK
    chosen_SPK = chosen_TK.unflatten(0, (num_samples, -1))
    taken_SPE = F.one_hot(chosen_SPK, num_experts).sum(dim=2).cumsum(dim=1)
    over_SPE = taken_SPE > kept_SE[:, None]  # counts itself: the first is 1
    return chosen_SPK.masked_fill(over_SPE.gather(2, chosen_SPK), -1).flatten(0, 1)

"""A user's router whose arithmetic breaks once it has routed so many waves."""

import os

import torch
from torch import Tensor

from elasticmoe.model.router import LinearRouter

WAVES = "BREAKING_ROUTER_WAVES"
"""Environment variable: `FIRST-LAST`, the waves of each process that come out as NaN."""


class BreakingRouter(LinearRouter):
    _waves = 0

    def forward(self, tokens_TD: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # evaluated
            return super().forward(tokens_TD)
        self._waves += 1
        first, last = map(int, os.environ[WAVES].split("-"))
        scores = super().forward(tokens_TD)
        return scores * float("nan") if first <= self._waves <= last else scores

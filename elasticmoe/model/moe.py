"""A Mixture-of-Experts layer: route, exchange, combine.

Shapes: S = samples of this worker, N = samples of the wave, P = positions, D = hidden size,
T = S * P tokens, K = experts per token, E = experts.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elasticmoe.model.balance import auxiliary_loss
from elasticmoe.model.capacity import drop_beyond, expert_capacity, kept_counts
from elasticmoe.model.experts import Experts
from elasticmoe.model.gate import Choice, choose, normalized_scores
from elasticmoe.model.parts import SwiGLU
from elasticmoe.model.plugins import load_class
from elasticmoe.model.router import build_router, route
from elasticmoe.model.wave import LayerLoad, Wave
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import ModelSpec, MoESpec


class Combine(nn.Module, ABC):
    """How a token's expert outputs become one; has no parameters."""

    @abstractmethod
    def forward(self, rows_TKD: Tensor, weights_TK: Tensor) -> Tensor:
        """Return [T, D]; rows of dropped assignments are zero."""


class WeightedSum(Combine):
    """Sum of outputs times gate weights."""

    def forward(self, rows_TKD: Tensor, weights_TK: Tensor) -> Tensor:
        """See `Combine.forward`."""
        return torch.bmm(weights_TK.to(rows_TKD.dtype)[:, None], rows_TKD).squeeze(1)


def build_combine(moe: MoESpec) -> Combine:
    """The combine step that the spec names.

    Raises:
        SpecError: a user's class cannot be loaded.
    """
    if moe.combine == "weighted_sum":
        return WeightedSum()
    combine: Combine = load_class(moe.combine, Combine, "model.moe.combine")()
    return combine


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a MoE layer needs beside its input."""

    wave: Wave
    experts: Experts
    row: int
    """Position among the MoE layers."""
    inference: bool = False
    """Neither a capacity limit nor auxiliary losses."""


class MoE(nn.Module):
    """Router, shared expert and combine step; the routed experts come with each call."""

    def __init__(self, model: ModelSpec, balance: BalanceSpec, window_samples: int) -> None:
        super().__init__()
        self.moe, self.balance, self.window_samples = model.moe, balance, window_samples
        self.router = build_router(model.hidden_size, model.moe)
        self.combine = build_combine(model.moe)
        shared = model.moe.num_shared_experts * model.moe.expert_hidden_size
        self.shared = SwiGLU(model.hidden_size, shared) if shared else None

    def forward(self, x_SPD: Tensor, call: LayerCall) -> tuple[Tensor, Tensor | None]:
        """Return the layer's output, same shape, and its share of auxiliary losses."""
        tokens_TD = x_SPD.flatten(0, 1)
        wave, block = call.wave, call.experts.block.index
        logits_TE = route(self.router, tokens_TD)
        choice = choose(logits_TE, wave.bias_LE[call.row], self.moe)
        counts_SE = self._counts(choice.chosen_TK, len(x_SPD))
        agreed_NE = wave.exchange.agree(block, counts_SE)
        wave.earlier_counts_LE[wave.index, call.row] = agreed_NE.sum(dim=0)
        chosen_TK, kept_NE = self._limit(choice.chosen_TK, agreed_NE, x_SPD.shape[1], call)
        out_TD = self._run(call, tokens_TD, chosen_TK, choice.weights_TK, kept_NE)
        out_SPD = out_TD.view(x_SPD.shape)
        if self.shared is not None:
            out_SPD = out_SPD + self.shared(x_SPD)
        if call.inference:
            return out_SPD, None
        wave.loads[block] = self._load(choice, counts_SE, chosen_TK)
        return out_SPD, auxiliary_loss(
            logits_TE,
            choice.scores_TE,
            agreed_NE,
            wave=wave,
            row=call.row,
            moe=self.moe,
            balance=self.balance,
            window_samples=self.window_samples,
        )

    def _run(
        self,
        call: LayerCall,
        tokens_TD: Tensor,
        chosen_TK: Tensor,
        weights_TK: Tensor,
        kept_NE: Tensor,
    ) -> Tensor:
        exchange, slots = call.wave.exchange, call.experts.run_slots
        block = call.experts.block.index
        if type(self.combine) is WeightedSum:  # the exchange sums on the way
            return exchange.run(block, tokens_TD, chosen_TK, kept_NE, slots, weights_TK)
        rows_TKD = exchange.run(block, tokens_TD, chosen_TK, kept_NE, slots)
        combined: Tensor = self.combine(rows_TKD, weights_TK)
        return combined

    def _counts(self, chosen_TK: Tensor, num_samples: int) -> Tensor:
        experts = self.moe.num_experts
        if not num_samples:
            return chosen_TK.new_zeros(0, experts)
        per_sample = chosen_TK.view(num_samples, -1)
        first = torch.arange(num_samples, device=chosen_TK.device)[:, None] * experts
        counts = torch.bincount((per_sample + first).flatten(), minlength=num_samples * experts)
        return counts.view(num_samples, experts)

    def _limit(
        self, chosen_TK: Tensor, agreed_NE: Tensor, positions: int, call: LayerCall
    ) -> tuple[Tensor, Tensor]:
        factor = self.balance.capacity_factor
        if factor is None or call.inference:
            return chosen_TK, agreed_NE
        window_tokens = self.window_samples * positions
        capacity = expert_capacity(factor, self.moe.top_k, window_tokens, self.moe.num_experts)
        kept_NE = kept_counts(agreed_NE, self.window_samples, capacity)
        first = call.wave.first_sample
        own_SE = kept_NE[first : first + call.wave.num_samples]
        return drop_beyond(chosen_TK, own_SE), kept_NE

    @torch.no_grad()
    def _load(self, choice: Choice, counts_SE: Tensor, chosen_TK: Tensor) -> LayerLoad:
        shares_TE = normalized_scores(choice.scores_TE, self.moe)
        capped = chosen_TK is not choice.chosen_TK
        return LayerLoad(
            counts_E=counts_SE.sum(dim=0),
            dropped=int((chosen_TK < 0).sum()) if capped else 0,
            entropy=float(torch.special.entr(shares_TE).sum()),
            confidence=float(shares_TE.amax(dim=1).sum()),
        )

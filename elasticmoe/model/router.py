"""Routers: a score per token and expert, before any squashing.

Shapes: T = tokens, D = hidden size, E = experts, R = inner width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from elasticmoe.model.plugins import load_class
from elasticmoe.spec.model import MoESpec

_INNER_WIDTH_SHARE = 4
_SCORE_WIDTH = 4


class Router(nn.Module, ABC):
    """What a router must be."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = hidden_size, num_experts

    @abstractmethod
    def forward(self, tokens_TD: Tensor) -> Tensor:
        """Return logits, [T, E]. Tokens and parameters come in fp32 (fp64 with fp64)."""


class LinearRouter(Router):
    """One direction per expert (DeepSeek-V3, Mixtral, Qwen3)."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts)
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))

    def forward(self, tokens_TD: Tensor) -> Tensor:
        """See `Router.forward`."""
        return F.linear(tokens_TD, self.weight)


class MLPRouter(Router):
    """A small network that all experts share."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts)
        inner = max(hidden_size // _INNER_WIDTH_SHARE, num_experts)
        self.first = nn.Linear(hidden_size, inner, bias=False)
        self.second = nn.Linear(inner, num_experts, bias=False)

    def forward(self, tokens_TD: Tensor) -> Tensor:
        """See `Router.forward`."""
        logits: Tensor = self.second(F.silu(self.first(tokens_TD)))
        return logits


class PerExpertRouter(Router):
    """A small network per expert, so that one expert's score can be learned without the others."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts)
        self.first = nn.Parameter(torch.empty(num_experts, _SCORE_WIDTH, hidden_size))
        self.second = nn.Parameter(torch.empty(num_experts, _SCORE_WIDTH))

    def forward(self, tokens_TD: Tensor) -> Tensor:
        """See `Router.forward`."""
        inner = F.silu(F.linear(tokens_TD, self.first.flatten(0, 1)))
        return (inner.unflatten(1, self.second.shape) * self.second).sum(-1)


_ROUTERS: dict[str, type[Router]] = {
    "linear": LinearRouter,
    "mlp": MLPRouter,
    "per_expert": PerExpertRouter,
}


def build_router(hidden_size: int, moe: MoESpec) -> Router:
    """The router that the spec names.

    Raises:
        SpecError: a user's class cannot be loaded.
    """
    found = _ROUTERS.get(moe.router) or load_class(moe.router, Router, "model.moe.router")
    router: Router = found(hidden_size, moe.num_experts)
    return router


def route(router: Router, tokens_TD: Tensor) -> Tensor:
    """Logits in at least fp32, whatever precision tokens and parameters are kept in."""
    if tokens_TD.dtype in (torch.float32, torch.float64):
        logits: Tensor = router(tokens_TD)
        return logits
    exact = {name: parameter.float() for name, parameter in router.named_parameters()}
    logits = functional_call(router, exact, (tokens_TD.float(),))
    return logits

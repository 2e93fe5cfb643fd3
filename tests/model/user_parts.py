"""What a user's job may name as `package.module:Class`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticmoe.model.experts import BaseExpert
from elasticmoe.model.moe import Combine
from elasticmoe.model.router import Router


class LoopedSwiGLU(BaseExpert):
    """The built-in expert again, computed by the loop and by plain autograd."""

    def __init__(self, hidden_size: int, expert_hidden_size: int) -> None:
        super().__init__(hidden_size, expert_hidden_size)
        self.w_gate_up = nn.Parameter(torch.empty(2 * expert_hidden_size, hidden_size))
        self.w_down = nn.Parameter(torch.empty(hidden_size, expert_hidden_size))

    def forward(self, tokens_TD: Tensor) -> Tensor:
        gate, up = F.linear(tokens_TD, self.w_gate_up).chunk(2, dim=1)
        return F.linear(F.silu(gate) * up, self.w_down)


class AffineExpert(BaseExpert):
    """Has a bias, which must start at zero and not be decayed."""

    def __init__(self, hidden_size: int, expert_hidden_size: int) -> None:
        super().__init__(hidden_size, expert_hidden_size)
        self.linear = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens_TD: Tensor) -> Tensor:
        return self.linear(tokens_TD)


class ScaledRouter(Router):
    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts)
        self.direction = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, tokens_TD: Tensor) -> Tensor:
        return F.linear(tokens_TD, self.direction) * self.temperature


class LargestOutput(Combine):
    def forward(self, rows_TKD: Tensor, weights_TK: Tensor) -> Tensor:
        return (rows_TKD * weights_TK[..., None].to(rows_TKD.dtype)).amax(dim=1)


class NotAnExpert:
    pass

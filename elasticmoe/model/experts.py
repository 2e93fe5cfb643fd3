"""Routed experts: one flat slot buffer per layer, one expert per slot.

Shapes: M = rows, S = slots, D = hidden size, H = expert hidden size, T = tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from elasticmoe.kernels.grouped import grouped_swiglu
from elasticmoe.model.plugins import load_class
from elasticmoe.plan.types import Block
from elasticmoe.spec.model import MoESpec


class BaseExpert(nn.Module, ABC):
    """What a routed expert must be: a map of tokens that remembers nothing between them."""

    def __init__(self, hidden_size: int, expert_hidden_size: int) -> None:
        super().__init__()
        self.hidden_size, self.expert_hidden_size = hidden_size, expert_hidden_size

    @abstractmethod
    def forward(self, tokens_TD: Tensor) -> Tensor:
        """Return one output per token, [T, D]."""


class SwiGLUExpert(BaseExpert):
    """The expert of DeepSeek-V3, Mixtral and Qwen3; weights in Hugging Face's fused layout."""

    def __init__(self, hidden_size: int, expert_hidden_size: int) -> None:
        super().__init__(hidden_size, expert_hidden_size)
        self.w_gate_up = nn.Parameter(torch.empty(2 * expert_hidden_size, hidden_size))
        self.w_down = nn.Parameter(torch.empty(hidden_size, expert_hidden_size))

    def forward(self, tokens_TD: Tensor) -> Tensor:
        """Plain form; training uses `grouped_swiglu` over all slots at once."""
        gate_TH, up_TH = F.linear(tokens_TD, self.w_gate_up).chunk(2, dim=1)
        return F.linear(F.silu(gate_TH) * up_TH, self.w_down)


def expert_class(moe: MoESpec) -> type[BaseExpert]:
    """The expert's class that the spec names.

    Raises:
        SpecError: a user's class cannot be loaded.
    """
    if moe.expert == "swiglu":
        return SwiGLUExpert
    return load_class(moe.expert, BaseExpert, "model.moe.expert")


class Experts(nn.Module):
    """The experts of one layer that one worker holds."""

    def __init__(self, hidden_size: int, moe: MoESpec, block: Block, num_slots: int) -> None:
        super().__init__()
        self.block, self.num_slots = block, num_slots
        self._expert_class = expert_class(moe)
        self._sizes = (hidden_size, moe.expert_hidden_size)
        self._grouped = self._expert_class is SwiGLUExpert
        self._weights: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] | None = None
        self._leaves: list[dict[str, Tensor]] = []

    def bind(self, weights: Tensor, gradients: Tensor | None) -> None:
        """Compute with these weights from now on and add gradients to these buffers.

        Args:
            weights: [num_slots, block.numel].
            gradients: the same shape in fp32 (fp64 with fp64); none: inference.
        """
        self._weights = self._views(weights)
        self._gradients = None if gradients is None else self._views(gradients)
        if self._grouped:
            return
        with weights.device:
            self._template = self._expert_class(*self._sizes).to(weights.dtype)
        self._leaves = [self._slot_leaves(slot) for slot in range(self.num_slots)]

    def run_slots(self, rows_MD: Tensor, per_slot: list[int]) -> Tensor:
        """Apply to each row the expert of its slot.

        Args:
            rows_MD: sorted by slot.
            per_slot: rows of each slot.
        """
        assert len(per_slot) == self.num_slots, (per_slot, self.num_slots)
        if self._grouped:
            return self._run_grouped(rows_MD, per_slot)
        return self._run_loop(rows_MD, per_slot)

    def _run_grouped(self, rows_MD: Tensor, per_slot: list[int]) -> Tensor:
        gradients = self._gradients and (self._gradients["w_gate_up"], self._gradients["w_down"])
        weights = self._weights
        return grouped_swiglu(
            rows_MD, weights["w_gate_up"], weights["w_down"], gradients or None, per_slot
        )

    def _run_loop(self, rows_MD: Tensor, per_slot: list[int]) -> Tensor:
        parts: Sequence[Tensor] = [
            functional_call(self._template, self._leaves[slot], (rows_MD[start:end],))
            for slot, (start, end) in enumerate(pairwise(accumulate(per_slot, initial=0)))
            if end > start
        ]
        return torch.cat(list(parts)) if parts else rows_MD

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        assert flat.shape == (self.num_slots, self.block.numel), (flat.shape, self.block)
        return {
            parameter.name: flat[:, parameter.offset : parameter.offset + parameter.numel].view(
                self.num_slots, *parameter.shape
            )
            for parameter in self.block.parameters
        }

    def _slot_leaves(self, slot: int) -> dict[str, Tensor]:
        leaves = {name: weights[slot].detach() for name, weights in self._weights.items()}
        if self._gradients is not None:
            for name, leaf in leaves.items():
                accumulate_into(leaf.requires_grad_(), self._gradients[name][slot])
        return leaves


def accumulate_into(leaf: Tensor, gradient: Tensor) -> None:
    """Have every backward pass add the leaf's gradient to `gradient`.

    With equal dtypes autograd itself adds in place; otherwise a hook does, and drops the
    gradient in the leaf's own precision.
    """
    if leaf.dtype == gradient.dtype:
        leaf.grad = gradient
        return

    def add(done: Tensor) -> None:
        assert done.grad is not None
        gradient.add_(done.grad)
        done.grad = None

    leaf.register_post_accumulate_grad_hook(add)

"""Trading compute for memory: a layer's activations are computed again in the backward pass.

Not torch.utils.checkpoint: it imports torch._dynamo (a second of a worker's start), and it may stop
a recomputation early, while every worker must enter every collective of the layer again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Run = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.run = run
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            outputs = ctx.run(x)
        wanted = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
        # Parameters' gradients accumulate in this nested backward pass.
        torch.autograd.backward([out for out, _ in wanted], [grad for _, grad in wanted])
        assert x.grad is not None
        return None, x.grad


def recompute(run: Run, x: Tensor) -> tuple[Tensor, Tensor]:
    """`run(x)`, keeping only `x` for the backward pass; `run` must be repeatable."""
    y, extra = _Recompute.apply(run, x)
    return y, extra

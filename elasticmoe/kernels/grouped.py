"""Matrix products of rows that are sorted by slot with one weight matrix per slot.

Shapes: M = rows, S = slots, I = inputs, O = outputs, D = hidden size, H = expert hidden size.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_GROUPED_DTYPES = (torch.float32, torch.bfloat16)
_STRIDE_BYTES = 16


def grouped_matmul(rows_MI: Tensor, weights_SIO: Tensor, per_slot: list[int]) -> Tensor:
    """Multiply each row with the matrix of its slot.

    Args:
        rows_MI: sorted by slot.
        weights_SIO: one matrix per slot; strides are free.
        per_slot: rows of each slot; they add up to M.

    Returns:
        The products, [M, O].
    """
    if rows_MI.shape[0] and _fits_grouped_mm(rows_MI, weights_SIO):
        ends = torch.tensor(per_slot, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return F.grouped_mm(rows_MI, weights_SIO, offs=ends.to(rows_MI.device))
    return looped_matmul(rows_MI, weights_SIO, per_slot)


def looped_matmul(rows_MI: Tensor, weights_SIO: Tensor, per_slot: list[int]) -> Tensor:
    """What `grouped_matmul` computes, one slot after the other; the reference."""
    out_MO = rows_MI.new_empty(rows_MI.shape[0], weights_SIO.shape[2])
    for slot, (start, end) in enumerate(_spans(per_slot)):
        if end > start:
            torch.mm(rows_MI[start:end], weights_SIO[slot], out=out_MO[start:end])
    return out_MO


def accumulate_outer(
    sum_SOI: Tensor, left_MO: Tensor, right_MI: Tensor, per_slot: list[int]
) -> None:
    """Add the product `left^T right` of each slot's rows to the slot's matrix, in place.

    A loop, since it adds straight into `sum_SOI`: a grouped product would need a second buffer
    of that size (measured on a CPU: 23.7 ms against 24.1 ms without the addition).
    """
    for slot, (start, end) in enumerate(_spans(per_slot)):
        if end == start:
            continue
        left, right = left_MO[start:end], right_MI[start:end]
        if sum_SOI.dtype == left.dtype:
            sum_SOI[slot].addmm_(left.t(), right)
        else:
            sum_SOI[slot].add_(torch.mm(left.t(), right))


class _GroupedSwiGLU(torch.autograd.Function):
    """SwiGLU of each slot over its rows; weight gradients go straight to their buffers."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_MD: Tensor,
        gate_up_SID: Tensor,
        down_SDH: Tensor,
        gradients: tuple[Tensor, Tensor] | None,
        per_slot: list[int],
    ) -> Tensor:
        gate_up_MI = grouped_matmul(rows_MD, gate_up_SID.transpose(1, 2), per_slot)
        gate_MH, up_MH = gate_up_MI.chunk(2, dim=1)
        active_MH = F.silu(gate_MH).mul_(up_MH)
        # Saving the weights makes autograd notice if they change before the backward pass.
        ctx.save_for_backward(rows_MD, gate_up_MI, gate_up_SID, down_SDH)
        ctx.gradients, ctx.per_slot = gradients, per_slot
        return grouped_matmul(active_MH, down_SDH.transpose(1, 2), per_slot)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_MD: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows_MD, gate_up_MI, gate_up_SID, down_SDH = ctx.saved_tensors
        d_out_MD = d_out_MD.contiguous()
        gate_MH, up_MH = gate_up_MI.chunk(2, dim=1)
        silu_MH = F.silu(gate_MH)
        d_active_MH = grouped_matmul(d_out_MD, down_SDH, ctx.per_slot)
        d_gate_up_MI = torch.empty_like(gate_up_MI)
        d_gate_MH, d_up_MH = d_gate_up_MI.chunk(2, dim=1)
        torch.mul(d_active_MH, silu_MH, out=d_up_MH)
        if ctx.gradients is not None:
            gate_up_grad, down_grad = ctx.gradients
            accumulate_outer(down_grad, d_out_MD, silu_MH.mul_(up_MH), ctx.per_slot)
        d_silu_MH = d_active_MH.mul_(up_MH)
        torch.ops.aten.silu_backward.grad_input(d_silu_MH, gate_MH, grad_input=d_gate_MH)
        if ctx.gradients is not None:
            accumulate_outer(gate_up_grad, d_gate_up_MI, rows_MD, ctx.per_slot)
        return grouped_matmul(d_gate_up_MI, gate_up_SID, ctx.per_slot), None, None, None, None


def grouped_swiglu(
    rows_MD: Tensor,
    gate_up_SID: Tensor,
    down_SDH: Tensor,
    gradients: tuple[Tensor, Tensor] | None,
    per_slot: list[int],
) -> Tensor:
    """Apply each slot's SwiGLU expert to its rows.

    Args:
        rows_MD: sorted by slot.
        gate_up_SID: gate and up projection stacked along the outputs, [S, 2H, D].
        down_SDH: down projection.
        gradients: buffers of the two weights' shapes to which the backward pass adds; none:
            the weights get no gradient.
        per_slot: rows of each slot.

    Returns:
        Rows of the same shape; connected to `rows_MD` also when there are none.
    """
    out: Tensor = _GroupedSwiGLU.apply(rows_MD, gate_up_SID, down_SDH, gradients, per_slot)
    return out


def _spans(per_slot: list[int]) -> list[tuple[int, int]]:
    ends = [0]
    for count in per_slot:
        ends.append(ends[-1] + count)
    return list(pairwise(ends))


def _fits_grouped_mm(rows: Tensor, weights: Tensor) -> bool:
    """Whether dtype and strides are what F.grouped_mm takes."""
    strides = [rows.stride(0), weights.stride(0), *weights.stride()[1:]]
    return rows.dtype in _GROUPED_DTYPES and all(
        stride == 1 or stride * rows.element_size() % _STRIDE_BYTES == 0 for stride in strides
    )

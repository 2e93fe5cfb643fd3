import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from elasticmoe.kernels.grouped import grouped_matmul, grouped_swiglu, looped_matmul

PER_SLOT = [5, 0, 17, 1, 0, 9]
ROWS, HIDDEN, INNER = sum(PER_SLOT), 32, 24


def _weights(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Views on one buffer with a gap between slots, as the slot buffers have."""
    slots, numel = len(PER_SLOT), 3 * HIDDEN * INNER
    flat = torch.randn(slots, numel + 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    gate_up = flat[:, : 2 * HIDDEN * INNER].view(slots, 2 * INNER, HIDDEN)
    down = flat[:, 2 * HIDDEN * INNER : numel].view(slots, HIDDEN, INNER)
    return gate_up, down


def _rows(dtype: torch.dtype) -> Tensor:
    return torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(2)).to(dtype)


def _plain(rows: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    parts = []
    for slot, part in enumerate(rows.split(PER_SLOT)):
        gate, up = F.linear(part, gate_up[slot]).chunk(2, dim=1)
        parts.append(F.linear(F.silu(gate) * up, down[slot]))
    return torch.cat(parts)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-14)]
)
def test_grouped_product_equals_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    gate_up, _ = _weights(dtype)

    grouped = grouped_matmul(_rows(dtype), gate_up.transpose(1, 2), PER_SLOT)

    looped = looped_matmul(_rows(dtype), gate_up.transpose(1, 2), PER_SLOT)
    worst = (grouped.double() - looped.double()).abs().max()
    assert worst <= tolerance * looped.double().abs().max()


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float64, 1e-13)]
)
def test_swiglu_and_its_gradients_equal_plain_autograd(
    dtype: torch.dtype, tolerance: float
) -> None:
    gate_up, down = _weights(dtype)
    rows = _rows(dtype).requires_grad_()
    exact = torch.float64 if dtype is torch.float64 else torch.float32
    gradients = (torch.zeros(gate_up.shape, dtype=exact), torch.zeros(down.shape, dtype=exact))
    expected_inputs = [x.detach().double().requires_grad_() for x in (rows, gate_up, down)]

    out = grouped_swiglu(rows, gate_up, down, gradients, PER_SLOT)
    out.backward(torch.ones_like(out))
    expected = _plain(*expected_inputs)
    expected.backward(torch.ones_like(expected))

    computed = (out, rows.grad, *gradients)
    for ours, theirs in zip(computed, (expected, *(x.grad for x in expected_inputs)), strict=True):
        assert ours is not None
        assert theirs is not None
        worst = (ours.double() - theirs).abs().max()
        assert worst <= tolerance * theirs.abs().max()


def test_second_backward_pass_adds_to_the_gradients() -> None:
    gate_up, down = _weights(torch.float64)
    gradients = (torch.zeros_like(gate_up), torch.zeros_like(down))
    rows = _rows(torch.float64).requires_grad_()

    grouped_swiglu(rows, gate_up, down, gradients, PER_SLOT).sum().backward()
    once = gradients[0].clone()
    grouped_swiglu(rows, gate_up, down, gradients, PER_SLOT).sum().backward()

    assert torch.allclose(gradients[0], 2 * once, rtol=1e-14)


def test_without_rows_the_output_is_empty_but_connected() -> None:
    gate_up, down = _weights(torch.float32)
    gradients = (torch.zeros_like(gate_up), torch.zeros_like(down))
    rows = torch.zeros(0, HIDDEN, requires_grad=True)

    out = grouped_swiglu(rows, gate_up, down, gradients, [0] * len(PER_SLOT))
    out.sum().backward()

    assert out.shape == (0, HIDDEN)
    assert rows.grad is not None
    assert not gradients[0].any()


def test_weights_changed_before_the_backward_pass_are_noticed() -> None:
    gate_up, down = _weights(torch.float32)
    rows = _rows(torch.float32).requires_grad_()
    out = grouped_swiglu(rows, gate_up, down, None, PER_SLOT)

    gate_up.add_(1.0)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_gpu_swiglu_and_its_gradients_equal_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    results = []
    for device in ("cpu", "cuda"):
        gate_up, down = (weights.to(device) for weights in _weights(dtype))
        rows = _rows(dtype).to(device).requires_grad_()
        gradients = (gate_up.new_zeros(gate_up.shape).float(), down.new_zeros(down.shape).float())
        out = grouped_swiglu(rows, gate_up, down, gradients, PER_SLOT)
        out.backward(torch.ones_like(out))
        assert rows.grad is not None
        results.append([x.detach().cpu().double() for x in (out, rows.grad, *gradients)])

    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).abs().max() <= tolerance * expected.abs().max()

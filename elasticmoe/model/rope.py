"""Rotary positions, with YaRN scaling as DeepSeek-V3 uses it.

Shapes: P = positions, R = rotated dimensions of a head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from elasticmoe.spec.model import AttentionSpec, YarnSpec


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of every position, [P, R / 2], and how pairs are formed."""

    cos: Tensor
    sin: Tensor
    interleaved: bool

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate queries or keys, [..., P, R]; with interleaved pairs the output has all first
        elements before all second ones (a permutation that both sides of a dot product share).
        """
        if self.interleaved:
            first, second = x[..., 0::2], x[..., 1::2]
        else:
            first, second = x.chunk(2, dim=-1)
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def build_rotary(
    spec: AttentionSpec, hidden_size: int, positions: int, dtype: torch.dtype, device: torch.device
) -> Rotary:
    """Tabulate the rotations of the first `positions` positions."""
    size = rotated_size(spec, hidden_size)
    exact = torch.float64 if dtype is torch.float64 else torch.float32
    frequencies = _frequencies(spec, size, exact)
    angles = torch.arange(positions, dtype=exact)[:, None] * frequencies
    scale = 1.0 if spec.yarn is None else _attention_factor(spec.yarn)
    return Rotary(
        cos=(angles.cos() * scale).to(device, dtype),
        sin=(angles.sin() * scale).to(device, dtype),
        interleaved=spec.rope_interleaved,
    )


def rotated_size(spec: AttentionSpec, hidden_size: int) -> int:
    """Dimensions of a head that are rotated."""
    if spec.kind == "mla":
        assert spec.qk_rope_head_dim is not None
        return spec.qk_rope_head_dim
    return spec.head_dim or hidden_size // spec.num_heads


def softmax_scale(spec: AttentionSpec, head_size: int) -> float:
    """Factor on attention scores; YaRN's correction applies to latent attention only.

    Source: transformers 5, `yarn_apply_mscale` in modeling_deepseek_v3.py.
    """
    scale = head_size**-0.5
    if spec.kind == "mla" and spec.yarn is not None and spec.yarn.mscale_all_dim:
        scale *= _mscale(spec.yarn.factor, spec.yarn.mscale_all_dim) ** 2
    return scale


def _frequencies(spec: AttentionSpec, size: int, dtype: torch.dtype) -> Tensor:
    exponents = torch.arange(0, size, 2, dtype=dtype) / size
    periods = spec.rope_theta**exponents
    if spec.yarn is None:
        return 1.0 / periods
    yarn = spec.yarn
    low = max(math.floor(_dimension_of(yarn.beta_fast, yarn, spec.rope_theta, size)), 0)
    high = min(math.ceil(_dimension_of(yarn.beta_slow, yarn, spec.rope_theta, size)), size - 1)
    width = high - low if high != low else 0.001  # a step, not a division by zero
    ramp = ((torch.arange(size // 2, dtype=dtype) - low) / width).clamp(0, 1)
    kept = 1 - ramp
    return (1.0 / (yarn.factor * periods)) * (1 - kept) + (1.0 / periods) * kept


def _dimension_of(rotations: float, yarn: YarnSpec, theta: float, size: int) -> float:
    """Dimension that turns `rotations` times over the original length (YaRN, eq. 17)."""
    turns = math.log(yarn.original_positions / (rotations * 2 * math.pi))
    return size * turns / (2 * math.log(theta))


def _attention_factor(yarn: YarnSpec) -> float:
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0

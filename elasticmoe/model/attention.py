"""Causal self-attention: multi-head latent (DeepSeek-V3) and grouped-query.

Shapes: S = samples, P = positions, D = hidden size, H = heads, G = key/value heads, C = width of
a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticmoe.model.parts import RMSNorm
from elasticmoe.model.rope import Rotary, rotated_size, softmax_scale
from elasticmoe.spec.model import AttentionSpec, ModelSpec


class LatentAttention(nn.Module):
    """Multi-head latent attention: keys and values come from one compressed vector per token.

    Source: DeepSeek-V3, arXiv:2412.19437 section 2.1.1.
    """

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        spec, hidden = model.attention, model.hidden_size
        assert spec.kv_lora_rank
        assert spec.qk_nope_head_dim
        assert spec.qk_rope_head_dim
        assert spec.v_head_dim
        self.num_heads = spec.num_heads
        self.nope, self.rope, self.value = (
            spec.qk_nope_head_dim,
            spec.qk_rope_head_dim,
            spec.v_head_dim,
        )
        self.rank = spec.kv_lora_rank
        self.scale = softmax_scale(spec, self.nope + self.rope)
        query = self.num_heads * (self.nope + self.rope)
        if spec.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, query, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, spec.q_lora_rank, bias=spec.bias)
            self.q_a_norm = RMSNorm(spec.q_lora_rank, _LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(spec.q_lora_rank, query, bias=False)
        self.compressed_query = spec.q_lora_rank is not None
        self.kv_a_proj = nn.Linear(hidden, self.rank + self.rope, bias=spec.bias)
        self.kv_a_norm = RMSNorm(self.rank, _LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(self.rank, self.num_heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.value, hidden, bias=spec.bias)

    def forward(self, x_SPD: Tensor, rotary: Rotary) -> Tensor:
        """Attend; keeps the shape."""
        if self.compressed_query:
            query = self.q_b_proj(self.q_a_norm(self.q_a_proj(x_SPD)))
        else:
            query = self.q_proj(x_SPD)
        query = _split_heads(query, self.num_heads)
        q_nope, q_rope = query.split([self.nope, self.rope], dim=-1)
        latent, k_rope = self.kv_a_proj(x_SPD).split([self.rank, self.rope], dim=-1)
        key_value = _split_heads(self.kv_b_proj(self.kv_a_norm(latent)), self.num_heads)
        k_nope, value = key_value.split([self.nope, self.value], dim=-1)
        k_rope = rotary.rotate(k_rope[:, None]).expand(-1, self.num_heads, -1, -1)
        query = torch.cat((q_nope, rotary.rotate(q_rope)), dim=-1)
        key = torch.cat((k_nope, k_rope), dim=-1)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        attended: Tensor = self.o_proj(_join_heads(out))
        return attended


class GroupedQueryAttention(nn.Module):
    """Multi-head attention whose key/value heads serve several query heads."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        spec, hidden = model.attention, model.hidden_size
        self.num_heads = spec.num_heads
        self.num_kv_heads = spec.num_kv_heads or spec.num_heads
        size = rotated_size(spec, hidden)
        self.scale = softmax_scale(spec, size)
        self.qk_norm = spec.qk_norm
        self.q_proj = nn.Linear(hidden, self.num_heads * size, bias=spec.bias)
        self.k_proj = nn.Linear(hidden, self.num_kv_heads * size, bias=spec.bias)
        self.v_proj = nn.Linear(hidden, self.num_kv_heads * size, bias=spec.bias)
        self.o_proj = nn.Linear(self.num_heads * size, hidden, bias=spec.bias)
        if spec.qk_norm != "none":
            whole = spec.qk_norm == "full"
            self.q_norm = RMSNorm(self.num_heads * size if whole else size, model.norm_eps)
            self.k_norm = RMSNorm(self.num_kv_heads * size if whole else size, model.norm_eps)

    def forward(self, x_SPD: Tensor, rotary: Rotary) -> Tensor:
        """Attend; keeps the shape."""
        query, key, value = self.q_proj(x_SPD), self.k_proj(x_SPD), self.v_proj(x_SPD)
        if self.qk_norm == "full":
            query, key = self.q_norm(query), self.k_norm(key)
        query_SHPC = _split_heads(query, self.num_heads)
        key_SGPC = _split_heads(key, self.num_kv_heads)
        if self.qk_norm == "head":
            query_SHPC, key_SGPC = self.q_norm(query_SHPC), self.k_norm(key_SGPC)
        out = F.scaled_dot_product_attention(
            rotary.rotate(query_SHPC),
            rotary.rotate(key_SGPC),
            _split_heads(value, self.num_kv_heads),
            is_causal=True,
            scale=self.scale,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        attended: Tensor = self.o_proj(_join_heads(out))
        return attended


def build_attention(model: ModelSpec) -> nn.Module:
    """The attention that the spec names."""
    return LatentAttention(model) if model.attention.kind == "mla" else GroupedQueryAttention(model)


def head_sizes(spec: AttentionSpec, hidden_size: int) -> tuple[int, int]:
    """Width of a query/key head and of a value head."""
    if spec.kind == "mla":
        assert spec.qk_nope_head_dim
        assert spec.qk_rope_head_dim
        assert spec.v_head_dim
        return spec.qk_nope_head_dim + spec.qk_rope_head_dim, spec.v_head_dim
    size = rotated_size(spec, hidden_size)
    return size, size


_LATENT_NORM_EPS = 1e-6
"""DeepSeek-V3 uses its norms' default here, whatever the model's own setting."""


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    samples, positions, width = x.shape
    return x.view(samples, positions, num_heads, width // num_heads).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    samples, heads, positions, size = x.shape
    return x.transpose(1, 2).reshape(samples, positions, heads * size)

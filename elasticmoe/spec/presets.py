"""Named [model] tables. A job names one with `preset` and may override any field.

Each function returns plain data, as a job file would write it. Changing what a preset holds
changes its name: benchmarks and checkpoints refer to it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final


def quickstart() -> dict[str, Any]:
    """A few minutes on two CPU cores, with every part of a DeepSeek-V3-style model in it."""
    return {
        "vocab_size": 256,
        "hidden_size": 128,
        "num_layers": 3,
        "first_dense_layers": 1,
        "dense_hidden_size": 384,
        "attention": _mla(num_heads=4, q_lora_rank=64, kv_lora_rank=32, nope=16, rope=16, value=32),
        "moe": {
            "num_experts": 16,
            "top_k": 4,
            "expert_hidden_size": 64,
            "num_shared_experts": 1,
            "num_groups": 4,
            "top_groups": 2,
        },
        "mtp_depth": 1,
    }


def small() -> dict[str, Any]:
    """The benchmarks' model; fixed."""
    return {
        "vocab_size": 256,
        "hidden_size": 256,
        "num_layers": 6,
        "first_dense_layers": 0,
        "dense_hidden_size": 768,
        "attention": _mla(num_heads=8, q_lora_rank=96, kv_lora_rank=64, nope=16, rope=16, value=32),
        "moe": {
            "num_experts": 16,
            "top_k": 4,
            "expert_hidden_size": 256,
            "num_shared_experts": 1,
            "num_groups": 4,
            "top_groups": 2,
        },
    }


def mixtral_style() -> dict[str, Any]:
    """Mixtral-8x7B's geometry: grouped-query attention, softmax top-2 of 8, no shared expert.

    Source: Mixtral of Experts, arXiv:2401.04088, table 1. Mixtral takes the softmax over the two
    chosen logits, which equals normalising the chosen scores of the softmax over all.
    """
    return {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "num_layers": 32,
        "dense_hidden_size": 14_336,
        "attention": {
            "kind": "gqa",
            "num_heads": 32,
            "num_kv_heads": 8,
            "head_dim": 128,
            "rope_theta": 1_000_000.0,
        },
        "moe": {
            "num_experts": 8,
            "top_k": 2,
            "expert_hidden_size": 14_336,
            "score": "softmax",
        },
        "norm_eps": 1e-5,
        "precision": "bf16",
    }


def deepseek_v3() -> dict[str, Any]:
    """DeepSeek-V3 as published: 671 billion parameters, 37 billion of them active per token.

    Source: DeepSeek-V3, arXiv:2412.19437, section 4.2, and the published `config.json`.
    """
    return {
        "vocab_size": 129_280,
        "hidden_size": 7168,
        "num_layers": 61,
        "first_dense_layers": 3,
        "dense_hidden_size": 18_432,
        "attention": {
            **_mla(num_heads=128, q_lora_rank=1536, kv_lora_rank=512, nope=128, rope=64, value=128),
            "yarn": {
                "factor": 40.0,
                "original_positions": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
        "moe": {
            "num_experts": 256,
            "top_k": 8,
            "expert_hidden_size": 2048,
            "num_shared_experts": 1,
            "num_groups": 8,
            "top_groups": 4,
            "group_score_width": 2,
            "score": "sigmoid",
            "normalize_weights": True,
            "routed_scaling": 2.5,
        },
        "mtp_depth": 1,
        "init_std": 0.006,
        "precision": "bf16",
    }


def olmoe() -> dict[str, Any]:
    """OLMoE-1B-7B: 64 small experts, softmax top-8 whose weights are not normalised.

    Source: OLMoE, arXiv:2409.02060, table 10, and the published `config.json`.
    """
    return {
        "vocab_size": 50_304,
        "hidden_size": 2048,
        "num_layers": 16,
        "dense_hidden_size": 1024,
        "attention": {"kind": "gqa", "num_heads": 16, "head_dim": 128, "qk_norm": "full"},
        "moe": {
            "num_experts": 64,
            "top_k": 8,
            "expert_hidden_size": 1024,
            "score": "softmax",
            "normalize_weights": False,
        },
        "norm_eps": 1e-5,
        "precision": "bf16",
    }


def _mla(
    *, num_heads: int, q_lora_rank: int, kv_lora_rank: int, nope: int, rope: int, value: int
) -> dict[str, Any]:
    """Multi-head latent attention as DeepSeek-V3 writes it; last three: widths of a head."""
    return {
        "kind": "mla",
        "num_heads": num_heads,
        "q_lora_rank": q_lora_rank,
        "kv_lora_rank": kv_lora_rank,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "rope_interleaved": True,
    }


PRESETS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = MappingProxyType(
    {
        "quickstart": quickstart,
        "small": small,
        "mixtral-style": mixtral_style,
        "deepseek-v3": deepseek_v3,
        "olmoe": olmoe,
    }
)
"""Every preset by the name that job files use."""

CUSTOM: Final = "custom"
"""The preset of a [model] table that is written out in full."""

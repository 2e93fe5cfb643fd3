"""Which Hugging Face model a spec is, and its configuration; both directions.

A *family* is a `model_type` of transformers: `deepseek_v3`, `qwen3_moe`, `mixtral`, `olmoe`.
"""

from collections.abc import Mapping
from typing import Any, Final

from elasticmoe.errors import SpecError
from elasticmoe.spec.model import AttentionSpec, ModelSpec, MoESpec, YarnSpec

ARCHITECTURES: Final[Mapping[str, str]] = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmoe": "OlmoeForCausalLM",
}
_FAMILY_OF_QK_NORM: Final = {"none": "mixtral", "head": "qwen3_moe", "full": "olmoe"}
_DEFAULT_THETA: Final = {"mixtral": 1_000_000.0}


def family_of(model: ModelSpec) -> str:
    """The family that computes what this spec describes.

    Raises:
        SpecError: none does; lists every reason.
    """
    attention, moe = model.attention, model.moe
    family = "deepseek_v3" if attention.kind == "mla" else _FAMILY_OF_QK_NORM[attention.qk_norm]
    wanted: list[tuple[str, object, object]] = [
        ("moe.router", moe.router, "linear"),
        ("moe.expert", moe.expert, "swiglu"),
        ("moe.combine", moe.combine, "weighted_sum"),
    ]
    if family == "deepseek_v3":
        per_group = moe.num_experts // moe.num_groups
        wanted += [
            ("moe.score", moe.score, "sigmoid"),
            ("moe.num_shared_experts > 0", moe.num_shared_experts > 0, True),
            ("two experts or more per group", per_group > 1, True),
            ("attention.qk_norm", attention.qk_norm, "none"),
        ]
        if moe.top_groups < moe.num_groups:
            wanted.append(("moe.group_score_width", moe.group_score_width, 2))
    else:
        wanted += [
            ("moe.score", moe.score, "softmax"),
            ("moe.num_shared_experts", moe.num_shared_experts, 0),
            ("moe.top_groups", moe.top_groups, moe.num_groups),
            ("moe.routed_scaling", moe.routed_scaling, 1.0),
            ("mtp_depth", model.mtp_depth, 0),
            ("attention.rope_interleaved", attention.rope_interleaved, False),
        ]
    if family in ("mixtral", "olmoe"):
        wanted.append(("first_dense_layers", model.first_dense_layers, 0))
    if family == "mixtral":
        wanted.append(("moe.normalize_weights", moe.normalize_weights, True))
        wanted.append(("attention.bias", attention.bias, False))
    if family == "olmoe":
        derived = model.hidden_size // attention.num_heads
        wanted.append(("attention.head_dim", attention.head_dim or derived, derived))
    problems = tuple(
        f"model.{field}: is {is_!r}, but Hugging Face's {family} has {must!r}"
        for field, is_, must in wanted
        if is_ != must
    )
    if problems:
        raise SpecError(problems)
    return family


def config_from_spec(model: ModelSpec, max_positions: int, dtype: str) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        model: what `family_of` accepts.
        max_positions: longest sequence the model is meant for.
        dtype: of the stored weights, as torch names it: `float32`, `bfloat16`.

    Raises:
        SpecError: no family computes what this spec describes.
    """
    family = family_of(model)
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "dtype": dtype,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.attention.num_heads,
        "num_key_value_heads": model.attention.num_kv_heads or model.attention.num_heads,
        "num_experts_per_tok": model.moe.top_k,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "initializer_range": model.init_std,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tied_embeddings,
        "attention_dropout": 0.0,
        "rope_parameters": _rope_parameters(model.attention),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return config | _FAMILY_FIELDS[family](model)


def spec_from_config(config: Mapping[str, Any], mtp_depth: int) -> ModelSpec:
    """Read a configuration of one of the families.

    Args:
        config: the content of `config.json`.
        mtp_depth: MTP modules that the checkpoint holds (a configuration may promise some that
            were never saved).

    Raises:
        SpecError: the family is unknown, or uses what a spec cannot express.
    """
    family = config.get("model_type", "")
    if family not in ARCHITECTURES:
        raise SpecError((f"model_type {family!r} is not one of {', '.join(ARCHITECTURES)}",))
    _refuse_unsupported(config)
    is_mla = family == "deepseek_v3"
    return ModelSpec(
        preset=f"hf:{family}",
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        first_dense_layers=_first_dense_layers(config, family),
        dense_hidden_size=config["intermediate_size"],
        attention=_latent_attention(config) if is_mla else _grouped_attention(config, family),
        moe=_deepseek_moe(config) if is_mla else _softmax_moe(config, family),
        mtp_depth=mtp_depth,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        norm_eps=float(config.get("rms_norm_eps", 1e-5 if family != "deepseek_v3" else 1e-6)),
        init_std=float(config.get("initializer_range", 0.02)),
    )


def _deepseek_fields(model: ModelSpec) -> dict[str, Any]:
    attention, moe = model.attention, model.moe
    return {
        "intermediate_size": model.dense_hidden_size,
        "moe_intermediate_size": moe.expert_hidden_size,
        "first_k_dense_replace": model.first_dense_layers,
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.num_shared_experts,
        "n_group": moe.num_groups,
        "topk_group": moe.top_groups,
        "norm_topk_prob": moe.normalize_weights,
        "routed_scaling_factor": moe.routed_scaling,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "q_lora_rank": attention.q_lora_rank,
        "kv_lora_rank": attention.kv_lora_rank,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "rope_interleave": attention.rope_interleaved,
        "attention_bias": attention.bias,
        "num_nextn_predict_layers": model.mtp_depth,
    }


def _qwen3_fields(model: ModelSpec) -> dict[str, Any]:
    return {
        "intermediate_size": model.dense_hidden_size,
        "moe_intermediate_size": model.moe.expert_hidden_size,
        "num_experts": model.moe.num_experts,
        "norm_topk_prob": model.moe.normalize_weights,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(model.first_dense_layers)),
        "head_dim": _head_dim(model),
        "attention_bias": model.attention.bias,
        "use_sliding_window": False,
    }


def _mixtral_fields(model: ModelSpec) -> dict[str, Any]:
    return {
        "intermediate_size": model.moe.expert_hidden_size,
        "num_local_experts": model.moe.num_experts,
        "head_dim": _head_dim(model),
        "sliding_window": None,
    }


def _olmoe_fields(model: ModelSpec) -> dict[str, Any]:
    return {
        "intermediate_size": model.moe.expert_hidden_size,
        "num_experts": model.moe.num_experts,
        "norm_topk_prob": model.moe.normalize_weights,
        "attention_bias": model.attention.bias,
    }


_FAMILY_FIELDS: Final = {
    "deepseek_v3": _deepseek_fields,
    "qwen3_moe": _qwen3_fields,
    "mixtral": _mixtral_fields,
    "olmoe": _olmoe_fields,
}


def _head_dim(model: ModelSpec) -> int:
    return model.attention.head_dim or model.hidden_size // model.attention.num_heads


def _rope_parameters(attention: AttentionSpec) -> dict[str, Any]:
    if attention.yarn is None:
        return {"rope_type": "default", "rope_theta": attention.rope_theta}
    yarn = attention.yarn
    return {
        "rope_type": "yarn",
        "rope_theta": attention.rope_theta,
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_positions,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "mscale": yarn.mscale,
        "mscale_all_dim": yarn.mscale_all_dim,
    }


def _rope_of(config: Mapping[str, Any], family: str) -> tuple[float, YarnSpec | None]:
    """Base and scaling, from today's `rope_parameters` or yesterday's `rope_scaling`."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    default = config.get("rope_theta", _DEFAULT_THETA.get(family, 10_000.0))
    theta = float(rope.get("rope_theta", default))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "yarn" or rope.get("attention_factor") is not None:
        raise SpecError((f"rope_parameters: {rope} is not supported; only default and yarn are",))
    return theta, YarnSpec(
        factor=float(rope["factor"]),
        original_positions=int(rope["original_max_position_embeddings"]),
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        mscale=float(rope.get("mscale") or 0),
        mscale_all_dim=float(rope.get("mscale_all_dim") or 0),
    )


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    expected = {
        "hidden_act": "silu",
        "clip_qkv": None,
        "decoder_sparse_step": 1,
        "use_sliding_window": False,
        "partial_rotary_factor": 1.0,
        "scoring_func": "sigmoid",
        "quantization_config": None,
    }
    if config["model_type"] == "mixtral":
        expected["sliding_window"] = None
    problems = tuple(
        f"{name}: {config[name]!r} is not supported, only {must!r}"
        for name, must in expected.items()
        if name in config and config[name] != must
    )
    if problems:
        raise SpecError(problems)


def _first_dense_layers(config: Mapping[str, Any], family: str) -> int:
    if family == "deepseek_v3":
        return int(config.get("first_k_dense_replace", 3))
    dense = sorted(config.get("mlp_only_layers") or [])
    if dense != list(range(len(dense))):
        raise SpecError((f"mlp_only_layers: {dense} are not the first layers",))
    return len(dense)


def _latent_attention(config: Mapping[str, Any]) -> AttentionSpec:
    theta, yarn = _rope_of(config, "deepseek_v3")
    return AttentionSpec(
        kind="mla",
        num_heads=config["num_attention_heads"],
        q_lora_rank=config.get("q_lora_rank"),
        kv_lora_rank=config["kv_lora_rank"],
        qk_nope_head_dim=config["qk_nope_head_dim"],
        qk_rope_head_dim=config["qk_rope_head_dim"],
        v_head_dim=config["v_head_dim"],
        bias=config.get("attention_bias", False),
        rope_theta=theta,
        rope_interleaved=config.get("rope_interleave", True),
        yarn=yarn,
    )


def _grouped_attention(config: Mapping[str, Any], family: str) -> AttentionSpec:
    theta, yarn = _rope_of(config, family)
    norms = {known: norm for norm, known in _FAMILY_OF_QK_NORM.items()}
    return AttentionSpec(
        kind="gqa",
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads"),
        head_dim=config.get("head_dim"),
        qk_norm=norms[family],  # type: ignore[arg-type]
        bias=config.get("attention_bias", False),
        rope_theta=theta,
        yarn=yarn,
    )


def _deepseek_moe(config: Mapping[str, Any]) -> MoESpec:
    return MoESpec(
        num_experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"],
        expert_hidden_size=config["moe_intermediate_size"],
        num_shared_experts=config["n_shared_experts"],
        num_groups=config["n_group"],
        top_groups=config["topk_group"],
        score="sigmoid",
        normalize_weights=config["norm_topk_prob"],
        routed_scaling=float(config["routed_scaling_factor"]),
    )


def _softmax_moe(config: Mapping[str, Any], family: str) -> MoESpec:
    inner = "moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"
    count = "num_local_experts" if family == "mixtral" else "num_experts"
    return MoESpec(
        # Newer versions of transformers write either name.
        num_experts=config[count] if count in config else _other_count(config),
        top_k=config["num_experts_per_tok"],
        expert_hidden_size=config[inner],
        score="softmax",
        normalize_weights=family == "mixtral" or config.get("norm_topk_prob", False),
    )


def _other_count(config: Mapping[str, Any]) -> int:
    for name in ("num_experts", "num_local_experts"):
        if name in config:
            return int(config[name])
    raise SpecError(("config.json has neither num_experts nor num_local_experts",))

"""Our parameters' names in Hugging Face checkpoints.

A parameter of ours is one tensor there, or several stacked along the first dimension: we keep gate
and up projection fused.
"""

from typing import Final

_NORMS: Final = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_ATTENTION: Final = {
    "q_a_norm": "q_a_layernorm",
    "kv_a_proj": "kv_a_proj_with_mqa",
    "kv_a_norm": "kv_a_layernorm",
}
_MTP: Final = {
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "eh_proj.weight": "eh_proj.weight",
    "norm.weight": "shared_head.norm.weight",
}


def hf_names(
    family: str, num_layers: int, block: str, parameter: str, expert: int
) -> tuple[str, ...]:
    """Names of the tensors that make up one parameter.

    Args:
        family: model type of transformers.
        num_layers: layers of the main network; MTP modules are stored behind them.
        block: name of the block in the inventory.
        parameter: its name within the block.
        expert: the expert, -1 in a dense block.

    >>> hf_names("mixtral", 2, "layer.1.experts", "w_gate_up", 3)[0]
    'model.layers.1.block_sparse_moe.experts.3.w1.weight'
    """
    kind, _, rest = block.partition(".")
    if kind == "embedding":
        return ("model.embed_tokens.weight",)
    if kind == "head":
        return ("model.norm.weight" if parameter.startswith("norm.") else "lm_head.weight",)
    number = int(rest.partition(".")[0])
    prefix = f"model.layers.{number if kind == 'layer' else num_layers + number}."
    if expert >= 0:
        return tuple(prefix + name for name in _expert_names(family, parameter, expert))
    if kind == "mtp":
        if parameter in _MTP:
            return (prefix + _MTP[parameter],)
        parameter = parameter.removeprefix("layer.")
    return tuple(prefix + name for name in _layer_names(family, parameter))


def bias_name(num_layers: int, block: str) -> str:
    """Name of the selection bias of an experts block (deepseek_v3 only)."""
    kind, number, _ = block.split(".")
    layer = int(number) + (num_layers if kind == "mtp" else 0)
    return f"model.layers.{layer}.mlp.gate.e_score_correction_bias"


def mtp_marker(num_layers: int, depth: int) -> str:
    """A tensor that every checkpoint with MTP module number `depth` holds."""
    return f"model.layers.{num_layers + depth}.enorm.weight"


def _layer_names(family: str, parameter: str) -> tuple[str, ...]:
    first, _, rest = parameter.partition(".")
    if first in _NORMS:
        return (f"{_NORMS[first]}.{rest}",)
    if first == "attention":
        module, _, kind = rest.partition(".")
        return (f"self_attn.{_ATTENTION.get(module, module)}.{kind}",)
    if parameter == "moe.router.weight":
        return (f"{_moe_module(family)}.gate.weight",)
    if first == "moe":
        return _swiglu("mlp.shared_experts", rest.removeprefix("shared."))
    assert first == "mlp", parameter
    return _swiglu("mlp", rest)


def _swiglu(module: str, parameter: str) -> tuple[str, ...]:
    if parameter == "gate_up.weight":
        return (f"{module}.gate_proj.weight", f"{module}.up_proj.weight")
    return (f"{module}.down_proj.weight",)


def _expert_names(family: str, parameter: str, expert: int) -> tuple[str, ...]:
    module = f"{_moe_module(family)}.experts.{expert}"
    names = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    gate, up, down = (f"{module}.{name}.weight" for name in names)
    return (gate, up) if parameter == "w_gate_up" else (down,)


def _moe_module(family: str) -> str:
    return "block_sparse_moe" if family == "mixtral" else "mlp"

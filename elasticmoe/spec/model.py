"""The network: a DeepSeek-V3-style Mixture-of-Experts transformer and its relatives."""

from typing import Literal, Self

from pydantic import Field, model_validator

from elasticmoe.spec.base import Spec


class YarnSpec(Spec):
    """YaRN scaling of rotary positions, as DeepSeek-V3's configuration writes it."""

    factor: float = Field(gt=1)
    """How many times longer than `original_positions` a sequence may be."""
    original_positions: int = Field(ge=1)
    """Longest sequence before scaling."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0


class AttentionSpec(Spec):
    """Multi-head latent attention (`mla`) or plain multi-head/grouped-query attention (`gqa`)."""

    kind: Literal["mla", "gqa"]
    num_heads: int = Field(ge=1)
    num_kv_heads: int | None = Field(default=None, ge=1)
    """Key/value heads of `gqa`; none: as many as `num_heads`."""
    head_dim: int | None = Field(default=None, ge=2)
    """Width of a `gqa` head; none: hidden_size / num_heads."""
    q_lora_rank: int | None = Field(default=None, ge=1)
    """Rank of the compressed query of `mla`; none: queries are not compressed."""
    kv_lora_rank: int | None = Field(default=None, ge=1)
    qk_nope_head_dim: int | None = Field(default=None, ge=1)
    qk_rope_head_dim: int | None = Field(default=None, ge=2)
    v_head_dim: int | None = Field(default=None, ge=1)
    qk_norm: Literal["none", "head", "full"] = "none"
    """RMSNorm on queries and keys: per head (Qwen3) or over the full width (OLMoE)."""
    bias: bool = False
    """Bias terms in the projections."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    rope_interleaved: bool = False
    """Rotate neighbouring pairs (DeepSeek) instead of halves (Llama)."""
    yarn: YarnSpec | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "mla":
            needed = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
            missing = [name for name in needed if getattr(self, name) is None]
            if missing:
                raise ValueError(f"kind mla needs {', '.join(missing)}")
        elif self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        return self


class MoESpec(Spec):
    """Routed and shared experts of one MoE layer, and how tokens choose among them."""

    num_experts: int = Field(ge=1)
    """Routed experts per MoE layer."""
    top_k: int = Field(ge=1)
    """Experts per token."""
    expert_hidden_size: int = Field(ge=1)
    num_shared_experts: int = Field(default=0, ge=0)
    """Shared experts; they act as one SwiGLU of `num_shared_experts * expert_hidden_size`."""
    num_groups: int = Field(default=1, ge=1)
    """Groups of consecutive experts for group-limited routing."""
    top_groups: int = Field(default=1, ge=1)
    """Groups a token may choose from."""
    group_score_width: int = Field(default=2, ge=1)
    """Scores summed for a group's score. DeepSeek uses 2; Megatron top_k // top_groups."""
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    normalize_weights: bool = True
    """Divide the chosen scores by their sum."""
    routed_scaling: float = Field(default=1.0, gt=0)
    router: str = "linear"
    """`linear`, `mlp`, `per_expert`, or a user's class as `package.module:Class`."""
    expert: str = "swiglu"
    """`swiglu`, or a user's class as `package.module:Class`."""
    combine: str = "weighted_sum"
    """`weighted_sum`, or a user's class as `package.module:Class`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"num_experts {self.num_experts} is not a multiple of num_groups {self.num_groups}"
            )
        per_group = self.num_experts // self.num_groups
        if self.top_groups > self.num_groups:
            raise ValueError(f"top_groups {self.top_groups} exceeds num_groups {self.num_groups}")
        if self.top_k > per_group * self.top_groups:
            raise ValueError(
                f"top_k {self.top_k} exceeds the {per_group * self.top_groups} experts "
                f"in top_groups {self.top_groups} of {per_group}"
            )
        if self.num_groups > 1 and self.group_score_width > per_group:
            raise ValueError(
                f"group_score_width {self.group_score_width} exceeds "
                f"the {per_group} experts of a group"
            )
        return self


class ModelSpec(Spec):
    """Sizes and parts of the network."""

    preset: str = "custom"
    """Where the fields came from; overriding a field keeps the name."""
    vocab_size: int = Field(ge=2)
    hidden_size: int = Field(ge=2)
    num_layers: int = Field(ge=1)
    first_dense_layers: int = Field(default=0, ge=0)
    """Layers before the first MoE layer; they use a dense SwiGLU."""
    dense_hidden_size: int = Field(ge=1)
    """Width of the SwiGLU in dense layers."""
    attention: AttentionSpec
    moe: MoESpec
    mtp_depth: int = Field(default=0, ge=0)
    """Multi-token-prediction modules; they share embedding and head."""
    mtp_loss_weight: float = Field(default=0.3, ge=0)
    tied_embeddings: bool = False
    norm_eps: float = Field(default=1e-6, gt=0)
    init_std: float = Field(default=0.02, gt=0)
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Of compute weights and activations. Master weights are fp32 (fp64 with fp64)."""
    recompute_layers: tuple[int, int] | None = None
    """Range [first, last) of layers whose activations are recomputed in the backward pass."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.first_dense_layers > self.num_layers:
            raise ValueError(
                f"first_dense_layers {self.first_dense_layers} exceeds num_layers {self.num_layers}"
            )
        head_dim = self.attention.head_dim
        if self.attention.kind == "gqa" and head_dim is None:
            if self.hidden_size % self.attention.num_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of "
                    f"attention.num_heads {self.attention.num_heads}; set attention.head_dim"
                )
        return self

    @property
    def num_moe_layers(self) -> int:
        """MoE layers of the main network and of its MTP modules, in that order."""
        return self.num_layers - self.first_dense_layers + self.mtp_depth

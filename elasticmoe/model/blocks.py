"""The modules behind dense blocks; parameter names here are the names in the inventory.

Shapes: S = samples of this worker, P = positions, D = hidden size, V = vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticmoe.model.attention import build_attention
from elasticmoe.model.moe import LayerCall, MoE
from elasticmoe.model.parts import RMSNorm, SwiGLU
from elasticmoe.model.rope import Rotary
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Balancing:
    """How MoE layers are kept balanced: the job's settings and the window they refer to."""

    spec: BalanceSpec
    window_samples: int


class Embedding(nn.Module):
    """Token ids to vectors."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(model.vocab_size, model.hidden_size))

    def forward(self, ids_SP: Tensor) -> Tensor:
        """Return [S, P, D]."""
        return F.embedding(ids_SP, self.weight)


def _go_on(x_SPD: Tensor) -> None:
    return


class Layer(nn.Module):
    """Attention, then a dense SwiGLU or a Mixture of Experts; each behind a norm, each added."""

    def __init__(self, model: ModelSpec, balancing: Balancing, *, is_moe: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(model.hidden_size, model.norm_eps)
        self.attention = build_attention(model)
        self.mlp_norm = RMSNorm(model.hidden_size, model.norm_eps)
        self.is_moe = is_moe
        if is_moe:
            self.moe = MoE(model, balancing.spec, balancing.window_samples)
        else:
            self.mlp = SwiGLU(model.hidden_size, model.dense_hidden_size)

    def forward(
        self,
        x_SPD: Tensor,
        rotary: Rotary,
        call: LayerCall | None,
        halfway: Callable[[Tensor], None] = _go_on,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output, same shape, and the layer's share of auxiliary losses.

        Args:
            halfway: is shown what goes from the attention to the second half.
        """
        x_SPD = x_SPD + self.attention(self.attention_norm(x_SPD), rotary)
        halfway(x_SPD)
        if call is None:
            return x_SPD + self.mlp(self.mlp_norm(x_SPD)), None
        out_SPD, aux = self.moe(self.mlp_norm(x_SPD), call)
        return x_SPD + out_SPD, aux


class Head(nn.Module):
    """Final norm and projection to the vocabulary; with tied embeddings only the norm."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.norm = RMSNorm(model.hidden_size, model.norm_eps)
        if not model.tied_embeddings:
            self.weight = nn.Parameter(torch.empty(model.vocab_size, model.hidden_size))


class MultiTokenPrediction(nn.Module):
    """One more layer that sees the next token and predicts the one behind it.

    Its input is the normalised output of the main network, or of the module before. The projection
    takes [embedding; hidden], the order of DeepSeek's checkpoints.

    Source: DeepSeek-V3, arXiv:2412.19437 eq. 21-25; transformers 5, `MtpLayer`.
    """

    def __init__(self, model: ModelSpec, balancing: Balancing) -> None:
        super().__init__()
        self.enorm = RMSNorm(model.hidden_size, model.norm_eps)
        self.hnorm = RMSNorm(model.hidden_size, model.norm_eps)
        self.eh_proj = nn.Linear(2 * model.hidden_size, model.hidden_size, bias=False)
        self.layer = Layer(model, balancing, is_moe=True)
        self.norm = RMSNorm(model.hidden_size, model.norm_eps)

    def forward(
        self,
        embedded_SPD: Tensor,
        hidden_SPD: Tensor,
        rotary: Rotary,
        call: LayerCall,
        halfway: Callable[[Tensor], None] = _go_on,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the normalised output and the layer's share of auxiliary losses.

        Args:
            halfway: is shown what goes into the layer, and from its attention to its second half.
        """
        both = torch.cat((self.enorm(embedded_SPD), self.hnorm(hidden_SPD)), dim=-1)
        x_SPD = self.eh_proj(both)
        halfway(x_SPD)
        out_SPD, aux = self.layer(x_SPD, rotary, call, halfway)
        return self.norm(out_SPD), aux


def build_block(model: ModelSpec, balancing: Balancing, name: str) -> nn.Module:
    """The module of a dense block, by its name in the inventory."""
    kind, _, number = name.partition(".")
    if kind == "embedding":
        return Embedding(model)
    if kind == "head":
        return Head(model)
    if kind == "mtp":
        return MultiTokenPrediction(model, balancing)
    assert kind == "layer", name
    return Layer(model, balancing, is_moe=int(number) >= model.first_dense_layers)

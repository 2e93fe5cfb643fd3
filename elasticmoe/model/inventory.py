"""What a model's training state consists of: blocks, parameters, units."""

from functools import lru_cache
from typing import Final

import torch
from torch import nn

from elasticmoe.model.attention import head_sizes
from elasticmoe.model.blocks import Balancing, build_block
from elasticmoe.model.experts import expert_class
from elasticmoe.plan.types import ALIGN, Block, Inventory, Parameter, Unit
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import ModelSpec

UNIT_NUMEL: Final = 2**18
"""Elements of a dense unit. Small enough to spread a small model over many homes, large enough that
the largest models have some 10^5 units."""

_BYTES: Final = {"fp32": 4, "bf16": 2, "fp64": 8}


@lru_cache(maxsize=8)
def build_inventory(model: ModelSpec, seq_len: int) -> Inventory:
    """List the blocks and units of a model; nothing is allocated.

    Args:
        model: the network.
        seq_len: tokens per sample, for the cost figures.

    Raises:
        SpecError: a user's class cannot be loaded.
    """
    blocks: list[Block] = []
    layouts = _Layouts(model)
    names = ["embedding", *(f"layer.{i}" for i in range(model.num_layers)), "head"]
    for name in [*names, *(f"mtp.{k}" for k in range(model.mtp_depth))]:
        layer = int(name.partition(".")[2]) if name.startswith("layer.") else -1
        blocks.append(layouts.dense(len(blocks), name, layer, seq_len))
        if name.startswith("mtp.") or layer >= model.first_dense_layers:
            blocks.append(layouts.experts(len(blocks), f"{name}.experts", layer))
    return Inventory(blocks=tuple(blocks), units=tuple(_cut(blocks)))


class _Layouts:
    """Blocks of one kind have one layout: build each kind once."""

    def __init__(self, model: ModelSpec) -> None:
        self._model = model
        self._known: dict[str, tuple[tuple[Parameter, ...], int, int]] = {}

    def dense(self, index: int, name: str, layer: int, seq_len: int) -> Block:
        is_dense_layer = 0 <= layer < self._model.first_dense_layers
        kind = "dense" if is_dense_layer else name.partition(".")[0]
        if kind not in self._known:
            with torch.device("meta"):
                module = build_block(self._model, Balancing(BalanceSpec(), 1), name)
            self._known[kind] = _lay_out(module)
        parameters, decay_numel, numel = self._known[kind]
        return Block(
            index=index,
            name=name,
            layer=layer,
            parameters=parameters,
            decay_numel=decay_numel,
            numel=numel,
            num_experts=0,
            flops_per_token=_dense_flops(self._model, kind, parameters, seq_len),
            activation_bytes_per_token=_dense_activations(self._model, kind),
        )

    def experts(self, index: int, name: str, layer: int) -> Block:
        moe = self._model.moe
        if "experts" not in self._known:
            with torch.device("meta"):
                expert = expert_class(moe)(self._model.hidden_size, moe.expert_hidden_size)
            self._known["experts"] = _lay_out(expert)
        parameters, decay_numel, numel = self._known["experts"]
        kept = 2 * self._model.hidden_size + 3 * moe.expert_hidden_size
        return Block(
            index=index,
            name=name,
            layer=layer,
            parameters=parameters,
            decay_numel=decay_numel,
            numel=numel,
            num_experts=moe.num_experts,
            flops_per_token=_matrix_flops(parameters),
            activation_bytes_per_token=float(kept * _BYTES[self._model.precision]),
        )


def _lay_out(module: nn.Module) -> tuple[tuple[Parameter, ...], int, int]:
    """Parameters with their offsets, decayed ones first; the decayed length; the length."""
    found = [(name, tuple(tensor.shape)) for name, tensor in module.named_parameters()]
    parameters: list[Parameter] = []
    offset = decay_numel = 0
    for decay in (True, False):
        for name, shape in found:
            if (len(shape) >= 2) == decay:
                parameters.append(Parameter(name, shape, decay, offset))
                offset += -(-parameters[-1].numel // ALIGN) * ALIGN
        if decay:
            decay_numel = offset
    return tuple(parameters), decay_numel, offset


def _cut(blocks: list[Block]) -> list[Unit]:
    units: list[Unit] = []
    for block in blocks:
        for expert in range(block.num_experts):
            units.append(Unit(len(units), block.index, expert, 0, block.numel, block.decay_numel))
        if block.is_experts:
            continue
        for start, end, decay in (
            (0, block.decay_numel, True),
            (block.decay_numel, block.numel, False),
        ):
            for offset in range(start, end, UNIT_NUMEL):
                numel = min(UNIT_NUMEL, end - offset)
                units.append(
                    Unit(len(units), block.index, -1, offset, numel, numel if decay else 0)
                )
    return units


def _matrix_flops(parameters: tuple[Parameter, ...]) -> float:
    return 2.0 * sum(parameter.numel for parameter in parameters if parameter.decay)


def _dense_flops(
    model: ModelSpec, kind: str, parameters: tuple[Parameter, ...], seq_len: int
) -> float:
    head = 2.0 * model.vocab_size * model.hidden_size
    if kind == "embedding":
        return 0.0
    if kind == "head":
        return head  # also with tied embeddings, where the weight is the embedding's
    query, value = head_sizes(model.attention, model.hidden_size)
    # A token attends to half of the sequence on average; two flops per product.
    attention = float(model.attention.num_heads * (query + value) * seq_len)
    return _matrix_flops(parameters) + attention + (head if kind == "mtp" else 0.0)


def _dense_activations(model: ModelSpec, kind: str) -> float:
    """Inputs that the backward pass needs: of norms, products, attention and activation."""
    size, hidden = _BYTES[model.precision], model.hidden_size
    if kind == "embedding":
        return 8.0  # ids
    logits = 2 * 4 * model.vocab_size  # logits and their softmax, in fp32
    if kind == "head":
        return float(2 * hidden * size + logits)
    query, value = head_sizes(model.attention, model.hidden_size)
    kept = 5 * hidden + model.attention.num_heads * (2 * query + 2 * value)
    if kind == "dense":
        kept += 3 * model.dense_hidden_size
    else:
        shared = model.moe.num_shared_experts * model.moe.expert_hidden_size
        kept += 3 * shared + model.moe.top_k * hidden
    extra = 4 * hidden * size + logits if kind == "mtp" else 0
    return float(kept * size + extra)

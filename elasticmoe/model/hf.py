"""Hugging Face checkpoints: safetensors and a configuration that `transformers` loads.

Shapes: L = MoE layers, E = experts.
"""

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from elasticmoe.errors import CheckpointError, SpecError
from elasticmoe.model.hf_config import config_from_spec, family_of, spec_from_config
from elasticmoe.model.hf_names import bias_name, hf_names, mtp_marker
from elasticmoe.model.inventory import build_inventory
from elasticmoe.plan.types import Inventory
from elasticmoe.spec.model import ModelSpec

MAX_SHARD_BYTES: Final = 4 * 2**30
"""Size of one safetensors file; a common limit of object stores and hubs is 5 GB."""

ReadTensor = Callable[[str], Tensor]
ReadParameter = Callable[[str, str, int], Tensor]
"""(block name, parameter name, expert or -1) -> the parameter."""


@dataclass(frozen=True, slots=True)
class NamedParameter:
    """One parameter of a block, or of one expert of an experts block."""

    block: str
    parameter: str
    expert: int
    """-1 in a dense block."""
    value: Tensor


def spec_from_hf(config: Mapping[str, Any], names: Container[str]) -> ModelSpec:
    """The spec of a checkpoint; MTP modules count only if their tensors are there.

    Args:
        config: the content of `config.json`.
        names: the checkpoint's tensor names.

    Raises:
        SpecError: an unknown model, or one that a spec cannot express.
    """
    depth, num_layers = 0, config.get("num_hidden_layers", 0)
    while mtp_marker(num_layers, depth) in names:
        depth += 1
    return spec_from_config(config, depth)


def parameters_from_hf(model: ModelSpec, read: ReadTensor) -> Iterator[NamedParameter]:
    """Read a checkpoint's parameters, in the inventory's order.

    Args:
        model: what `spec_from_hf` returned, or an equal spec.
        read: returns a tensor of the checkpoint by name.

    Raises:
        SpecError: the spec is none of Hugging Face's, or a tensor has another shape.
    """
    family = family_of(model)
    for block, parameter, shape, expert in _parameters(build_inventory(model, seq_len=1)):
        names = hf_names(family, model.num_layers, block, parameter, expert)
        value = torch.cat([read(name) for name in names]) if len(names) > 1 else read(names[0])
        if tuple(value.shape) != shape:
            raise SpecError((f"{names[0]}: shape {tuple(value.shape)}, the model needs {shape}",))
        yield NamedParameter(block, parameter, expert, value)


def bias_from_hf(model: ModelSpec, read: ReadTensor) -> Tensor:
    """Selection bias of all MoE layers, fp32 [L, E]; zero where the family has none."""
    blocks = build_inventory(model, seq_len=1).moe_blocks
    if family_of(model) != "deepseek_v3" or not blocks:
        return torch.zeros(len(blocks), model.moe.num_experts)
    return torch.stack([read(bias_name(model.num_layers, b.name)).float() for b in blocks])


def to_hf(
    model: ModelSpec,
    read: ReadParameter,
    bias_LE: Tensor,
    *,
    max_positions: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """A model as Hugging Face configuration and tensors.

    Args:
        model: its spec.
        read: returns one parameter.
        bias_LE: selection bias; all zero where the family has none.
        max_positions: longest sequence the model is meant for.
        dtype: of the stored weights; the bias stays fp32.

    Raises:
        SpecError: none of the families computes what this model does.
    """
    family = family_of(model)
    if family != "deepseek_v3" and bool(bias_LE.any()):
        raise SpecError((f"balance.bias: the bias is not zero, and {family} has none",))
    config = config_from_spec(model, max_positions, str(dtype).removeprefix("torch."))
    return config, _tensors(model, family, read, bias_LE, dtype)


def write_hf(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """Write what `to_hf` returned; the index comes last.

    Returns:
        The files, `config.json` first.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    weight_map: dict[str, str] = {}
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal pending, pending_bytes
        shards.append(directory / f"model-{len(shards) + 1:05d}.safetensors")
        save_file(pending, shards[-1], metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(pending, shards[-1].name))
        pending, pending_bytes = {}, 0

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            flush()
        pending[name] = tensor.contiguous()
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    config_file = directory / "config.json"
    config_file.write_text(json.dumps(dict(config), indent=2) + "\n")
    index_file = directory / "model.safetensors.index.json"
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    index_file.write_text(json.dumps(index, indent=2) + "\n")
    return [config_file, *shards, index_file]


class HFCheckpoint:
    """A Hugging Face checkpoint directory, open for reading."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            CheckpointError: no configuration, or no safetensors files.
        """
        config_file = directory / "config.json"
        files = sorted(directory.glob("*.safetensors"))
        if not config_file.is_file() or not files:
            raise CheckpointError(
                f"{directory} is not a Hugging Face checkpoint: it needs config.json and "
                "*.safetensors files"
            )
        self.config: dict[str, Any] = json.loads(config_file.read_text())
        opened = [safe_open(file, framework="pt") for file in files]
        self._file_of = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    @property
    def names(self) -> Container[str]:
        """Names of all tensors."""
        return self._file_of.keys()

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            CheckpointError: there is none of that name.
        """
        file = self._file_of.get(name)
        if file is None:
            raise CheckpointError(f"the checkpoint has no tensor {name}")
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _parameters(inventory: Inventory) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    for block in inventory.blocks:
        for expert in range(block.num_experts) if block.is_experts else (-1,):
            for parameter in block.parameters:
                yield block.name, parameter.name, parameter.shape, expert


def _tensors(
    model: ModelSpec, family: str, read: ReadParameter, bias_LE: Tensor, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    inventory = build_inventory(model, seq_len=1)
    for block, parameter, _, expert in _parameters(inventory):
        names = hf_names(family, model.num_layers, block, parameter, expert)
        parts = read(block, parameter, expert).to(dtype).chunk(len(names))
        # Copies: safetensors refuses tensors that share memory.
        yield from ((name, part.clone()) for name, part in zip(names, parts, strict=True))
    if family == "deepseek_v3":
        for row, moe_block in enumerate(inventory.moe_blocks):
            yield bias_name(model.num_layers, moe_block.name), bias_LE[row].float().clone()

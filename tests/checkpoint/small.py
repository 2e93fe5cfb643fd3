"""A small model's units, and checkpoints of them."""

from typing import Any

import torch

from elasticmoe.checkpoint.manifest import UNIT_PARTS, Manifest, file_row, unit_tensor
from elasticmoe.checkpoint.store import Store
from elasticmoe.checkpoint.write import seal, write_part
from elasticmoe.plan.types import Block, Inventory, Parameter, Unit


def build_inventory() -> Inventory:
    """One dense block in two pieces (the cut goes through `b`), one block of two experts."""
    dense = Block(
        index=0,
        name="layer.0",
        layer=0,
        parameters=(
            Parameter("a", (5, 4), True, 0),
            Parameter("b", (16, 2), True, 32),
            Parameter("norm", (16,), False, 64),
        ),
        decay_numel=64,
        numel=80,
        num_experts=0,
        flops_per_token=1.0,
        activation_bytes_per_token=1.0,
    )
    experts = Block(
        index=1,
        name="layer.0.experts",
        layer=0,
        parameters=(Parameter("up", (4, 4), True, 0), Parameter("down", (3, 5), True, 16)),
        decay_numel=32,
        numel=32,
        num_experts=2,
        flops_per_token=1.0,
        activation_bytes_per_token=1.0,
    )
    units = (
        Unit(0, 0, -1, 0, 48, 48),
        Unit(1, 0, -1, 48, 32, 16),
        Unit(2, 1, 0, 0, 32, 32),
        Unit(3, 1, 1, 0, 32, 32),
    )
    return Inventory((dense, experts), units)


def unit_values(index: int, part: str, numel: int, step: int) -> torch.Tensor:
    """Different numbers for every array and step."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * index + UNIT_PARTS.index(part))
    return torch.randn(numel, generator=generator)


def build_manifest(step: int, files: list[dict[str, Any]], **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "job": "test",
        "step": step,
        "timeline": 0,
        "generation": 3,
        "model": {"hidden_size": 16},
        "inventory": "cut",
        "data": "text",
        "global_samples": 8,
        "seed": 0,
        "files": tuple(file_row(file) for file in files),
        "state": {"step": step, "rate": 0.1 + 0.2},
    }
    return Manifest(**{**fields, **changes})


def write_checkpoint(store: Store, step: int, writers: int = 2) -> Manifest:
    """All units of `build_inventory`, dealt to several writers, and a bias."""
    files: list[dict[str, Any]] = []
    for writer in range(writers):
        tensors = [
            (unit_tensor(unit.index, part), unit_values(unit.index, part, unit.numel, step))
            for unit in build_inventory().units
            if unit.index % writers == writer
            for part in UNIT_PARTS
        ]
        if writer == 0:
            tensors.append(("bias", torch.arange(2, dtype=torch.float64).view(1, 2)))
        files += write_part(store, step, f"g3-w{writer}", tensors)
    manifest = build_manifest(step, files)
    seal(store, manifest)
    return manifest

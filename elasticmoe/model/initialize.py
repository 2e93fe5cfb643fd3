"""First weights: a pure function of the seed and the parameter, never of the layout."""

import hashlib
from typing import Final

import numpy as np
import torch
from torch import Tensor

from elasticmoe.plan.types import Block, Inventory, Parameter, Unit
from elasticmoe.spec.model import ModelSpec

CHUNK_NUMEL: Final = 2**16
"""Elements that share one random stream. A unit draws only the chunks it overlaps, so that a
parameter of many units costs no more than its size."""


def initial_unit(
    model: ModelSpec, inventory: Inventory, unit: Unit, seed: int, dtype: torch.dtype
) -> Tensor:
    """Draw the first weights of one unit; padding is zero.

    Matrices are normal with `init_std`, biases zero, gains one. numpy draws them, since its streams
    are the same on every machine, while torch's depend on the processor.

    Returns:
        [unit.numel], drawn in fp32, then cast.
    """
    block = inventory.blocks[unit.block]
    flat = torch.zeros(unit.numel, dtype=torch.float32)
    end = unit.offset + unit.numel
    for parameter in block.parameters:
        first = max(parameter.offset, unit.offset)
        last = min(parameter.offset + parameter.numel, end)
        if first >= last:
            continue
        flat[first - unit.offset : last - unit.offset] = _values(
            model,
            block,
            parameter,
            unit.expert,
            seed,
            (first - parameter.offset, last - parameter.offset),
        )
    return flat.to(dtype)


def _values(
    model: ModelSpec,
    block: Block,
    parameter: Parameter,
    expert: int,
    seed: int,
    span: tuple[int, int],
) -> Tensor | float:
    if not parameter.decay:
        return 0.0 if parameter.name.rpartition(".")[2] == "bias" else 1.0
    start, end = span
    first = start // CHUNK_NUMEL
    chunks = [
        _draw(f"{seed}/{block.name}/{parameter.name}/{expert}/{chunk}", parameter.numel, chunk)
        for chunk in range(first, -(-end // CHUNK_NUMEL))
    ]
    skipped = first * CHUNK_NUMEL
    drawn = np.concatenate(chunks)[start - skipped : end - skipped]
    return torch.from_numpy(drawn * np.float32(model.init_std))


def _draw(key: str, numel: int, chunk: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    return random.standard_normal(min(CHUNK_NUMEL, numel - chunk * CHUNK_NUMEL), dtype=np.float32)

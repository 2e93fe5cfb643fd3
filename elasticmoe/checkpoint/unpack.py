"""Parameters from units and units from parameters, for export and import."""

from collections.abc import Iterable, Iterator

import torch

from elasticmoe.checkpoint.manifest import unit_tensor
from elasticmoe.checkpoint.read import Checkpoint
from elasticmoe.errors import CheckpointError
from elasticmoe.plan.types import Block, Inventory, Parameter, Unit


def read_parameter(
    checkpoint: Checkpoint,
    inventory: Inventory,
    block_name: str,
    parameter_name: str,
    expert: int = -1,
) -> torch.Tensor:
    """Assemble one parameter's master weights from the units it lies in.

    Args:
        expert: the logical expert, for an experts block.

    Returns:
        A new tensor of the parameter's shape, in the master's data type.

    Raises:
        CheckpointError: the model has no such parameter, or a unit is missing or damaged.
    """
    block, parameter = _find(inventory, block_name, parameter_name, expert)
    pieces = [
        checkpoint.read(unit_tensor(unit.index, "master"))[inside]
        for unit, inside, _ in _pieces(inventory, block, parameter, expert)
    ]
    return torch.cat(pieces).view(parameter.shape)


def units_from_parameters(
    inventory: Inventory,
    parameters: Iterable[tuple[str, str, int, torch.Tensor]],
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Turn whole parameters into named unit arrays with zero moments, ready for `write_part`.

    Args:
        parameters: (block name, parameter name, expert or -1, tensor), in any order.
        dtype: of the master weights.

    Yields:
        A unit's arrays as soon as its last parameter came in.

    Raises:
        CheckpointError: a parameter is unknown, misshapen, given twice, or was not given.
    """
    waiting = _parameters_per_unit(inventory)
    flat: dict[int, torch.Tensor] = {}
    zeros = torch.zeros(max((unit.numel for unit in inventory.units), default=0), dtype=dtype)
    for block_name, name, expert, tensor in parameters:
        block, parameter = _find(inventory, block_name, name, expert)
        if tuple(tensor.shape) != parameter.shape:
            raise CheckpointError(
                f"{_title(block_name, name, expert)} has shape {tuple(tensor.shape)}, "
                f"the model has {parameter.shape}"
            )
        for unit, inside, of_parameter in _pieces(inventory, block, parameter, expert):
            if name not in waiting[unit.index]:
                raise CheckpointError(f"{_title(block_name, name, expert)} was given twice")
            waiting[unit.index].remove(name)
            if unit.index not in flat:
                flat[unit.index] = torch.zeros(unit.numel, dtype=dtype)
            flat[unit.index][inside] = tensor.reshape(-1)[of_parameter].to(dtype)
            if not waiting[unit.index]:
                yield unit_tensor(unit.index, "master"), flat.pop(unit.index)
                yield unit_tensor(unit.index, "exp_avg"), zeros[: unit.numel]
                yield unit_tensor(unit.index, "exp_avg_sq"), zeros[: unit.numel]
    for unit in inventory.units:
        for name in sorted(waiting[unit.index]):
            block_name = inventory.blocks[unit.block].name
            raise CheckpointError(f"{_title(block_name, name, unit.expert)} was not given")


def _find(inventory: Inventory, block_name: str, name: str, expert: int) -> tuple[Block, Parameter]:
    block = inventory.block_by_name.get(block_name)
    if block is None:
        raise CheckpointError(f"the model has no block {block_name!r}")
    experts = range(block.num_experts) if block.is_experts else range(-1, 0)
    for parameter in block.parameters:
        if parameter.name == name and expert in experts:
            return block, parameter
    raise CheckpointError(f"the model has no parameter {_title(block_name, name, expert)}")


def _pieces(
    inventory: Inventory, block: Block, parameter: Parameter, expert: int
) -> Iterator[tuple[Unit, slice, slice]]:
    """Units that a parameter lies in: where in the unit, and where in the flat parameter."""
    first, end = parameter.offset, parameter.offset + parameter.numel
    units = inventory.units_of_block[block.index]
    for unit in units[expert : expert + 1] if block.is_experts else units:
        start, stop = max(first, unit.offset), min(end, unit.offset + unit.numel)
        if start < stop:
            inside = slice(start - unit.offset, stop - unit.offset)
            yield unit, inside, slice(start - first, stop - first)


def _parameters_per_unit(inventory: Inventory) -> list[set[str]]:
    found: list[set[str]] = [set() for _ in inventory.units]
    for block in inventory.blocks:
        for expert in range(block.num_experts) if block.is_experts else (-1,):
            for parameter in block.parameters:
                for unit, _, _ in _pieces(inventory, block, parameter, expert):
                    found[unit.index].add(parameter.name)
    return found


def _title(block: str, parameter: str, expert: int) -> str:
    return f"{block}.{parameter}" + (f" of expert {expert}" if expert >= 0 else "")

"""Who holds and who homes every unit, as arrays.

Shapes: U = units, M = members.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from elasticmoe.plan.types import Inventory, Stage

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def holder_matrix(
    inventory: Inventory,
    stages: Sequence[Stage],
    slots: Mapping[int, tuple[tuple[int, ...], ...]],
) -> BoolArray:
    """Whether each member holds each unit's compute weights, bool [U, M].

    Agrees with `Plan.holders`, for all units at once.
    """
    num_members = sum(len(stage.members) for stage in stages)
    holders_UM = np.zeros((len(inventory.units), num_members), dtype=np.bool_)
    for stage in stages:
        for block in stage.blocks:
            units = inventory.units_of_block[block]
            if not units:
                continue
            rows = slice(units[0].index, units[-1].index + 1)
            if not inventory.blocks[block].is_experts:
                holders_UM[rows, list(stage.members)] = True
                continue
            for member, experts in zip(stage.members, slots[block], strict=True):
                held_E = np.zeros(inventory.blocks[block].num_experts, dtype=np.bool_)
                held_E[list(experts)] = True
                holders_UM[rows, member] = held_E[[unit.expert for unit in units]]
    return holders_UM


def unit_sizes(inventory: Inventory) -> IntArray:
    """Elements of each unit, int64 [U]."""
    return np.array([unit.numel for unit in inventory.units], dtype=np.int64)


def home_matrix(homes: Sequence[Sequence[int]], num_members: int) -> BoolArray:
    """Whether each member is a home of each unit, bool [U, M]."""
    homes_UM = np.zeros((len(homes), num_members), dtype=np.bool_)
    rows = np.repeat(np.arange(len(homes)), [len(of_unit) for of_unit in homes])
    homes_UM[rows, np.array([m for of_unit in homes for m in of_unit], dtype=np.int64)] = True
    return homes_UM

"""Who holds and who homes every unit, as arrays.

Shapes: U = units, M = members, C = copies (or homes) of all units, one after another, B = those of
one block, E = experts of one layer, W = workers of one stage.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from elasticmoe.plan.types import Inventory, Plan, Stage

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


def unit_holders(
    inventory: Inventory,
    stages: Sequence[Stage],
    slots: Mapping[int, tuple[tuple[int, ...], ...]],
) -> tuple[tuple[int, ...], ...]:
    """Holders of each unit, ascending; those with the same holders share one tuple, so that they
    are quickly known to be equal.

    Says the same as `holder_matrix`, in less memory for large gangs.
    """
    found: list[tuple[int, ...]] = [()] * len(inventory.units)
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}
    stages_of: dict[int, list[Stage]] = {}
    for stage in stages:
        for block in stage.blocks:
            stages_of.setdefault(block, []).append(stage)
    for block, users in stages_of.items():
        units = inventory.units_of_block[block]
        if not inventory.blocks[block].is_experts:
            held = tuple(sorted(member for stage in users for member in stage.members))
            everyone = shared.setdefault(held, held)
            for unit in units:
                found[unit.index] = everyone
            continue
        held_E: list[list[int]] = [[] for _ in range(inventory.blocks[block].num_experts)]
        for member, experts in zip(users[0].members, slots[block], strict=True):
            for expert in experts:
                held_E[expert].append(member)
        shared_E = [shared.setdefault(held, held) for held in map(tuple, held_E)]
        for unit in units:
            found[unit.index] = shared_E[unit.expert]
    return tuple(found)


def flat_copies(present: Mapping[int, Sequence[int]]) -> tuple[IntArray, IntArray]:
    """List pairs of a unit and a member that has it as two arrays, [C] each, in the given order."""
    counts = [len(positions) for positions in present.values()]
    unit_C = np.repeat(np.fromiter(present, dtype=np.int64, count=len(present)), counts)
    position_C = np.fromiter(chain.from_iterable(present.values()), np.int64, len(unit_C))
    return unit_C, position_C


def unit_sizes(inventory: Inventory) -> IntArray:
    """Elements of each unit, int64 [U]."""
    return np.array([unit.numel for unit in inventory.units], dtype=np.int64)


def home_matrix(homes: Sequence[Sequence[int]], num_members: int) -> BoolArray:
    """Whether each member is a home of each unit, bool [U, M]."""
    homes_UM = np.zeros((len(homes), num_members), dtype=np.bool_)
    rows = np.repeat(np.arange(len(homes)), [len(of_unit) for of_unit in homes])
    homes_UM[rows, np.array([m for of_unit in homes for m in of_unit], dtype=np.int64)] = True
    return homes_UM


def count_held(
    inventory: Inventory, plan: Plan, numel_U: IntArray, unit_C: IntArray, home_C: IntArray
) -> tuple[IntArray, IntArray, BoolArray]:
    """Elements that each member holds, [M], how many hold each unit, [U], and whether each home
    does, [C]; homes are in the order of units."""
    held_M, num_holders_U = np.zeros(len(plan.members), np.int64), np.zeros_like(numel_U)
    is_holder_C = np.zeros(len(unit_C), np.bool_)
    place_M = np.empty(len(plan.members), np.int64)
    for stage in plan.stages:
        members = list(stage.members)
        place_M[:] = -1
        place_M[members] = np.arange(len(members))
        for block in stage.blocks:
            units = inventory.units_of_block[block]
            if not units:
                continue
            rows = slice(units[0].index, units[-1].index + 1)
            of_block = slice(*np.searchsorted(unit_C, (rows.start, rows.stop)))
            place_B = place_M[home_C[of_block]]
            if not inventory.blocks[block].is_experts:
                held_M[members] += numel_U[rows].sum()
                num_holders_U[rows] += len(members)
                is_holder_C[of_block] |= place_B >= 0
                continue
            slots = plan.slots[block]  # a layer's experts are equally large, one unit each
            slots_W, held = slot_counts(slots), np.fromiter(chain.from_iterable(slots), np.int64)
            held_EW = np.zeros((len(units), len(slots)), np.bool_)
            held_EW[held, np.repeat(np.arange(len(slots)), slots_W)] = True
            held_M[members] += units[0].numel * slots_W
            num_holders_U[rows] += np.bincount(held, minlength=len(units))
            expert_B = unit_C[of_block] - rows.start
            is_holder_C[of_block] = held_EW[expert_B, place_B] & (place_B >= 0)
    return held_M, num_holders_U, is_holder_C


def slot_counts(slots: tuple[tuple[int, ...], ...]) -> IntArray:
    """Experts that each worker of a stage holds, [W]."""
    return np.fromiter(map(len, slots), np.int64, len(slots))

"""Who sends which units to whom in a step's three exchanges.

One exchange is one `all_to_all_single` over the world group. For every pair of members the
sender's units for the receiver are the receiver's units from the sender, in ascending order of
their index; a member's units for itself are listed too.

Shapes: U = units, M = members.
"""

from dataclasses import dataclass

import numpy as np

from elasticmoe.plan.holders import (
    BoolArray,
    IntArray,
    holder_matrix,
    home_matrix,
    unit_sizes,
)
from elasticmoe.plan.types import Inventory, Plan


@dataclass(frozen=True, slots=True, eq=False)
class UnitRoutes:
    """One member's side of one exchange; all tuples have an entry per member of the gang."""

    send: tuple[IntArray, ...]
    """Units for each member, ascending."""
    receive: tuple[IntArray, ...]
    """Units from each member, ascending."""
    send_numel: tuple[int, ...]
    """Elements for each member."""
    receive_numel: tuple[int, ...]
    """Elements from each member."""


@dataclass(frozen=True, slots=True, eq=False)
class ExchangeTables:
    """One member's side of a step's three exchanges."""

    gradients: UnitRoutes
    """From the holders of a unit to its primary home; the primary itself is a holder."""
    forwards: UnitRoutes
    """Reduced gradients from the primary home to the other homes."""
    weights: UnitRoutes
    """Updated compute weights from the primary home to the holders."""


def plan_exchange(plan: Plan, inventory: Inventory, member: int) -> ExchangeTables:
    """List what one member sends and receives.

    Args:
        member: position in `plan.members`.
    """
    holders_UM = holder_matrix(inventory, plan.stages, plan.slots)
    num_members = len(plan.members)
    primary_U = np.array([homes[0] for homes in plan.homes], dtype=np.int64)
    primary_UM = np.zeros_like(holders_UM)
    primary_UM[np.arange(len(primary_U)), primary_U] = True
    mirror_UM = home_matrix(plan.homes, num_members) & ~primary_UM
    numel_U = unit_sizes(inventory)
    return ExchangeTables(
        gradients=_side(holders_UM, primary_UM, numel_U, member),
        forwards=_side(primary_UM, mirror_UM, numel_U, member),
        weights=_side(primary_UM, holders_UM, numel_U, member),
    )


def _side(from_UM: BoolArray, to_UM: BoolArray, numel_U: IntArray, member: int) -> UnitRoutes:
    """Units go from every member marked in `from_UM` to every member marked in `to_UM`."""
    send = _by_peer(from_UM[:, member], to_UM)
    receive = _by_peer(to_UM[:, member], from_UM)
    return UnitRoutes(
        send=send,
        receive=receive,
        send_numel=tuple(int(numel_U[units].sum()) for units in send),
        receive_numel=tuple(int(numel_U[units].sum()) for units in receive),
    )


def _by_peer(mine_U: BoolArray, theirs_UM: BoolArray) -> tuple[IntArray, ...]:
    mine = np.flatnonzero(mine_U)
    shared_MU = theirs_UM[mine].T
    return tuple(mine[shared_U] for shared_U in shared_MU)

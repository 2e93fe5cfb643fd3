"""Who sends which units to whom in a step's three exchanges.

One exchange is one `all_to_all_single` over the world group. For every pair of members the
sender's units for the receiver are the receiver's units from the sender, in ascending order of
their index; a member's units for itself are listed too.

Shapes: U = units, M = members.
"""

from dataclasses import dataclass

import numpy as np

from elasticmoe.plan.holders import BoolArray, IntArray, holder_matrix, home_matrix
from elasticmoe.plan.types import Inventory, Plan


@dataclass(frozen=True, slots=True, eq=False)
class UnitRoutes:
    """One member's side of one exchange; both tuples have an entry per member of the gang."""

    send: tuple[IntArray, ...]
    """Units for each member, ascending."""
    receive: tuple[IntArray, ...]
    """Units from each member, ascending."""


@dataclass(frozen=True, slots=True, eq=False)
class ExchangeTables:
    """One member's side of a step's three exchanges."""

    gradients: UnitRoutes
    """From the holders of a unit to its primary home; the primary itself is a holder."""
    forwards: UnitRoutes
    """Reduced gradients from the primary home to the other homes."""
    weights: UnitRoutes
    """Updated compute weights from the primary home to the holders; a holder that is a home itself,
    primary or not, has them from itself."""


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
    homes_UM = home_matrix(plan.homes, num_members)
    weights = _side(primary_UM, holders_UM & ~homes_UM, member)
    own = np.flatnonzero(holders_UM[:, member] & homes_UM[:, member])
    return ExchangeTables(
        gradients=_side(holders_UM, primary_UM, member),
        forwards=_side(primary_UM, homes_UM & ~primary_UM, member),
        weights=UnitRoutes(
            send=_with_own(weights.send, member, own),
            receive=_with_own(weights.receive, member, own),
        ),
    )


def _side(from_UM: BoolArray, to_UM: BoolArray, member: int) -> UnitRoutes:
    """Units go from every member marked in `from_UM` to every member marked in `to_UM`."""
    return UnitRoutes(
        send=_by_peer(from_UM[:, member], to_UM),
        receive=_by_peer(to_UM[:, member], from_UM),
    )


def _by_peer(mine_U: BoolArray, theirs_UM: BoolArray) -> tuple[IntArray, ...]:
    mine = np.flatnonzero(mine_U)
    shared_MU = theirs_UM[mine].T
    return tuple(mine[shared_U] for shared_U in shared_MU)


def _with_own(units: tuple[IntArray, ...], member: int, own: IntArray) -> tuple[IntArray, ...]:
    return (*units[:member], own, *units[member + 1 :])

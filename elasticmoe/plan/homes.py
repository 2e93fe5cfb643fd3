"""Where the master copies of every unit live.

The primary home is a holder, so that it reduces the gradient inside the unit's stage. The other
homes follow copysets: nodes are grouped across failure domains, and all units of a node are
mirrored inside its group. Scattered mirrors would make nearly every loss of two nodes fatal.

Shapes: U = units, M = members.
"""

from collections.abc import Sequence

import numpy as np

from elasticmoe.plan.holders import BoolArray, IntArray
from elasticmoe.plan.types import Member


def plan_homes(
    members: Sequence[Member], holders_UM: BoolArray, numel_U: IntArray, redundancy: int
) -> tuple[tuple[int, ...], ...]:
    """Choose every unit's homes, primary first.

    Args:
        holders_UM: who holds the compute weights; every unit has a holder.
        numel_U: elements of each unit; homes are balanced by their sum.
        redundancy: homes per unit; fewer if there are fewer members.

    Returns:
        Per unit min(redundancy, M) different positions in `members`. With two failure domains or
        more, every unit with two homes or more has homes in two.
    """
    primary_U = _plan_primaries(holders_UM, numel_U)
    load_M = np.bincount(primary_U, weights=numel_U, minlength=len(members)).astype(np.int64)
    node_M = _label([member.node for member in members])
    group_of_node = plan_copysets(members, load_M, redundancy)
    group_M = np.array([group_of_node[member.node] for member in members])
    domain_M = _label([member.domain for member in members])
    homes: list[list[int]] = [[int(primary)] for primary in primary_U]
    num_homes = min(redundancy, len(members))
    candidates: dict[tuple[int, ...], IntArray] = {}
    for unit in np.argsort(-numel_U, kind="stable"):
        chosen = homes[unit]
        while len(chosen) < num_homes:
            key = tuple(chosen)
            if key not in candidates:
                in_group_M = group_M == group_M[chosen[0]]
                candidates[key] = _furthest(chosen, in_group_M, node_M, domain_M)
            best = candidates[key]
            home = int(best[load_M[best].argmin()])
            load_M[home] += numel_U[unit]
            chosen.append(home)
    return tuple(tuple(chosen) for chosen in homes)


def plan_copysets(members: Sequence[Member], load_M: IntArray, redundancy: int) -> dict[str, int]:
    """Group nodes so that each group spans failure domains and has room for all homes.

    Nodes are sorted by domain, largest first, and dealt out like cards: then no group lies within
    one domain, and a group has two nodes of one domain only if that domain has more nodes than
    there are groups. Heavy nodes meet light ones.

    Returns:
        The group's number by node.
    """
    load: dict[str, int] = {}
    domain_of: dict[str, str] = {}
    for member, homed in zip(members, load_M, strict=True):
        load[member.node] = load.get(member.node, 0) + int(homed)
        domain_of[member.node] = member.domain
    if len(set(domain_of.values())) == 1:
        domain_of = {node: node for node in domain_of}
    nodes_of: dict[str, list[str]] = {}
    for node, domain in domain_of.items():
        nodes_of.setdefault(domain, []).append(node)
    domains = sorted(nodes_of, key=lambda domain: (-len(nodes_of[domain]), domain))
    outside_largest = len(load) - len(nodes_of[domains[0]])
    num_groups = max(1, min(len(load) // redundancy, outside_largest))
    deck = [
        node
        for turn, domain in enumerate(domains)
        for node in sorted(nodes_of[domain], key=lambda node: ((-1) ** turn * -load[node], node))
    ]
    return {node: place % num_groups for place, node in enumerate(deck)}


def _plan_primaries(holders_UM: BoolArray, numel_U: IntArray) -> IntArray:
    """Give each unit to its least loaded holder; those with the least choice come first."""
    num_holders_U = holders_UM.sum(axis=1)
    assert num_holders_U.all(), "every unit needs a holder"
    load_M = np.zeros(holders_UM.shape[1], dtype=np.int64)
    primary_U = np.zeros(len(numel_U), dtype=np.int64)
    for unit in np.lexsort((-numel_U, num_holders_U)):
        holders = np.flatnonzero(holders_UM[unit])
        primary = holders[load_M[holders].argmin()]
        load_M[primary] += numel_U[unit]
        primary_U[unit] = primary
    return primary_U


def _furthest(
    chosen: list[int], in_group_M: BoolArray, node_M: IntArray, domain_M: IntArray
) -> IntArray:
    """Members of the group in a new domain, else on a new node, else anywhere but `chosen`."""
    new_M = in_group_M.copy()
    new_M[chosen] = False
    for label_M in (domain_M, node_M):
        apart_M = new_M & ~np.isin(label_M, label_M[chosen])
        if apart_M.any():
            return np.flatnonzero(apart_M)
    return np.flatnonzero(new_M)


def _label(names: list[str]) -> IntArray:
    """Number equal names equally, in order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)

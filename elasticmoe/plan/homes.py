"""Where the master copies of every unit live.

The primary home is a holder, so that it reduces the gradient inside the unit's stage. The other
homes follow copysets: nodes are grouped across failure domains, and all units of a node are
mirrored inside its group. Scattered mirrors would make nearly every loss of two nodes fatal.

Shapes: U = units, M = members.
"""

from collections.abc import Mapping, Sequence
from heapq import heapify, heapreplace
from itertools import groupby

import numpy as np

from elasticmoe.plan.holders import IntArray
from elasticmoe.plan.types import Member

Homes = tuple[tuple[int, ...], ...]
"""Per unit its homes as positions in the gang's members, primary first."""
Holders = Sequence[tuple[int, ...]]
"""Per unit its holders, ascending; at least one. Units with the same holders best share a tuple."""
Present = Mapping[int, Sequence[int]]
"""Unit -> positions of the members that have a whole copy of it."""


def plan_homes(
    members: Sequence[Member], holders: Holders, numel_U: IntArray, redundancy: int
) -> Homes:
    """Choose every unit's homes, primary first.

    Args:
        holders: who holds the compute weights.
        numel_U: elements of each unit; homes are balanced by their sum.
        redundancy: homes per unit; fewer if there are fewer members.

    Returns:
        Per unit min(redundancy, M) different positions in `members`. With two failure domains or
        more, every unit with two homes or more has homes in two.
    """
    primary_U = _plan_primaries(holders, numel_U, len(members))
    return add_mirrors(members, tuple((p,) for p in primary_U), numel_U, redundancy)


def holders_with_copy(holders: Holders, present: Present) -> Holders:
    """Those of every unit's holders that have a copy of it, in the order of `present`; of a unit
    without any, a copy has to move before training goes on."""
    found: list[tuple[int, ...]] = []
    for held, units in groupby(range(len(holders)), key=holders.__getitem__):
        is_holder = frozenset(held).__contains__
        found += [tuple(filter(is_holder, present.get(unit, ()))) for unit in units]
    return found


def keep_homes(
    members: Sequence[Member],
    candidates: Holders,
    numel_U: IntArray,
    redundancy: int,
    present: Present,
) -> Homes:
    """Choose homes where copies are, so that as little as possible has to move before training.

    The least loaded candidate becomes the primary home. The other homes are further members with
    copies, in another failure domain or at least on another node where there are such. Nobody
    becomes a mirror who has no copy: see `protection.restore_protection`.

    Args:
        candidates: for primary homes.

    Returns:
        Per unit between 1 and min(redundancy, M) different positions in `members`.
    """
    primaries = _plan_primaries(candidates, numel_U, len(members))
    homes = [
        (primary, *filter(primary.__ne__, present.get(unit, ())))
        for unit, primary in enumerate(primaries)
    ]
    if max(map(len, homes), default=0) <= redundancy == 2:  # there is nothing to choose
        return tuple(homes)
    numel = numel_U.tolist()
    load_M = np.bincount(primaries, weights=numel_U, minlength=len(members))
    load = load_M.astype(np.int64).tolist()
    for unit in np.argsort(-numel_U, kind="stable").tolist():
        if len(homes[unit]) == 2 <= redundancy:  # nor is there for this one
            load[homes[unit][1]] += numel[unit]
            continue
        chosen, left = list(homes[unit][:1]), list(homes[unit][1:])
        while left and len(chosen) < redundancy:
            home = left[0] if len(left) == 1 else _best_mirror(members, chosen, left, load)
            left.remove(home)
            chosen.append(home)
            load[home] += numel[unit]
        homes[unit] = tuple(chosen)
    return tuple(homes)


def add_mirrors(
    members: Sequence[Member], homes: Sequence[Sequence[int]], numel_U: IntArray, redundancy: int
) -> Homes:
    """Give every unit further homes in the copyset of its primary's node, up to the redundancy.

    Args:
        homes: per unit the homes there are, primary first; all of them stay.
        redundancy: homes per unit; fewer if there are fewer members.
    """
    num_homes = min(redundancy, len(members))
    numel = numel_U.tolist()
    primary_U = np.array([of_unit[0] for of_unit in homes], dtype=np.int64)
    primary_load = np.bincount(primary_U, weights=numel_U, minlength=len(members))
    load_M: IntArray = primary_load.astype(np.int64)
    copysets = _Copysets(members, plan_copysets(members, load_M, redundancy))
    found = [list(of_unit) for of_unit in homes]
    for unit, chosen in enumerate(found):
        for home in chosen[1:]:
            load_M[home] += numel[unit]
    for unit in np.argsort(-numel_U, kind="stable").tolist():
        chosen = found[unit]
        while len(chosen) < num_homes:
            furthest = copysets.furthest(chosen)
            home = int(furthest[load_M[furthest].argmin()])
            load_M[home] += numel[unit]
            chosen.append(home)
    return tuple(tuple(chosen) for chosen in found)


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


def _plan_primaries(candidates: Holders, numel_U: IntArray, num_members: int) -> list[int]:
    """Give each unit to its least loaded candidate; those with the least choice come first."""
    num_candidates_U = np.fromiter(map(len, candidates), dtype=np.int64, count=len(candidates))
    assert num_candidates_U.all(), "every unit needs a holder"
    order = np.lexsort((-numel_U, num_candidates_U)).tolist()
    numel = numel_U.tolist()
    primaries = [held[0] for held in candidates]
    is_settled_U = num_candidates_U == 1  # there is nothing to choose
    settled_U = np.array(primaries, dtype=np.int64)[is_settled_U]
    load_M = np.bincount(settled_U, weights=numel_U[is_settled_U], minlength=num_members)
    load = load_M.astype(np.int64).tolist()
    for held, units in groupby(order[int(is_settled_U.sum()) :], key=candidates.__getitem__):
        # A heap serves a run of units with the same candidates: nobody else changes their loads.
        heap = [(load[member], member) for member in held]
        heapify(heap)
        for unit in units:
            primary = heap[0][1]
            load[primary] += numel[unit]
            heapreplace(heap, (load[primary], primary))
            primaries[unit] = primary
    return primaries


def _best_mirror(
    members: Sequence[Member], chosen: Sequence[int], left: Sequence[int], load: Sequence[int]
) -> int:
    nodes = {members[home].node for home in chosen}
    domains = {members[home].domain for home in chosen}

    def cost(position: int) -> tuple[bool, bool, int, int]:
        member = members[position]
        return member.domain in domains, member.node in nodes, load[position], position

    return min(left, key=cost)


class _Copysets:
    """Finds further homes within the group of a unit's primary."""

    def __init__(self, members: Sequence[Member], group_of_node: Mapping[str, int]) -> None:
        self._group = [group_of_node[member.node] for member in members]
        group_M = np.array(self._group, dtype=np.int64)
        self._members_of = [np.flatnonzero(group_M == g) for g in range(group_M.max() + 1)]
        self._labels = (
            _label([member.domain for member in members]),
            _label([member.node for member in members]),
            list(range(len(members))),
        )
        self._labels_M = tuple(np.array(labels, dtype=np.int64) for labels in self._labels)
        self._known: dict[tuple[int, ...], IntArray] = {}

    def furthest(self, chosen: Sequence[int]) -> IntArray:
        """Members of the group in a new domain, else on a new node, else anywhere but `chosen`."""
        group = self._group[chosen[0]]
        found: IntArray = self._members_of[group]
        for kind, labels in enumerate(self._labels):
            taken = [labels[home] for home in chosen]
            key = (kind, group, *taken)
            if key not in self._known:
                everyone = self._members_of[group]
                self._known[key] = everyone[~np.isin(self._labels_M[kind][everyone], taken)]
            found = self._known[key]
            if len(found):
                break
        return found


def _label(names: list[str]) -> list[int]:
    """Number equal names equally, in order of first appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]

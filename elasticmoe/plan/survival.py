"""Would the training state survive? Exact probabilities, not estimates.

A unit is lost when all nodes that keep a home of it are lost. Letters: N = nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np

from elasticmoe.plan.types import Member, Plan


@dataclass(frozen=True, slots=True)
class Survival:
    """What a plan survives without going back to a snapshot or checkpoint."""

    lose_nodes: tuple[float, float, float]
    """Probability that every unit keeps a home if 1, 2, 3 different random nodes are lost."""
    lose_domain: Mapping[str, bool]
    """Whether every unit keeps a home if a failure domain is lost."""
    single_node_units: int
    """Units all of whose homes are on one node."""


def plan_survival(plan: Plan) -> Survival:
    """Compute a plan's survival from where its homes are."""
    nodes = sorted({member.node for member in plan.members})
    number = {node: place for place, node in enumerate(nodes)}
    at_node = [number[member.node] for member in plan.members]
    homes_of: dict[tuple[int, ...], int] = {}
    for homes in plan.homes:
        homes_of[homes] = homes_of.get(homes, 0) + 1
    fatal = {frozenset(at_node[member] for member in homes) for homes in homes_of}
    return Survival(
        lose_nodes=(
            survival_probability(fatal, len(nodes), 1),
            survival_probability(fatal, len(nodes), 2),
            survival_probability(fatal, len(nodes), 3),
        ),
        lose_domain=_lose_domain(plan.members, homes_of),
        single_node_units=sum(
            count
            for homes, count in homes_of.items()
            if len({at_node[member] for member in homes}) == 1
        ),
    )


def survival_probability(fatal: set[frozenset[int]], num_nodes: int, lost: int) -> float:
    """Probability that no fatal set lies within `lost` different random nodes.

    Counts the harmless choices of nodes. Of three nodes, a choice is harmless if it has no fatal
    node, no fatal pair and is no fatal triple; triples without a pair are counted by inclusion
    and exclusion over the graph of fatal pairs (edges, paths of two, triangles).

    Args:
        fatal: sets of nodes, numbered from 0, whose common loss loses a unit.
        num_nodes: nodes there are.
        lost: 1, 2 or 3.

    >>> round(survival_probability({frozenset({0, 1}), frozenset({2, 3})}, 4, 2), 4)
    0.6667
    """
    assert 1 <= lost <= 3
    if num_nodes <= lost:
        return 0.0
    single_N = np.zeros(num_nodes, dtype=np.bool_)
    single_N[[node for nodes in fatal if len(nodes) == 1 for node in nodes]] = True
    sound = int((~single_N).sum())
    # Neighbours in the graph of fatal pairs, as sets: a large gang has few pairs.
    others: dict[int, set[int]] = {}
    for nodes in fatal:
        if len(nodes) == 2 and not any(single_N[node] for node in nodes):
            a, b = nodes
            others.setdefault(a, set()).add(b)
            others.setdefault(b, set()).add(a)
    edges = sum(map(len, others.values())) // 2
    harmless = (sound, comb(sound, 2) - edges, 0)[lost - 1]
    if lost == 3:
        paths = sum(comb(len(ends), 2) for ends in others.values())
        triangles = sum(len(ends & others[b]) for ends in others.values() for b in ends) // 6
        triples = sum(
            not any(single_N[node] or others.get(node, set()) & nodes for node in nodes)
            for nodes in fatal
            if len(nodes) == 3
        )
        harmless = comb(sound, 3) - edges * (sound - 2) + paths - triangles - triples
    return harmless / comb(num_nodes, lost)


def _lose_domain(
    members: tuple[Member, ...], homes_of: Mapping[tuple[int, ...], int]
) -> dict[str, bool]:
    kept = {member.domain: True for member in members}
    for homes in homes_of:
        domains = {members[member].domain for member in homes}
        if len(domains) == 1:
            kept[domains.pop()] = False
    return kept

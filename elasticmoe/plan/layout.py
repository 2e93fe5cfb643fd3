"""Cuts the network into stages and the gang into the workers of each stage.

Letters: L = layers, W = workers, S = stages, K = ways to cut the network, N = ways that are tried,
R = what a stage costs with 0, 1, ... more workers, up to all that are left.
Ranges of layers are written [first, end).
"""

import math
from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from elasticmoe.plan.experts import decide_holding
from elasticmoe.plan.types import Inventory, Member
from elasticmoe.spec.job import JobSpec

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SLACKS: Final = (1e-9, 0.02, 0.05, 0.1, 0.2)
"""How much slower than the fastest layout those are that are looked at, relatively. Not 0,
because float sums depend on their order."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A stage before workers are named: its layers, and how many workers it gets."""

    first_layer: int
    end_layer: int
    workers: int


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """What each layer costs; embedding counts to the first, head and MTP to the last."""

    dense_L: FloatArray
    """Forward flops per token outside routed experts."""
    routed_L: FloatArray
    """Forward flops per token in routed experts."""
    numel_L: FloatArray
    """Elements of training state."""


def even_ranges(count: int, parts: int) -> tuple[tuple[int, int], ...]:
    """Split `count` things into contiguous ranges whose sizes differ by at most one.

    >>> even_ranges(5, 3)
    ((0, 1), (1, 3), (3, 5))
    """
    return tuple((p * count // parts, (p + 1) * count // parts) for p in range(parts))


def layer_costs(job: JobSpec, inventory: Inventory) -> LayerCosts:
    """Add up flops and sizes of the inventory's blocks by layer."""
    last = job.model.num_layers - 1
    dense_L, routed_L, numel_L = (np.zeros(last + 1) for _ in range(3))
    for block in inventory.blocks:
        layer = block.layer if block.layer >= 0 else 0 if block.name == "embedding" else last
        numel_L[layer] += block.numel * max(block.num_experts, 1)
        if block.is_experts:
            routed_L[layer] += block.flops_per_token * job.model.moe.top_k
        else:
            dense_L[layer] += block.flops_per_token
    return LayerCosts(dense_L, routed_L, numel_L)


def plan_cuts(job: JobSpec, inventory: Inventory, workers: int) -> tuple[Cut, ...]:
    """Choose the layers and the number of workers of each stage together.

    The fastest layout has the least cost of the slowest worker of the slowest stage, where a
    stage's samples are split evenly. Among it and somewhat slower ones that are more even, the
    least product of that cost and of the root mean square of the stages' state is taken: the last
    per cent of speed may need a stage of half the layers on half the workers, which costs memory
    where all hold all, and long token exchanges where they do not.

    Args:
        workers: at least 1; every stage gets one or more.
    """
    assert workers >= 1
    num_stages = min(job.parallel.stages, workers, job.model.num_layers)
    if num_stages == 1:
        return (Cut(0, job.model.num_layers, workers),)
    layers = layer_costs(job, inventory)
    costs = _range_costs(job, inventory, layers, workers)
    square_LL = _over_ranges(layers.numel_L) ** 2
    fastest = _smallest_bottleneck(costs, num_stages, workers)
    found = []
    for slack in SLACKS:
        needed_LL = costs.needed(fastest * (1 + slack))
        needed = _most_even_cuts(needed_LL, square_LL, num_stages, workers)
        cuts = _hand_out_rest(needed, costs, workers)
        slowest = max(
            costs.by_workers(cut.first_layer, cut.end_layer)[cut.workers - 1] for cut in cuts
        )
        square = np.mean([square_LL[cut.first_layer, cut.end_layer] for cut in cuts])
        found.append((slowest * np.sqrt(square), cuts))
    return min(found, key=lambda scored: scored[0])[1]


@dataclass(frozen=True, slots=True, eq=False)
class _RangeCosts:
    """What layers [first, end) ask of the slowest of their workers, in flops per token of the gang.

    More workers never cost more, so everything is found by bisection, and nothing as large as
    [L + 1, L + 1, W] is ever made.
    """

    dense_LL: FloatArray
    """Immense where a range is empty."""
    routed_LL: FloatArray
    share_P: FloatArray
    """The largest share of the gang's tokens that one of 1, 2, ... workers computes; zeros from W
    up to P, a power of two."""
    routed_share_P: FloatArray
    workers: int
    """W."""

    def by_workers(self, first: int, end: int) -> FloatArray:
        """Cost of one range on 1, 2, ... workers, [W]."""
        dense_P = self.dense_LL[first, end] * self.share_P
        cost_P: FloatArray = dense_P + self.routed_LL[first, end] * self.routed_share_P
        return cost_P[: self.workers]

    def needed(self, bound: float) -> IntArray:
        """Fewest workers with which each range stays within the bound; W + 1 if none do."""
        above_LL = np.zeros(self.dense_LL.shape, dtype=np.int64)
        step = len(self.share_P) // 2
        while step:
            above_LL += step * (self._at(above_LL + (step - 1)) > bound)
            step //= 2
        return above_LL + 1

    def least_above(self, bound: float) -> float:
        """The smallest cost of any range and number of workers above the bound."""
        above_LL = self.needed(bound) - 1
        return float(self._at(np.maximum(above_LL - 1, 0))[above_LL > 0].min())

    def _at(self, place_LL: IntArray) -> FloatArray:
        dense_LL = self.dense_LL * self.share_P[place_LL]
        cost_LL: FloatArray = dense_LL + self.routed_LL * self.routed_share_P[place_LL]
        return cost_LL


def _range_costs(
    job: JobSpec, inventory: Inventory, layers: LayerCosts, workers: int
) -> _RangeCosts:
    samples = job.batch.wave_samples
    count_W = np.arange(1, workers + 1)
    share_W = -(-samples // count_W) / samples
    # From some number on, one holder per expert is cheaper.
    first_spread = bisect_left(
        count_W, True, key=lambda count: decide_holding(job, inventory, int(count)) == "one"
    )
    spread_W = np.arange(workers) >= first_spread
    routed_share_W = np.where(spread_W, np.minimum(1 / count_W, share_W), share_W)
    padding = (0, (1 << workers.bit_length()) - workers)
    dense_LL, routed_LL = _over_ranges(layers.dense_L), _over_ranges(layers.routed_L)
    empty = np.tril_indices(len(dense_LL))
    dense_LL[empty], routed_LL[empty] = 1e300, 0.0
    return _RangeCosts(
        dense_LL, routed_LL, np.pad(share_W, padding), np.pad(routed_share_W, padding), workers
    )


def _over_ranges(amount_L: FloatArray) -> FloatArray:
    """Sums over layers [first, end)."""
    ends = np.concatenate([[0.0], np.cumsum(amount_L)])
    sums: FloatArray = ends[None, :] - ends[:, None]
    return sums


def _fewest_workers(needed_LL: IntArray, num_stages: int) -> IntArray:
    """Fewest workers for layers [first, L) in 0, 1, ... stages, [S + 1, L + 1]."""
    impossible = num_stages * int(needed_LL.max()) + 1
    fewest_SL = np.full((num_stages + 1, len(needed_LL)), impossible, dtype=np.int64)
    fewest_SL[0, -1] = 0
    for stages in range(1, num_stages + 1):
        fewest_SL[stages] = (needed_LL + fewest_SL[stages - 1]).min(axis=1)
    return fewest_SL


def _smallest_bottleneck(costs: _RangeCosts, num_stages: int, workers: int) -> float:
    """The smallest of all costs such that stages within it need no more workers than there are."""
    high = float(costs.by_workers(0, len(costs.dense_LL) - 1)[0])
    ceiling = high  # no cost lies between it and `high`, which is enough
    low = 0.99 * high / workers  # all together cannot do better than share everything evenly
    above_low = costs.least_above(low)
    while above_low < high:
        middle = min((low + ceiling) / 2, math.nextafter(ceiling, 0.0))
        cost = costs.least_above(middle)
        needed_LL = costs.needed(cost * (1 + SLACKS[0]))
        if _fewest_workers(needed_LL, num_stages)[-1, 0] <= workers:
            ceiling, high = middle, cost
        else:
            low, above_low = cost, costs.least_above(cost)
    return high


@dataclass(frozen=True, slots=True, eq=False)
class _Ways:
    """Ways to cut the first layers into some number of stages, by end, then by workers."""

    end_K: IntArray
    """Layers before this one are cut."""
    used_K: IntArray
    square_K: FloatArray
    before_K: IntArray
    """Which way with one stage less this one extends."""


def _most_even_cuts(
    needed_LL: IntArray, square_LL: FloatArray, num_stages: int, workers: int
) -> list[Cut]:
    """Cut with the least sum of squares, using at most `workers`."""
    fewest_SL = _fewest_workers(needed_LL, num_stages)
    nothing = np.zeros(1, dtype=np.int64)
    steps = [_Ways(nothing, nothing, np.zeros(1), nothing)]
    for behind in reversed(range(num_stages)):
        limit_L = workers - fewest_SL[behind]
        steps.append(_add_stage(steps[-1], needed_LL, square_LL, limit_L))
    place = int(steps[-1].square_K.argmin())
    cuts: list[Cut] = []
    for before, ways in reversed([*pairwise(steps)]):
        end, place = int(ways.end_K[place]), int(ways.before_K[place])
        first = int(before.end_K[place])
        cuts.append(Cut(first, end, int(needed_LL[first, end])))
    return cuts[::-1]


def _add_stage(ways: _Ways, needed_LL: IntArray, square_LL: FloatArray, limit_L: IntArray) -> _Ways:
    """Extend ways by a stage, keeping those that no other beats in both workers and squares.

    Args:
        limit_L: workers that may be used up to an end, so that the layers behind get theirs.
    """
    used_KL = ways.used_K[:, None] + needed_LL[ways.end_K]
    is_longer_KL = np.arange(len(limit_L)) > ways.end_K[:, None]
    before_N, end_N = np.nonzero(is_longer_KL & (used_KL <= limit_L))
    used_N = used_KL[before_N, end_N]
    square_N = ways.square_K[before_N] + square_LL[ways.end_K[before_N], end_N]
    order_N = np.lexsort((square_N, used_N, end_N))
    kept: list[int] = []
    least = dict.fromkeys(range(len(limit_L)), math.inf)
    columns = order_N.tolist(), end_N[order_N].tolist(), square_N[order_N].tolist()
    for way, end, square in zip(*columns, strict=True):
        if square < least[end]:
            least[end] = square
            kept.append(way)
    return _Ways(end_N[kept], used_N[kept], square_N[kept], before_N[kept])


def _hand_out_rest(cuts: list[Cut], costs: _RangeCosts, workers: int) -> tuple[Cut, ...]:
    """Give workers that the bottleneck does not need to whichever stage is slowest, one by one."""
    rest = workers - sum(cut.workers for cut in cuts)
    if not rest:
        return tuple(cuts)
    # The stages that get one are those with the `rest` largest costs on the way down; all but
    # ties are handed out at once.
    cost_of = [costs.by_workers(cut.first_layer, cut.end_layer) for cut in cuts]
    cost_SR = np.array(
        [
            cost_W[cut.workers - 1 : cut.workers + rest]
            for cut, cost_W in zip(cuts, cost_of, strict=True)
        ]
    )
    last = np.partition(cost_SR, -rest, axis=None)[-rest]
    more_S = (cost_SR > last).sum(axis=1)
    counts = [cut.workers + more for cut, more in zip(cuts, more_S.tolist(), strict=True)]

    def entry(stage: int) -> tuple[float, int, int]:
        return -float(cost_of[stage][counts[stage] - 1]), counts[stage], stage

    slowest_first = [entry(stage) for stage in range(len(cuts))]
    heapify(slowest_first)
    for _ in range(workers - sum(counts)):
        stage = slowest_first[0][2]
        counts[stage] += 1
        heapreplace(slowest_first, entry(stage))
    return tuple(
        Cut(cut.first_layer, cut.end_layer, count) for cut, count in zip(cuts, counts, strict=True)
    )


def plan_members(
    members: tuple[Member, ...], sizes: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """Name the workers of each stage, keeping those of one node together where sizes allow.

    Args:
        sizes: workers per stage; they add up to all members.

    Returns:
        Per stage positions in `members`, ascending.
    """
    assert sum(sizes) == len(members)
    free = _FreeNodes(members)
    stages: list[tuple[int, ...]] = []
    for size in sizes:
        taken: list[int] = []
        domain: str | None = None
        while len(taken) < size:
            node, positions = free.take(size - len(taken), domain)
            taken += positions
            domain = free.domain_of[node]
        stages.append(tuple(sorted(taken)))
    return tuple(stages)


class _FreeNodes:
    """Nodes that have workers without a stage, by how many these are."""

    def __init__(self, members: tuple[Member, ...]) -> None:
        self.domain_of = {member.node: member.domain for member in members}
        self._free: dict[str, list[int]] = {}
        for position, member in enumerate(members):
            self._free.setdefault(member.node, []).append(position)
        self._order = {node: place for place, node in enumerate(self._free)}
        self._nodes = list(self._free)
        # (workers, domain or None for any) -> places of nodes, ascending
        self._places: dict[tuple[int, str | None], list[int]] = {}
        for node in self._nodes:
            self._insert(node)

    def take(self, room: int, domain: str | None) -> tuple[str, list[int]]:
        """Take up to `room` workers of one node.

        A node that fills the room exactly, else the largest that fits whole, else a part of the
        smallest; `domain` breaks ties, then the order of nodes.
        """
        counts = {count for (count, _), places in self._places.items() if places}
        fitting = [count for count in counts if count <= room]
        count = max(fitting) if fitting else min(counts)
        places = self._places.get((count, domain)) or self._places[count, None]
        node = self._nodes[places[0]]
        for key in ((count, None), (count, self.domain_of[node])):
            self._places[key].remove(self._order[node])
        taken, self._free[node] = self._free[node][:room], self._free[node][room:]
        if self._free[node]:
            self._insert(node)
        return node, taken

    def _insert(self, node: str) -> None:
        for domain in (None, self.domain_of[node]):
            key = len(self._free[node]), domain
            insort(self._places.setdefault(key, []), self._order[node])

"""Cuts the network into stages and the gang into the workers of each stage.

Letters: L = layers, W = workers, S = stages. Ranges of layers are written [first, end).
"""

from dataclasses import dataclass
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
    layers = layer_costs(job, inventory)
    cost_LLW = _range_costs(job, inventory, layers, workers)
    square_LL = _over_ranges(layers.numel_L, np.ones(1))[:, :, 0] ** 2
    fastest = _smallest_bottleneck(cost_LLW, num_stages, workers)
    found = []
    for slack in SLACKS:
        needed_LL = _workers_needed(cost_LLW, fastest * (1 + slack))
        needed = _most_even_cuts(needed_LL, square_LL, num_stages, workers)
        cuts = _hand_out_rest(needed, cost_LLW, workers)
        first, end, count = np.array([(c.first_layer, c.end_layer, c.workers) for c in cuts]).T
        slowest, square = cost_LLW[first, end, count - 1].max(), square_LL[first, end].mean()
        found.append((slowest * np.sqrt(square), cuts))
    return min(found, key=lambda scored: scored[0])[1]


def _range_costs(
    job: JobSpec, inventory: Inventory, layers: LayerCosts, workers: int
) -> FloatArray:
    """What layers [first, end) ask of the slowest of 1, 2, ... workers, [L + 1, L + 1, W].

    In flops per token of the gang; inf where a range is empty.
    """
    samples = job.batch.wave_samples
    count_W = np.arange(1, workers + 1)
    share_W = -(-samples // count_W) / samples
    spread_W = np.array([decide_holding(job, inventory, w) == "one" for w in range(1, workers + 1)])
    routed_share_W = np.where(spread_W, np.minimum(1 / count_W, share_W), share_W)
    cost_LLW = _over_ranges(layers.dense_L, share_W) + _over_ranges(layers.routed_L, routed_share_W)
    cost_LLW[np.tril_indices(len(cost_LLW))] = np.inf
    return cost_LLW


def _over_ranges(amount_L: FloatArray, share_W: FloatArray) -> FloatArray:
    """Sums over layers [first, end), times each share."""
    ends = np.concatenate([[0.0], np.cumsum(amount_L)])
    sums: FloatArray = (ends[None, :] - ends[:, None])[:, :, None] * share_W
    return sums


def _workers_needed(cost_LLW: FloatArray, bound: float) -> IntArray:
    """Fewest workers with which each range stays within the bound; W + 1 if none do."""
    needed_LL: IntArray = 1 + (cost_LLW > bound).sum(axis=2)
    return needed_LL


def _fewest_workers(needed_LL: IntArray, num_stages: int) -> int:
    fewest_L = needed_LL[0]
    for _ in range(num_stages - 1):
        fewest_L = (fewest_L[:, None] + needed_LL).min(axis=0)
    return int(fewest_L[-1])


def _smallest_bottleneck(cost_LLW: FloatArray, num_stages: int, workers: int) -> float:
    candidates = np.unique(cost_LLW[np.isfinite(cost_LLW)])
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        needed_LL = _workers_needed(cost_LLW, candidates[middle] * (1 + SLACKS[0]))
        if _fewest_workers(needed_LL, num_stages) <= workers:
            high = middle
        else:
            low = middle + 1
    return float(candidates[low])


def _most_even_cuts(
    needed_LL: IntArray, square_LL: FloatArray, num_stages: int, workers: int
) -> list[Cut]:
    """Cut with the least sum of squares, using at most `workers`."""
    num_ends = len(needed_LL)
    best_LW = np.full((num_ends, workers + 1), np.inf)
    best_LW[0, 0] = 0.0
    choice_SLW = np.zeros((num_stages, num_ends, workers + 1), dtype=np.int64)
    first_L1 = np.arange(num_ends)[:, None]
    for stage in range(num_stages):
        next_LW = np.full_like(best_LW, np.inf)
        for end in range(1, num_ends):
            before_LW = np.arange(workers + 1)[None, :] - needed_LL[:, end, None]
            reached_LW = np.where(before_LW >= 0, best_LW[first_L1, before_LW.clip(min=0)], np.inf)
            total_LW = reached_LW + square_LL[:, end, None]
            choice_SLW[stage, end] = total_LW.argmin(axis=0)
            next_LW[end] = total_LW.min(axis=0)
        best_LW = next_LW
    end, used = num_ends - 1, int(best_LW[-1].argmin())
    cuts: list[Cut] = []
    for stage in reversed(range(num_stages)):
        first = int(choice_SLW[stage, end, used])
        cuts.append(Cut(first, end, int(needed_LL[first, end])))
        end, used = first, used - int(needed_LL[first, end])
    return cuts[::-1]


def _hand_out_rest(cuts: list[Cut], cost_LLW: FloatArray, workers: int) -> tuple[Cut, ...]:
    """Give workers that the bottleneck does not need to whichever stage is slowest."""
    counts = [cut.workers for cut in cuts]
    for _ in range(workers - sum(counts)):
        slowest = max(
            range(len(cuts)),
            key=lambda s: (
                cost_LLW[cuts[s].first_layer, cuts[s].end_layer, counts[s] - 1],
                -counts[s],
                -s,
            ),
        )
        counts[slowest] += 1
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
    free: dict[str, list[int]] = {}
    for position, member in enumerate(members):
        free.setdefault(member.node, []).append(position)
    domain_of = {member.node: member.domain for member in members}
    order = {node: place for place, node in enumerate(free)}
    stages: list[tuple[int, ...]] = []
    for size in sizes:
        taken: list[int] = []
        domain: str | None = None
        while len(taken) < size:
            room = size - len(taken)
            # A node that fills the rest exactly, else the largest that fits whole, else a part
            # of the smallest; the domain already begun breaks ties.
            node = min(
                free,
                key=lambda node: (
                    len(free[node]) > room,
                    abs(room - len(free[node])),
                    domain is not None and domain_of[node] != domain,
                    order[node],
                ),
            )
            taken += free[node][:room]
            domain = domain_of[node]
            if len(free[node]) > room:
                free[node] = free[node][room:]
            else:
                del free[node]
        stages.append(tuple(sorted(taken)))
    return tuple(stages)

"""Lazarus: replicas of experts, placed so that losses seldom take all of one expert.

Every replica holds an expert with its optimizer. A loss that leaves every expert alive costs
one reconfiguration on all remaining nodes; otherwise the job goes back to a checkpoint.

Source: Wu et al., arXiv 2407.04656 v2. Letters: N nodes, c slots per node, E experts, f floor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil, inf

from elasticmoe.simulator.rivals.checkpoint_restart import daly_interval_s
from elasticmoe.simulator.rivals.job import Job
from elasticmoe.simulator.rivals.ledger import Outcome
from elasticmoe.simulator.rivals.replay import Replay
from elasticmoe.simulator.traces import Trace, measure_trace


def allocate_replicas(tokens_E: Sequence[float], *, slots: int, floor: int) -> tuple[int, ...]:
    """Share slots out by load, at least `floor` each. Source: Lazarus Eq. 1.

    Args:
        tokens_E: tokens of each expert, ascending.
        slots: N * c; at least E * floor.
        floor: fewest replicas of an expert.

    >>> allocate_replicas([1, 1, 2, 4], slots=12, floor=2)
    (2, 2, 2, 6)
    """
    assert list(tokens_E) == sorted(tokens_E)
    assert slots >= len(tokens_E) * floor
    left, tokens_left = slots, float(sum(tokens_E))
    replicas: list[int] = []
    for tokens in tokens_E:
        share = int(tokens / tokens_left * left + 1e-9) if tokens_left else 0
        replicas.append(max(share, floor))
        left -= replicas[-1]
        tokens_left -= tokens
    return tuple(replicas)


def place_experts(
    replicas_E: Sequence[int], *, nodes: int, slots_per_node: int
) -> tuple[frozenset[int], ...]:
    """Place replicas by maximum rank overlap. Source: Lazarus section 4.1.

    Experts form groups of `slots_per_node` neighbours in popularity. A group's nodes, as many as
    its least popular expert has replicas, hold one replica of every expert of the group. The
    rest goes to free slots, to the nodes that lack the expert first.

    Returns:
        The experts on each node.
    """
    held: list[list[int]] = [[] for _ in range(nodes)]
    left_E = list(replicas_E)
    place = 0
    for first in range(0, len(replicas_E), slots_per_node):
        group = range(first, min(first + slots_per_node, len(replicas_E)))
        for _ in range(min(nodes - place, replicas_E[first])):
            held[place] += group
            place += 1
            for expert in group:
                left_E[expert] -= 1
    for expert, left in enumerate(left_E):
        for _ in range(left):
            open_nodes = [n for n in range(nodes) if len(held[n]) < slots_per_node]
            if open_nodes:
                best = min(open_nodes, key=lambda n: (expert in held[n], len(held[n]), n))
                held[best].append(expert)
    return tuple(frozenset(experts) for experts in held)


def recovery_probability(placement: Sequence[Iterable[int]], lost: int) -> float:
    """Probability that every expert survives the loss of random nodes, by enumeration."""
    held = [frozenset(experts) for experts in placement]
    every = frozenset().union(*held)
    cases = list(combinations(held, len(held) - lost))
    return sum(frozenset().union(*alive) == every for alive in cases) / len(cases)


@dataclass(frozen=True, slots=True)
class Lazarus:
    """Lazarus. Every field is an assumption."""

    name: str = "lazarus"
    num_experts: int = 64
    """Experts of a layer: DeepSeek-MoE's, as the job. Its own models have 8 to 16 (Table 1)."""
    slots_per_node: int | None = None
    """Replicas a node has memory for, each with its whole optimizer. None: such that the job's
    nodes per copy hold every expert once."""
    floor: int = 2
    """Fewest replicas of an expert (section 6.1); 1 if there is no room for 2."""
    skew: float = 1.0
    """Tokens of the k-th most popular expert fall as k^-skew. Assumed: the routing trace the
    paper used is not published in numbers. 0 is balanced."""
    reconfigure_s: float = 30.0
    """From a loss until training goes on: 20 to 40 s, of which 10 to 20 s are NCCL's timeout and
    5 to 15 s new groups (section 6.3). Middle of the range."""
    rebuild_s: float = 5.0
    """New groups without a failure, when nodes join or experts are rebalanced: 5 to 15 s. The
    lower end, because reconfiguring and rebalancing take less than 10 % together (Figure 11)."""
    rebalance_steps: int = 200
    """Rebalanced every so many steps (section 6.1)."""
    checkpoint_every_s: float | None = None
    """Training between two checkpoints; the paper has one per 250 steps (section 6.4). None:
    Daly's, for the rate of its own roll backs on this very trace (known beforehand: generous)."""
    save_s: float | None = None
    """Everybody stands still while a checkpoint is written. None: from the job."""
    restart_s: float | None = None
    """Restart from a checkpoint. None: the job's relaunch and load time."""
    scale_up_wait_s: float = 120.0
    """New nodes are collected this long before they are used (section 6.4)."""

    def run(self, trace: Trace, job: Job) -> Outcome:
        """Train a job on a trace."""
        if self.checkpoint_every_s is not None:
            return _Run(self, self.checkpoint_every_s, job).play(trace, self.name)
        save_s = job.save_s(job.reference_nodes) if self.save_s is None else self.save_s
        seen = measure_trace(trace)
        every_s = max(job.step_s, daly_interval_s(save_s, seen.mean_s_between_losses))
        first = replace(self, checkpoint_every_s=every_s).run(trace, job)
        mtbf_s = seen.hours * 3600 / max(1, first.recoveries.get("rollback", 0))
        every_s = max(job.step_s, daly_interval_s(save_s, mtbf_s))
        return replace(self, checkpoint_every_s=every_s).run(trace, job)

    def place(self, nodes: int, slots_per_node: int) -> tuple[frozenset[int], ...] | None:
        """The experts on each of so many nodes; None if not all experts have a slot."""
        slots = nodes * slots_per_node
        if slots < self.num_experts:
            return None
        floor = self.floor if slots >= self.num_experts * self.floor else 1
        tokens_E = [(rank + 1) ** -self.skew for rank in reversed(range(self.num_experts))]
        replicas_E = allocate_replicas(tokens_E, slots=slots, floor=floor)
        return place_experts(replicas_E, nodes=nodes, slots_per_node=slots_per_node)


class _Run(Replay):
    def __init__(self, model: Lazarus, every_s: float, job: Job) -> None:
        super().__init__(job)
        self._model = model
        self._holds: dict[str, frozenset[int]] = {}
        self._slots = model.slots_per_node or ceil(model.num_experts / job.nodes_per_copy)
        saved = model.save_s
        save_s = job.save_s(job.reference_nodes) if saved is None else saved
        cost = model.rebuild_s / model.rebalance_steps / job.step_s + save_s / every_s
        self.protecting = cost / (1 + cost)
        self._keep_every_s = every_s * (1 + cost)
        self._keep_at_s = self._grow_at_s = inf

    def start(self) -> None:
        self._place()
        self._keep_at_s = self.now_s + self._keep_every_s

    def step_s(self) -> float:
        return self.job.step_s / (1 - self.protecting)

    def on_loss(self, lost: frozenset[str]) -> None:
        if lost.isdisjoint(self._holds):
            return
        every = frozenset[int]().union(*self._holds.values())
        left = frozenset[int]().union(
            *(experts for node, experts in self._holds.items() if node not in lost)
        )
        if left == every:
            self.ledger.drop_step()
            self.ledger.count("reconfigure")
            self._place()
            self.pause(self._model.reconfigure_s)
        else:
            self.ledger.roll_back()
            self.ledger.count("rollback")
            self._restart()

    def on_join(self) -> None:
        if not self.members:
            self._restart()
        elif self._grow_at_s == inf:
            self._grow_at_s = self.now_s + self._model.scale_up_wait_s

    def next_timer_s(self) -> float:
        return min(self._keep_at_s, self._grow_at_s)

    def on_timer(self) -> None:
        if self.now_s >= self._keep_at_s:
            self.ledger.keep()
            self._keep_at_s = self.now_s + self._keep_every_s
        elif self.now_s < self.busy_until_s:
            self._grow_at_s = self.busy_until_s
        elif len(self.alive) > len(self.members):
            self.ledger.count("grow")
            self._place()
            self.pause(self._model.rebuild_s)
        else:
            self._grow_at_s = inf

    def _restart(self) -> None:
        self._place()
        restart_s = self._model.restart_s
        self.pause(self.job.restart_s(len(self.members)) if restart_s is None else restart_s)

    def _place(self) -> None:
        """Use all nodes there are."""
        placement = self._model.place(len(self.alive), self._slots)
        self.members = list(self.alive) if placement else []
        self._holds = dict(zip(self.members, placement or (), strict=True))
        self._grow_at_s = inf

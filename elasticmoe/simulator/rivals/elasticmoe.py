"""This design in the same few words as its rivals, for comparison on the same trace.

The real controller under a simulated world is the simulator proper; this model says what its
costs add up to. Every unit of state has several homes, all inside one copyset. A loss that
leaves every copyset a home costs a failover on the survivors and at most one step; otherwise
the job goes back to a durable checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, inf

from elasticmoe.simulator.rivals.checkpoint_restart import daly_interval_s
from elasticmoe.simulator.rivals.job import Job
from elasticmoe.simulator.rivals.ledger import Outcome
from elasticmoe.simulator.rivals.replay import Replay
from elasticmoe.simulator.traces import Trace, measure_trace


def fatal_share(nodes: int, redundancy: int, lost_together: Sequence[int]) -> float:
    """Share of losses that take all members of some copyset, at most.

    Random nodes are lost from copysets of `redundancy` nodes each. Exact for the loss of
    `redundancy` nodes, else the bound of Gemini (SOSP 2023), which counts a loss that hits two
    copysets twice.

    Args:
        nodes: nodes of the job.
        redundancy: nodes of a copyset.
        lost_together: number of losses that take 1, 2, 3 ... nodes.

    >>> fatal_share(24, 2, [1, 1]) * 2 * 23
    1.0
    """
    fatal = sum(
        count
        * min(
            1.0,
            nodes / redundancy * comb(nodes - redundancy, lost - redundancy) / comb(nodes, lost),
        )
        if lost >= redundancy
        else 0.0
        for lost, count in enumerate(lost_together[:nodes], 1)
    )
    return fatal / max(1, sum(lost_together))


@dataclass(frozen=True, slots=True)
class ElasticMoE:
    """This design. Every field is an assumption or a measurement."""

    name: str = "elasticmoe"
    redundancy: int = 2
    """Homes of every unit (the default of `protection`)."""
    overhead: float = 0.03
    """Steps are longer by this share: the bound that protection has to keep."""
    failover_s: float = 1.0
    """Lost node to first forward on the survivors, without moving weights: the bound for a lost
    node. The prototype needed 0.05 s after the death of a process."""
    join_s: float = 1.0
    """Everybody stands still when nodes join at a step boundary. Assumed equal to a failover."""
    settle_s: float = 1.0
    """New nodes must stay this long (`workers.settle_s`)."""
    background_share: float = 0.25
    """Share of a node's link with which lost homes are made again behind training. Assumed."""
    save_share: float = 0.1
    """Share of a durable checkpoint's time that training feels: units are copied at a step
    boundary and written behind it. Assumed."""
    restart_s: float | None = None
    """Restart from a checkpoint. None: the job's relaunch and load time."""

    def run(self, trace: Trace, job: Job) -> Outcome:
        """Train a job on a trace."""
        return _Run(self, trace, job).play(trace, self.name)


class _Run(Replay):
    def __init__(self, model: ElasticMoE, trace: Trace, job: Job) -> None:
        super().__init__(job)
        self._model = model
        # Only losses that mirrors cannot mend need a checkpoint; their rate is known beforehand
        # here, as every rival's is.
        seen = measure_trace(trace)
        fatal = fatal_share(round(seen.mean_nodes), model.redundancy, seen.lost_together)
        mtbf_s = min(seen.mean_s_between_losses / max(fatal, 1e-9), 24 * 3600.0)
        save_s = job.save_s(job.reference_nodes)
        felt_s = save_s * model.save_share
        interval_s = daly_interval_s(felt_s, mtbf_s)
        self._keep_every_s = max(save_s, job.step_s, interval_s)
        overhead = model.overhead + felt_s / self._keep_every_s
        self.protecting = overhead / (1 + overhead)
        self._copysets: list[frozenset[str]] = []
        self._homes = model.redundancy
        self._keep_at_s = self._grow_at_s = self._protected_at_s = inf

    def start(self) -> None:
        self._use_all()
        self._protect()
        self._keep_at_s = self.now_s + self._keep_every_s

    def step_s(self) -> float:
        """The batch stays, whatever the number of nodes."""
        return self.job.full_batch_step_s(len(self.members)) / (1 - self.protecting)

    def on_loss(self, lost: frozenset[str]) -> None:
        if lost.isdisjoint(self.members):
            return
        fatal = self._is_fatal()
        before = len(self.members)
        self._use_all()
        if fatal or not self.members:
            self.ledger.roll_back()
            self.ledger.count("rollback")
            self._restart()
        else:
            self.ledger.drop_step()
            self.ledger.count("failover")
            # The lost nodes' weights come from the other homes, which send at the same time.
            weights = self.job.parameters * self.job.weight_bytes_per_parameter / before
            self.pause(self._model.failover_s + weights / self.job.network_bytes_per_s)
            self._plan_protection(before)

    def on_join(self) -> None:
        if not self.members:
            self._use_all()
            self._restart()
        elif self._grow_at_s == inf:
            self._grow_at_s = self.now_s + self._model.settle_s

    def next_timer_s(self) -> float:
        return min(self._keep_at_s, self._grow_at_s, self._protected_at_s)

    def on_timer(self) -> None:
        if self.now_s >= self._keep_at_s:
            self.ledger.keep()
            self._keep_at_s = self.now_s + self._keep_every_s
        elif self.now_s >= self._protected_at_s:
            self._protect()
        elif self.now_s < self.busy_until_s:
            self._grow_at_s = self.busy_until_s
        else:
            self._use_all()
            self.ledger.count("grow")
            self.pause(self._model.join_s)
            self._plan_protection(len(self.members))

    def _is_fatal(self) -> bool:
        """Whether some units lost all their homes, those not yet made again included."""
        here = set(self.alive)
        return any(len(copyset - here) >= self._homes for copyset in self._copysets)

    def _use_all(self) -> None:
        enough = len(self.alive) >= self.job.nodes_per_copy
        self.members = list(self.alive) if enough else []
        self._grow_at_s = inf

    def _restart(self) -> None:
        if not self.members:
            self._copysets = []
            return
        restart_s = self._model.restart_s
        self.pause(self.job.restart_s(len(self.members)) if restart_s is None else restart_s)
        self._protect()

    def _plan_protection(self, nodes: int) -> None:
        """Homes are made again behind training; until then the old copysets hold."""
        homes = self.job.state_bytes * self._affordable() / nodes
        link = self.job.network_bytes_per_s * self._model.background_share
        self._protected_at_s = self.busy_until_s + homes / link

    def _affordable(self) -> int:
        """Homes of a unit for which the members have memory."""
        return max(1, min(self._model.redundancy, len(self.members) // self.job.nodes_per_copy))

    def _protect(self) -> None:
        """All members in copysets; the last takes the rest, and survives no more losses for it."""
        self._homes = self._affordable()
        size = self._homes
        last = max(1, len(self.members) // size) * size - size
        firsts = range(0, last, size)
        self._copysets = [frozenset(self.members[at : at + size]) for at in firsts]
        self._copysets.append(frozenset(self.members[last:]))
        self._protected_at_s = inf

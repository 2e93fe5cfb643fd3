"""MoEvement: a few operators are saved in every step, to the memory of two peers.

A window of W steps saves everything once. After a loss a spare takes the place of the lost
node, and the affected data-parallel group replays at most two windows. Nodes beyond the gang
are spares; with too few the job waits, because it cannot shrink.

Source: Gandhi and Kozyrakis, NSDI 2026, arXiv 2412.15411 v5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Final

from elasticmoe.simulator.rivals.job import Job
from elasticmoe.simulator.rivals.ledger import Outcome
from elasticmoe.simulator.rivals.replay import Replay
from elasticmoe.simulator.traces import Trace, measure_trace

FULL_BYTES: Final = 12
"""Saved per parameter of an active operator: fp32 master weight and two moments."""
FROZEN_BYTES: Final = 2
"""Saved per parameter of any other operator: its compute weight."""


def snapshot_bytes(parameters: Sequence[float], active: int) -> float:
    """Bytes saved in the worst step of a window that saves `active` operators per step.

    Active operators save master weights and moments, all others their compute weights.
    """
    largest = sorted(parameters, reverse=True)[:active]
    return FULL_BYTES * sum(largest) + FROZEN_BYTES * (sum(parameters) - sum(largest))


def find_window(parameters: Sequence[float], *, bytes_per_s: float, step_s: float) -> int:
    """The shortest window whose snapshots fit into the steps. Source: Algorithm 1.

    Args:
        parameters: parameters of each operator on the busiest worker.
        bytes_per_s: from the accelerator to host memory.
        step_s: length of a step.
    """
    active = len(parameters)
    while active > 1 and snapshot_bytes(parameters, active) > bytes_per_s * step_s:
        active -= 1
    return ceil(len(parameters) / active)


def expected_rollback_s(window: int, step_s: float) -> float:
    """Mean time to replay after a loss: 3/2 W T. Source: section 3.6."""
    return 1.5 * window * step_s


def effective_time_ratio(overhead: float, rollback_s: float, mtbf_s: float) -> float:
    """Useful share of time. Source: section 3.6; overhead = T_ckpt / (T_iter * interval)."""
    return 1 / (1 + overhead) / (1 + rollback_s / mtbf_s)


@dataclass(frozen=True, slots=True)
class MoEvement:
    """MoEvement. Every field is an assumption."""

    name: str = "moevement"
    gang_nodes: int | None = None
    """Nodes the job is made for. None: the number that does best on this very trace (known
    beforehand: generous)."""
    window: int = 3
    """Steps that save everything once. 3 is the window of its Figure 6."""
    overhead: float = 0.02
    """Steps are longer by this share (Table 3: at most 2 %)."""
    replace_s: float = 10.0
    """Detect, and give a warm spare the place of the lost node. Not published; assumed."""
    peers: int = 2
    """Nodes that hold a copy of a node's snapshots (section 4)."""
    checkpoint_every_s: float = 1800.0
    """A durable checkpoint in the background, free of cost (generous); used when a node and all
    its peers are lost at once."""
    restart_s: float | None = None
    """Restart from that checkpoint. None: the job's relaunch and load time."""

    def run(self, trace: Trace, job: Job) -> Outcome:
        """Train a job on a trace."""
        if self.gang_nodes is not None:
            return _Run(self, self.gang_nodes, job).play(trace, self.name)
        sizes = range(job.nodes_per_copy, measure_trace(trace).max_nodes + 1)
        runs = (replace(self, gang_nodes=nodes).run(trace, job) for nodes in sizes)
        return max(runs, key=lambda run: run.goodput)


class _Run(Replay):
    def __init__(self, model: MoEvement, nodes: int, job: Job) -> None:
        super().__init__(job)
        self._model = model
        self._nodes = nodes
        self._gang: list[str] = []
        """Places of the gang in ring order; some may be held by the dead."""
        self._owed_s = 0.0
        """What the next start costs."""
        self._keep_at_s = inf
        self.protecting = model.overhead / (1 + model.overhead)

    def start(self) -> None:
        self._gang = self.alive[: self._nodes]
        self._fill()
        self._keep_at_s = self.now_s + self._model.checkpoint_every_s

    def step_s(self) -> float:
        """The batch stays; a gang of another size has longer or shorter steps."""
        return self.job.full_batch_step_s(self._nodes) * (1 + self._model.overhead)

    def on_loss(self, lost: frozenset[str]) -> None:
        if lost.isdisjoint(self._gang):
            return
        self.ledger.drop_step()
        if self._is_fatal():
            self.ledger.roll_back()
            self.ledger.count("rollback")
            restart_s = self._model.restart_s
            self._owed_s = self.job.restart_s(self._nodes) if restart_s is None else restart_s
        else:
            self.ledger.count("replay")
            replay_s = expected_rollback_s(self._model.window, self.step_s())
            self._owed_s = max(self._owed_s, self._model.replace_s + replay_s)
        self._fill()

    def on_join(self) -> None:
        if not self.members:
            self._fill()

    def next_timer_s(self) -> float:
        return self._keep_at_s

    def on_timer(self) -> None:
        self.ledger.keep()
        self._keep_at_s += self._model.checkpoint_every_s

    def _is_fatal(self) -> bool:
        """Whether a node and the next ones in the ring, its peers, are all gone."""
        here = set(self.alive)
        dead = [node not in here for node in self._gang]
        copies = 1 + min(self._model.peers, len(dead) - 1)
        ring = dead + dead[: copies - 1]
        return any(all(ring[at : at + copies]) for at in range(len(dead)))

    def _fill(self) -> None:
        """Put spares in the places of the dead; without enough of them, wait."""
        here = set(self.alive)
        spares = [node for node in self.alive if node not in set(self._gang)]
        for place, node in enumerate(self._gang):
            if node not in here and spares:
                self._gang[place] = spares.pop(0)
        while len(self._gang) < self._nodes and spares:
            self._gang.append(spares.pop(0))
        complete = len(self._gang) == self._nodes and here.issuperset(self._gang)
        self.members = list(self._gang) if complete else []
        if complete:
            self.pause(self._owed_s)
            self._owed_s = 0.0

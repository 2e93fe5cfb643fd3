"""Checkpoint and restart: save everything at an interval; after a loss load it and redo.

The interval is Young's (CACM 1974) or Daly's (FGCS 22, 2006) for the trace's own rate of losses,
which no real job knows beforehand.
"""

from dataclasses import dataclass
from math import exp, inf, sqrt

from elasticmoe.simulator.rivals.job import Job
from elasticmoe.simulator.rivals.ledger import Outcome
from elasticmoe.simulator.rivals.replay import Replay
from elasticmoe.simulator.traces import Trace, measure_trace


def young_interval_s(save_s: float, mtbf_s: float) -> float:
    """First-order best time between checkpoints. Source: Young, CACM 17(9), 1974."""
    return sqrt(2 * save_s * mtbf_s)


def daly_interval_s(save_s: float, mtbf_s: float) -> float:
    """Higher-order best time between the end of one checkpoint and the start of the next.

    Source: Daly, Future Generation Computer Systems 22 (2006), 303-312.
    """
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save_s / (2 * mtbf_s)
    return young_interval_s(save_s, mtbf_s) * (1 + sqrt(ratio) / 3 + ratio / 9) - save_s


def daly_goodput(interval_s: float, save_s: float, restart_s: float, mtbf_s: float) -> float:
    """Share of time that is useful if failures are a Poisson process, in recovery too.

    Source: Daly 2006, the complete cost function: T = M e^(R/M) (e^((tau + delta)/M) - 1) Ts/tau.
    """
    segment = exp((interval_s + save_s) / mtbf_s) - 1
    return interval_s / (mtbf_s * exp(restart_s / mtbf_s) * segment)


def regular_goodput(interval_s: float, save_s: float, restart_s: float, mtbf_s: float) -> float:
    """Share of time that is useful if failures are injected at a fixed interval of real time.

    Each takes the restart and half an interval; none falls into a recovery. This is how
    controlled experiments vary the "MTBF".
    """
    return max(0.0, 1 - (restart_s + interval_s / 2) / mtbf_s) / (1 + save_s / interval_s)


@dataclass(frozen=True, slots=True)
class CheckpointRestart:
    """Checkpoint-restart that also grows and shrinks. Every field is an assumption."""

    name: str = "checkpoint-restart"
    save_s: float | None = None
    """Everybody stands still while a checkpoint is written. None: the job's state over the
    storage of `reference_nodes`."""
    interval_s: float | None = None
    """Training between two checkpoints. None: Daly's, for the trace's mean time between losses
    (known beforehand: generous)."""
    restart_s: float | None = None
    """From the loss until training goes on. None: the job's relaunch (torchrun, measured) and
    load time."""
    scale_up_wait_s: float = 120.0
    """New nodes are collected this long before the job restarts to use them (Lazarus section
    6.4 gives all systems two minutes)."""
    node_multiple: int = 1
    """The job uses a multiple of this many nodes (DeepSpeed-MoE: its expert-parallel size).
    1 is generous."""

    def run(self, trace: Trace, job: Job) -> Outcome:
        """Train a job on a trace."""
        return _Run(self, trace, job).play(trace, self.name)


class _Run(Replay):
    def __init__(self, model: CheckpointRestart, trace: Trace, job: Job) -> None:
        super().__init__(job)
        self._model = model
        saved = model.save_s
        self._save_s = job.save_s(job.reference_nodes) if saved is None else saved
        mtbf_s = measure_trace(trace).mean_s_between_losses
        daly_s = max(job.step_s, daly_interval_s(self._save_s, mtbf_s))
        self._interval_s = daly_s if model.interval_s is None else model.interval_s
        self._save_at_s = self._saved_at_s = self._grow_at_s = inf

    def start(self) -> None:
        self.members = self._usable()
        self._plan_save(self.now_s)

    def on_loss(self, lost: frozenset[str]) -> None:
        if lost.isdisjoint(self.members):
            return
        self.ledger.roll_back()
        self.ledger.count("rollback")
        self._restart()

    def on_join(self) -> None:
        if not self.members:
            self._restart()
        elif self._grow_at_s == inf and len(self._usable()) > len(self.members):
            self._grow_at_s = self.now_s + self._model.scale_up_wait_s

    def next_timer_s(self) -> float:
        return min(self._save_at_s, self._saved_at_s, self._grow_at_s)

    def on_timer(self) -> None:
        if self.now_s >= self._saved_at_s:
            self.ledger.keep()
            self._plan_save(self.now_s)
        elif self.now_s >= self._save_at_s:
            self._save_at_s, self._saved_at_s = inf, self.now_s + self._save_s
        else:
            self._grow()

    def advance(self, until_s: float) -> None:
        if self._saved_at_s < inf:
            self.ledger.book(until_s, "protecting")
        else:
            super().advance(until_s)

    def _grow(self) -> None:
        """Save, then restart on more nodes; after the restart that is going on, if there is one."""
        busy = self.now_s < self.busy_until_s
        self._grow_at_s = self.busy_until_s if busy else inf
        if not busy and len(self._usable()) > len(self.members):
            self.ledger.keep()
            self.ledger.count("grow")
            self._restart(self._save_s)

    def _restart(self, before_s: float = 0.0) -> None:
        """Begin again from the last checkpoint on all nodes there are."""
        self.members = self._usable()
        restart_s = self._model.restart_s
        self.pause(
            before_s + (self.job.restart_s(len(self.members)) if restart_s is None else restart_s)
        )
        self._grow_at_s = inf
        self._plan_save(self.busy_until_s)

    def _plan_save(self, trains_at_s: float) -> None:
        self._save_at_s = trains_at_s + self._interval_s if self.members else inf
        self._saved_at_s = inf

    def _usable(self) -> list[str]:
        multiple = self._model.node_multiple
        count = len(self.alive) // multiple * multiple
        enough = count >= min(self.job.nodes_per_copy, self.job.reference_nodes)
        return self.alive[:count] if enough else []

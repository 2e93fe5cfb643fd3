"""torchft: whole copies of the model (replica groups) train together and drop out one by one.

A loss takes out its whole replica group. The attempt during which it happens runs to its
all-reduce, fails there, and is thrown away; the next quorum forms when the dead group's
heartbeats are old enough; survivors go on with a smaller batch. A restarted group joins at the
start of an attempt and everybody waits there until it has the weights of a peer.

Source: torchft (lighthouse.rs, manager.rs); "Fault Tolerant Llama: training with 2000 synthetic
failures every ~15 seconds and no checkpoints on Crusoe L40S", PyTorch blog, June 2025.
"""

from dataclasses import dataclass
from math import inf

from elasticmoe.simulator.rivals.job import Job
from elasticmoe.simulator.rivals.ledger import Outcome
from elasticmoe.simulator.rivals.replay import Replay
from elasticmoe.simulator.traces import Trace


@dataclass(frozen=True, slots=True)
class Torchft:
    """torchft with fault-tolerant HSDP. Every field is an assumption."""

    name: str = "torchft"
    nodes_per_group: int | None = None
    """Nodes of one replica group. None: the job's nodes per copy."""
    heartbeat_s: float = 5.0
    """A group is dead when its last heartbeat is this old (torchft's default)."""
    operation_timeout_s: float = 5.0
    """A survivor's all-reduce fails this long after it began (Crusoe demo; default 60 s)."""
    reconfigure_s: float = 1.0
    """New process groups after a new quorum ("Gloo can reinitialize in < 1 s", Crusoe demo)."""
    group_restart_s: float = 5.5
    """From the loss until a group made of other nodes asks to join. Measured: torchft under Ray
    Train 5.5 s with preinstalled software; the Crusoe demo's groups took about 24 s."""
    join_stall_s: float | None = None
    """Everybody waits in the step in which groups join. None: one copy of the training state
    over the links of one group. Calibrated for the Crusoe demo, see docs/rivals.md."""
    checkpoint_every_s: float = 1800.0
    """A durable checkpoint in the background, free of cost (generous); used when no group is
    left."""

    def run(self, trace: Trace, job: Job) -> Outcome:
        """Train a job on a trace."""
        return _Run(self, job).play(trace, self.name)


class _Run(Replay):
    def __init__(self, model: Torchft, job: Job) -> None:
        super().__init__(job)
        self._model = model
        self._size = model.nodes_per_group or job.nodes_per_copy
        copy_s = job.state_bytes / self._size / job.network_bytes_per_s
        self._stall_s = copy_s if model.join_stall_s is None else model.join_stall_s
        self._groups: list[list[str]] = []
        self._free: list[str] = []
        self._starting: list[tuple[float, list[str]]] = []
        self._attempt_at_s = self._attempt_ends_s = self._quorum_at_s = inf
        self._stalls_until_s = 0.0
        self._failed = False
        self._keep_at_s = inf

    def start(self) -> None:
        self._free = list(self.alive)
        while len(self._free) >= self._size:
            self._groups.append([self._free.pop(0) for _ in range(self._size)])
        self._keep_at_s = self.now_s + self._model.checkpoint_every_s
        self._begin_attempt()

    def on_join(self) -> None:
        known = {node for group in self._groups for node in group} | set(self._free)
        known |= {node for _, group in self._starting for node in group}
        self._free += [node for node in self.alive if node not in known]
        self._start_groups()

    def on_loss(self, lost: frozenset[str]) -> None:
        hit = [group for group in self._groups if not lost.isdisjoint(group)]
        self._groups = [group for group in self._groups if lost.isdisjoint(group)]
        broken = [group for _, group in self._starting if not lost.isdisjoint(group)]
        self._starting = [entry for entry in self._starting if lost.isdisjoint(entry[1])]
        self._free += [node for group in hit + broken for node in group]
        self._free = [node for node in self._free if node not in lost]
        if hit:
            # The survivors notice in the all-reduce, at the end of the attempt; a death while
            # they wait for a quorum prolongs the wait.
            timeout_s = self._attempt_ends_s + self._model.operation_timeout_s
            notice_s = self._quorum_at_s if self._failed else timeout_s
            self._quorum_at_s = max(notice_s, self.now_s + self._model.heartbeat_s)
            self._attempt_ends_s = inf
            self.ledger.drop_step(tried=not self._failed)
            self._failed = True
            self.ledger.count("group lost")
        self._set_members()
        if hit and not self._groups:
            self.ledger.roll_back()
            self.ledger.count("rollback")
            self._failed, self._quorum_at_s = False, inf
        self._start_groups()

    def next_timer_s(self) -> float:
        waiting = bool(self._starting) and not self._groups
        ready = max(self.now_s, self._starting[0][0]) if waiting else inf
        return min(self._attempt_ends_s, self._quorum_at_s, ready, self._keep_at_s)

    def on_timer(self) -> None:
        if self.now_s >= self._keep_at_s:
            self.ledger.keep()
            self._keep_at_s += self._model.checkpoint_every_s
        elif self.now_s >= min(self._attempt_ends_s, self._quorum_at_s):
            if not self._failed:
                self.ledger.end_step()
            self._begin_attempt()
        else:  # no group was left: the first that starts loads the checkpoint
            self._begin_attempt()
            self._stall(self.job.save_s(self._size))

    def advance(self, until_s: float) -> None:
        if not self.members:
            self.ledger.book(until_s, "waiting")
        elif self._failed:
            self.ledger.book(until_s, "recovering")
        else:
            stalled_s = min(until_s, self._stalls_until_s)
            if self.now_s < stalled_s:
                self.ledger.book(stalled_s, "recovering")
            self.ledger.train(until_s, len(self.members), step_s=inf)

    def _begin_attempt(self) -> None:
        """A quorum: whoever is ready joins; failed groups are out."""
        was_failed, self._failed = self._failed, False
        joining = [group for ready_s, group in self._starting if ready_s <= self.now_s]
        self._starting = [entry for entry in self._starting if entry[0] > self.now_s]
        first = not self._groups
        self._groups += joining
        self._set_members()
        self._quorum_at_s = self._attempt_ends_s = inf
        self._stalls_until_s = self.now_s
        if self._groups:
            self._attempt_ends_s = self.now_s + self.job.step_s
            self._stall(self._model.reconfigure_s if was_failed else 0.0)
            if joining and not first:
                self.ledger.count("join")
                self._stall(self._stall_s)

    def _stall(self, seconds: float) -> None:
        self._stalls_until_s = self._stalls_until_s + seconds
        self._attempt_ends_s += seconds

    def _start_groups(self) -> None:
        """Nodes without a group form new ones, which take their time to start."""
        ready_s = self.now_s + self._model.group_restart_s
        while len(self._free) >= self._size:
            self._starting.append((ready_s, [self._free.pop(0) for _ in range(self._size)]))

    def _set_members(self) -> None:
        self.members = [node for group in self._groups for node in group]

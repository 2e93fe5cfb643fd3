"""How long the brain thinks about a lost worker and a lost node in the largest gang.

DeepSeek-V3's 61 layers of 256 experts on 16,384 workers, eight to a node. No worker runs: the brain
is fed what they would report. The last line is JSON; `--quick` takes a small gang, to see that it
works.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Report
from elasticmoe.cluster.memory import collect_rarely
from elasticmoe.controller.decisions import Decision, Form
from elasticmoe.controller.journal import encode_record
from elasticmoe.controller.machine import advance
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Decided, Record
from elasticmoe.controller.state import JobState
from elasticmoe.messages.events import (
    Event,
    JobSubmitted,
    NodeLost,
    NodeUp,
    Reported,
    TermBegan,
    WorkerDied,
)
from elasticmoe.messages.worker import (
    Copies,
    GangFormed,
    StepDone,
    WorkerParked,
    WorkerReady,
)
from elasticmoe.model.inventory import build_inventory
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data

BAR_S = 1.0
PER_NODE = 8


class Brain:
    """Takes events in, one after the other, and its own time."""

    def __init__(self, state: JobState) -> None:
        self.state = state
        self.thinking: dict[str, float] = {}
        """Processor time of the turns in which something was decided, by what was decided."""
        self.listening_s = 0.0
        """Of all others together."""
        self.decided: list[Decision] = []

    def take(self, event: Event) -> None:
        """Take in one event."""
        began_s = time.process_time()
        self.state, _ = advance(self.state, event)
        took_s = time.process_time() - began_s
        if not self.state.decided:
            self.listening_s += took_s
            return
        self.decided += self.state.decided
        name = " and ".join(type(one).__name__ for one in self.state.decided)
        self.thinking[name] = self.thinking.get(name, 0.0) + took_s

    def hear(self, reports: Iterable[WorkerReady | GangFormed | WorkerParked]) -> None:
        """Take in what workers report."""
        for report in reports:
            node = self.state.workers[report.worker].node
            self.take(Reported(self.state.now_s, node, report))


def job_of(workers: int, *, quick: bool) -> JobSpec:
    """DeepSeek-V3 on so many workers; `quick`: something small."""
    return parse_data(
        {
            "version": 1,
            "name": "decision",
            "model": {"preset": "quickstart" if quick else "deepseek-v3"},
            "data": {"sources": [{"path": "nowhere"}], "seq_len": 64 if quick else 4096},
            "batch": {"global_samples": 16_384, "num_waves": 64},
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"steps": 1000},
            "parallel": {"stages": 2 if quick else 32, "expert_replicas": "one"},
            "workers": {"replicas": workers, "min": workers // 2, "max": workers},
            "storage": {"dir": "nowhere"},
        }
    )


def train(job: JobSpec) -> JobState:
    """A gang that has taken one step; eight workers to a node, sixteen failure domains."""
    inventory = build_inventory(job.model, job.data.seq_len)
    brain = Brain(JobState())
    brain.take(JobSubmitted(0.0, job.model_dump(mode="json"), asdict(inventory), []))
    brain.take(TermBegan(0.0, 1, "benchmark"))
    for number in range(job.workers.replicas // PER_NODE):
        domain = f"domain-{number % 16}"
        brain.take(NodeUp(0.0, f"node-{number}", domain, "host", PER_NODE, 2**42))
    brain.hear(WorkerReady(worker, worker) for worker in tuple(brain.state.workers))
    brain.hear(GangFormed(1, worker, 1, {}) for worker in brain.state.members)
    samples = (0, job.batch.global_samples)
    brain.take(Reported(1.0, "node-0", StepDone(1, 1, 1.0, 2.0, {}, samples, 0)))
    assert brain.state.phase is Phase.TRAINING, brain.state.phase
    assert brain.state.committed_step == 1
    return brain.state


def copies_of(state: JobState) -> dict[int, Copies]:
    """What the members' vaults hold after the first step."""
    assert state.plan is not None, "a gang trains"
    units: dict[int, list[int]] = {worker: [] for worker in state.members}
    for unit, homes in enumerate(state.plan.homes):
        for home in homes:
            units[state.members[home]].append(unit)
    return {
        worker: Copies(worker, 1, 1, 1, 1, ((1, tuple(held)),) if held else ())
        for worker, held in units.items()
    }


def replace_a_worker(state: JobState, copies: dict[int, Copies]) -> Brain:
    """One process dies; another one of its node takes over its memory."""
    brain, dead = Brain(state), state.members[len(state.members) // 2]
    node = state.workers[dead].node
    brain.take(WorkerDied(1.0, node, dead, "killed by signal 9", "log", copies[dead]))
    new = [worker for worker in brain.state.workers if worker not in state.positions]
    brain.hear(WorkerReady(worker, worker) for worker in new)
    left = [worker for worker in state.members if worker != dead]
    brain.hear(WorkerParked(1, worker, 1, "told to", copies[worker]) for worker in left)
    return brain


def fail_over(state: JobState, copies: dict[int, Copies]) -> Brain:
    """One node is lost; all others go on without it."""
    brain = Brain(state)
    node = state.workers[state.members[len(state.members) // 2]].node
    brain.take(NodeLost(1.0, node, "agent does not answer"))
    left = tuple(brain.state.workers)
    brain.hear(WorkerParked(1, worker, 1, "told to", copies[worker]) for worker in left)
    return brain


def main() -> None:
    """Measure, print, end with the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    workers = given.workers or (32 if given.quick else 16_384)
    collect_rarely()  # as the controller's process does
    report = Report()
    job = job_of(workers, quick=given.quick)
    state = train(job)
    assert state.job is not None, "it was submitted"
    report.section(f"{workers:,} workers, {len(state.job.inventory.units):,} units; processor time")
    copies = copies_of(state)
    for name, lose in (("replace", replace_a_worker), ("failover", fail_over)):
        brains = [lose(state, copies) for _ in range(given.rounds)]
        for brain in brains:
            (form,) = [one for one in brain.decided if isinstance(one, Form)]
            assert getattr(brain.state.tally, f"recoveries_{name}") == 1, brain.state.tally
        for what in brains[0].thinking:
            report.times(f"{name}: {what}", [brain.thinking[what] for brain in brains])
        report.times(f"{name}: all other events", [brain.listening_s for brain in brains])
        began_s = time.process_time()
        line = encode_record(Record(0, Decided(0, form)))
        took_s = time.process_time() - began_s
        report.note(f"{name}: the record", f"{len(line) / 1e6:.1f} MB, encoded in {took_s:.2f} s")
        decision_s = statistics.median(sum(brain.thinking.values()) for brain in brains)
        report.figure(f"decision_{name}_s", decision_s, most=BAR_S)
    report.print()


if __name__ == "__main__":
    main()

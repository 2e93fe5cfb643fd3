"""What protection costs: homes, preparing, vote and hashes, toggled in running processes.

Two gangs live in the same two processes. One is protected: two homes per unit, the reduced
gradients forwarded, a vote, the mirrors' update, units hashed before and after their update and
compared between their homes. The other has one home per unit, no vote and no hashes.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.crew import Crew
from benchmarks.figures import Report, upper_95
from benchmarks.member import Worker, start_gang
from benchmarks.rivals.job import Workload
from benchmarks.steps import Computed, commit, compute, unprotect
from elasticmoe.runtime.gang import Gang
from elasticmoe.runtime.step import compare_homes

Phases = dict[str, float]
"""Seconds by phase of one step."""
Pair = tuple[Phases, Phases]
"""Protected and unprotected."""


class ProtocolWorker(Worker):
    """A member of a protected and of an unprotected gang."""

    def __init__(self, workload: Workload, member: int, workers: int, port: int) -> None:
        super().__init__(workload, member, workers, port)
        bare = replace(workload, overrides=(*workload.overrides, "protection.redundancy=1"))
        self.bare = self.form(bare.job(), generation=2)
        unprotect(self.bare)

    def block(self, steps: int, number: int) -> list[Pair]:
        """So many protected and as many unprotected whole steps."""
        return self._toggled(
            steps, number, lambda gang, on: commit(gang, compute(gang), protected=on)
        )

    def commits(self, computes: int, block_commits: int) -> list[Pair]:
        """After each computed step, so many commits of its gradients protected and as many not.

        The protected gang computes; its gradients are copied to the other one. Every commit is
        a whole one: reduce, agree, (prepare, vote,) apply. `compute` of each pair is the step's.
        Every other time the unprotected ones come first.
        """
        found: list[Pair] = []
        for number in range(computes):
            computed = compute(self.gang)
            self.bare.weights.gradients.copy_(self.gang.weights.gradients)
            found += self._toggled(block_commits, number, _commits_of(computed))
        return found

    def compares(self, count: int) -> list[float]:
        """Seconds that it takes to compare the homes of all units, so many times."""
        found = []
        for _ in range(count):
            self.gang.groups.world.barrier()
            began_s = time.perf_counter()
            compare_homes(self.gang)
            found.append(time.perf_counter() - began_s)
        return found

    def _toggled(self, steps: int, number: int, take: Callable[[Gang, bool], Phases]) -> list[Pair]:
        """A pair is the n-th of the ones and of the others; odd blocks begin with the latter."""
        sides = ((self.gang, True), (self.bare, False))
        taken: dict[bool, list[Phases]] = {True: [], False: []}
        for gang, protected in sides[:: -1 if number % 2 else 1]:
            for _ in range(steps):
                gang.groups.world.barrier()
                taken[protected].append(take(gang, protected))
        return list(zip(taken[True], taken[False], strict=True))


def _commits_of(computed: Computed) -> Callable[[Gang, bool], Phases]:
    return lambda gang, protected: commit(gang, computed, protected=protected)


@dataclass(frozen=True, slots=True)
class ProtocolSize:
    """How much is measured."""

    blocks: int
    block_steps: int
    """Protected ones, and then as many that are not, or the other way round."""
    pairs_1024: int
    """Of whole steps of 1,024 tokens, toggled at every step."""


def measure_protocol(report: Report, workload: Workload, size: ProtocolSize) -> None:
    """Add `protocol_share` (what protection adds to a step's commit, over the whole step),
    `hash_share` (of it, comparing homes every `hash_interval_steps`) and `protocol_share_1024`
    (whole steps of 1,024 tokens)."""
    crew, _store = start_gang(ProtocolWorker, workload, 2)
    with crew:
        crew.call("commits", 1, 2)  # warm
        found = _slowest(crew.call("commits", size.blocks, size.block_steps))
        compares = [max(each) for each in zip(*crew.call("compares", size.blocks), strict=True)]
    report.section(
        f"protocol, 2 workers, {workload.step_tokens} tokens a step: {len(found)} pairs of "
        f"commits of the same gradients, toggled every {size.block_steps}"
    )
    _add(report, found, "protocol_share", most=0.03)
    report.times("homes compared once", compares)
    step = statistics.fmean(sum(protected.values()) for protected, _ in found)
    interval = workload.job().protection.hash_interval_steps
    report.figure("hash_share", upper_95(compares) / (interval * step), most=0.01)
    samples = max(1024 // workload.seq_len, 2)
    few = replace(workload, samples=samples, waves=1)
    crew, _store = start_gang(ProtocolWorker, few, 2)
    with crew:
        found = _steps(crew, size.pairs_1024, 1)
    report.section(f"protocol, {few.step_tokens} tokens a step: {len(found)} pairs of steps")
    _add(report, found, "protocol_share_1024", most=None)


def measure_protocol_steps(report: Report, workload: Workload, size: ProtocolSize) -> None:
    """Add `protocol_share_whole_steps`: computing, which protection does not touch, is in it too,
    and its noise is many times what is measured."""
    crew, _store = start_gang(ProtocolWorker, workload, 2)
    with crew:
        found = _steps(crew, size.blocks, size.block_steps)
    report.section(
        f"protocol, 2 workers, {workload.step_tokens} tokens a step: {len(found)} pairs of whole "
        f"steps, toggled every {size.block_steps}"
    )
    _add(report, found, "protocol_share_whole_steps", most=None)


def _steps(crew: Crew, blocks: int, block_steps: int) -> list[Pair]:
    """Pairs of whole steps, toggled after every `block_steps` of them."""
    crew.call("block", 1, 0)  # warm
    found: list[Pair] = []
    for number in range(blocks):
        found += _slowest(crew.call("block", block_steps, number))
    return found


def _slowest(of_workers: list[list[Pair]]) -> list[Pair]:
    """Each pair as the worker saw it whose two sides took longest together."""
    return [
        max(pairs, key=lambda pair: sum(sum(phases.values()) for phases in pair))
        for pairs in zip(*of_workers, strict=True)
    ]


def _add(report: Report, pairs: list[Pair], name: str, most: float | None) -> None:
    for side, title in enumerate(("protected", "unprotected")):
        for phase in pairs[0][side]:
            report.times(f"{title}: {phase}", [pair[side][phase] for pair in pairs])
    steps = [sum(on.values()) for on, _ in pairs]
    extra = [sum(on.values()) - sum(off.values()) for on, off in pairs]
    report.times("extra of the protocol per step", extra)
    step = statistics.fmean(steps)
    report.note("share: mean of the pairs", f"{statistics.fmean(extra) / step:10.4f}")
    report.note("share: median of the pairs", f"{statistics.median(extra) / step:10.4f}")
    report.figure(name, upper_95(extra) / step, most=most)

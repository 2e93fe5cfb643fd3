"""How fast steps are, beside what one would write or use instead, and what protection costs.

The last line is JSON. `--quick` runs everything at a tiny size, to see that it works; its figures
mean nothing. `--only` takes some parts: one two dispatch protocol protocol-steps cold-start.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cold_start import cold_workload, measure_cold_start
from benchmarks.crew import ROOT, Crew
from benchmarks.dispatch import measure_dispatch
from benchmarks.figures import Report
from benchmarks.member import Worker, start_gang
from benchmarks.protocol import ProtocolSize, measure_protocol, measure_protocol_steps
from benchmarks.rivals.job import Workload
from benchmarks.rivals.torchrun_ddp import ENVIRONMENT, launch_command

RIVALS = ROOT / "benchmarks" / "rivals"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    workload: Workload
    pairs: int
    """Of turns, ours and a rival's."""
    turn_steps: int
    sweep: tuple[int, ...]
    """Micro-batches per step that a rival tries."""
    sums: tuple[str, ...]
    """Ways to sum gradients that torchrun tries."""
    rounds: int
    """Of the dispatch measurement."""
    protocol: ProtocolSize
    cold_pairs: int


FULL = Size(
    Workload(),
    pairs=5,
    turn_steps=1,
    sweep=(2, 4, 8),
    sums=("flat", "ddp"),
    rounds=150,
    protocol=ProtocolSize(blocks=20, block_steps=10, pairs_1024=200),
    cold_pairs=5,
)
QUICK = Size(
    Workload(preset="quickstart", samples=4, seq_len=32, waves=2),
    pairs=2,
    turn_steps=1,
    sweep=(1, 2),
    sums=("flat",),
    rounds=4,
    protocol=ProtocolSize(blocks=2, block_steps=2, pairs_1024=4),
    cold_pairs=1,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    report, size = Report(), QUICK if args.quick else FULL
    for part in args.only:
        PARTS[part](report, size)
    report.print()


def measure_one_worker(report: Report, size: Size) -> None:
    """Add `one_worker_vs_torch`."""
    rival = Crew("plain", [_python("plain.py", size.workload)], 1)
    ours, _store = start_gang(Worker, size.workload, 1)
    with rival, ours:
        tried = {f"plain torch, {n} micro-batches": (rival, n) for n in size.sweep}
        ratio = _compare(report, "1 worker against a plain torch loop", size, ours, tried)
    report.figure("one_worker_vs_torch", ratio, least=0.95)


def measure_two_workers(report: Report, size: Size) -> None:
    """Add `two_workers_vs_ddp`."""
    crews = {
        how: Crew(
            f"torchrun {how}",
            [launch_command(2, *size.workload.flags(), f"--sum={how}")],
            2,
            **ENVIRONMENT,
        )
        for how in size.sums
    }
    ours, _store = start_gang(Worker, size.workload, 2)
    with ExitStack() as stack:
        for crew in (*crews.values(), ours):
            stack.enter_context(crew)
        tried = {
            f"torchrun, {how}, {waves} micro-batches": (crew, waves)
            for how, crew in crews.items()
            for waves in size.sweep
            if size.workload.samples // 2 % waves == 0
        }
        ratio = _compare(report, "2 workers against torchrun DDP", size, ours, tried)
        phases = ours.call("phases", 2)[0]
    for phase in phases[0]:
        report.times(f"elasticmoe: of which {phase}", [step[phase] for step in phases])
    report.figure("two_workers_vs_ddp", ratio, least=1.0)


def _compare(
    report: Report, title: str, size: Size, ours: Crew, tried: dict[str, tuple[Crew, int]]
) -> float:
    """Find the rival's best settings, then alternate; returns our speed over the rival's."""
    report.section(f"{title}, {size.workload.step_tokens} tokens a step")
    ours.take(1)
    best: dict[str, float] = {}
    for name, (crew, waves) in tried.items():
        crew.take(1, waves)
        seconds = crew.take(1, waves)
        report.times(f"sweep: {name}", seconds)
        best[name] = min(seconds)
    name = min(best, key=best.__getitem__)
    crew, waves = tried[name]
    crew.take(1, waves)
    ours.take(1)
    mine: list[float] = []
    theirs: list[float] = []
    ratios = []
    for pair in range(size.pairs):
        turns = [(mine, ours, None), (theirs, crew, waves)]
        for found, contestant, setting in turns[:: -1 if pair % 2 else 1]:
            found += contestant.take(size.turn_steps, setting)
        ratios.append(sum(theirs[-size.turn_steps :]) / sum(mine[-size.turn_steps :]))
    report.times(f"{ours.name}: step", mine)
    report.times(f"{name}: step", theirs)
    tokens = size.workload.step_tokens
    report.note(f"{ours.name}: tokens/s", f"{tokens / statistics.median(mine):10.0f}")
    report.note(f"{name}: tokens/s", f"{tokens / statistics.median(theirs):10.0f}")
    low, high = min(ratios), max(ratios)
    report.note("speed ratio of the pairs", f"{low:10.4f} to {high:.4f}, n={len(ratios)}")
    return statistics.median(ratios)


def _python(script: str, workload: Workload) -> list[str]:
    return [sys.executable, str(RIVALS / script), *workload.flags()]


PARTS: dict[str, Callable[[Report, Size], None]] = {
    "one": measure_one_worker,
    "two": measure_two_workers,
    "dispatch": lambda report, size: measure_dispatch(
        report, size.workload, size.rounds, warmup_steps=3
    ),
    "protocol": lambda report, size: measure_protocol(report, size.workload, size.protocol),
    "protocol-steps": lambda report, size: measure_protocol_steps(
        report, size.workload, size.protocol
    ),
    "cold-start": lambda report, size: measure_cold_start(
        report, cold_workload(size.workload), size.cold_pairs
    ),
}


if __name__ == "__main__":
    main()

"""What a checkpoint costs the training around it, ours against torch's `async_save`.

One gang trains; checkpoints of its state are taken in turns by our writer and by torch DCP, at
its best settings of several tried. The excess of a checkpoint is the time of all steps from the
snapshot to the manifest, less as many ordinary steps. The last line is JSON.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.checkpoint_writers import SNAPSHOTS, RoundTimes, SavingWorker
from benchmarks.crew import Crew
from benchmarks.figures import Report
from benchmarks.member import start_gang
from benchmarks.rivals.job import Workload


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    workload: Workload
    pairs: int
    sweep_rounds: int
    quiet_steps: int
    """Ordinary steps before each snapshot, which it is compared with."""
    saving_steps: int
    """Steps at first allowed for a checkpoint; doubled until its manifest lies within."""


# Five of the preset's six layers: 200 MB of master weights and moments.
FULL = Size(
    Workload(samples=8, waves=1, overrides=("model.num_layers=5", "parallel.expert_replicas=all")),
    pairs=9,
    sweep_rounds=3,
    quiet_steps=6,
    saving_steps=8,
)
QUICK = Size(Workload(preset="quickstart", samples=4, seq_len=32, waves=1), 1, 1, 2, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny size; the figures mean nothing")
    args = parser.parse_args()
    report, size = Report(), QUICK if args.quick else FULL
    home = Path(tempfile.mkdtemp(prefix="checkpoints-"))
    try:
        # Two workers on two cores is the case that counts: nobody has a core to spare.
        measure(report, size, home / "two", workers=2, name="excess_vs_dcp_async", most=0.5)
        few = replace(size, pairs=max(size.pairs // 2, 1))
        name = "excess_vs_dcp_async_one_worker"
        measure(report, few, home / "one", workers=1, name=name, most=None)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    report.print()


def measure(
    report: Report, size: Size, home: Path, *, workers: int, name: str, most: float | None
) -> None:
    """Add one figure: our excess over that of torch's best variant."""
    home.mkdir()
    crew, _store = start_gang(SavingWorker, size.workload, workers)
    with crew:
        num_bytes = sum(crew.call("prepare", str(home)))
        report.section(f"checkpoint of {num_bytes / 1e6:.0f} MB, {workers} workers")
        rounds = _Rounds(crew, size)
        for how in SNAPSHOTS:
            rounds.take(how)  # buffers, processes and caches are made on first use
        rivals = [how for how in SNAPSHOTS if how != "ours"]
        tried = {}
        for how in rivals:
            excesses = [rounds.take(how)[0] for _ in range(size.sweep_rounds)]
            report.times(f"sweep, excess: {how}", excesses)
            tried[how] = statistics.median(excesses)
        best = min(tried, key=tried.__getitem__)
        results: dict[str, list[tuple[float, RoundTimes]]] = {"ours": [], best: []}
        for pair in range(size.pairs):
            for how in ("ours", best)[:: -1 if pair % 2 else 1]:
                results[how].append(rounds.take(how))
    for how, found in results.items():
        report.times(f"{how}: ordinary step", [s for _, times in found for s in times.quiet_s])
        report.times(f"{how}: snapshot stall", [times.stall_s for _, times in found])
        report.times(f"{how}: snapshot to manifest", [times.manifest_s for _, times in found])
        report.times(f"{how}: excess", [excess for excess, _ in found])
    ours, theirs = (statistics.median(e for e, _ in results[how]) for how in ("ours", best))
    report.figure(name, ours / theirs, most=most)


class _Rounds:
    """Takes checkpoints, each after some ordinary steps."""

    def __init__(self, crew: Crew, size: Size) -> None:
        self._crew, self._size = crew, size
        self._saving_steps = size.saving_steps

    def take(self, how: str) -> tuple[float, RoundTimes]:
        """One checkpoint; returns its excess and all times, of the worker it cost most."""
        while True:
            found = self._crew.call("round", how, self._size.quiet_steps, self._saving_steps)
            manifest_s = max(times.manifest_s for times in found)
            if manifest_s <= min(sum(times.saving_s) for times in found):
                return max(
                    ((times.excess_s(manifest_s), times) for times in found), key=lambda of: of[0]
                )
            self._saving_steps *= 2


if __name__ == "__main__":
    main()

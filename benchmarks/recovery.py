"""What a killed worker costs, beside torchrun, Ray Train and torchft on the same work.

The last line is JSON. `--quick` kills once or twice at a tiny size, to see that it works; its
figures mean nothing. `--only` takes some contestants, `--out FILE` keeps what was found after every
part, and `--combine FILE...` reports from such files without running anything.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.crew import CrewError
from benchmarks.recovery_faults import KILL, Fault
from benchmarks.recovery_report import best_heartbeat, combine, report_recovery
from benchmarks.recovery_rivals import Rival, Tool
from benchmarks.recovery_sides import Ours, Side
from benchmarks.recovery_timeline import Commit, Kill, count_alarms, look_after
from benchmarks.rivals.job import Workload, packed_text

STEADY_TIMEOUT_S = 300.0
WATCH_INTERVAL_S = 2.0
SEED = 3


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    workload: Workload
    kills: int
    gap: tuple[int, int]
    """Undisturbed steps before a kill: drawn from [first, second)."""
    checkpoint_every: int
    watch_s: float
    """How long false alarms are waited for beside two busy processes."""


FULL = Size(
    Workload(preset="quickstart", samples=16, seq_len=128, waves=2),
    kills=20,
    gap=(5, 25),
    checkpoint_every=20,
    watch_s=600.0,
)
QUICK = Size(
    Workload(preset="quickstart", samples=8, seq_len=32, waves=2),
    kills=2,
    gap=(2, 6),
    checkpoint_every=5,
    watch_s=5.0,
)

Open = Callable[[Size], Side]
Keep = Callable[[str, str, dict[str, Any]], None]


def ours(workers: int, stages: int, *skip_rungs: str) -> Open:
    """Our job, started when called."""
    return lambda size: Ours(
        size.workload,
        workers=workers,
        stages=stages,
        checkpoint_every=size.checkpoint_every,
        skip_rungs=skip_rungs,
    )


def rival(tool: Tool) -> Open:
    """A rival, started when called."""
    return lambda size: Rival(tool, size.workload, checkpoint_every=size.checkpoint_every)


def torchft(heartbeat_ms: int) -> Open:
    """Torchft with a heartbeat; the interval at which it is sent is a quarter of it."""
    arguments = (
        f"--heartbeat-timeout-ms={heartbeat_ms}",
        f"--heartbeat-interval-ms={heartbeat_ms // 4}",
        "--max-restarts=1000",
    )
    return rival(Tool(f"torchft {heartbeat_ms} ms", "torchft_ddp.py", arguments, saves=False))


def ray_train(settings: str) -> Open:
    """Ray Train as it comes or at its fastest."""
    arguments = (f"--settings={settings}", "--max-failures=1000")
    return rival(Tool(f"Ray Train, {settings}", "ray_train.py", arguments))


HEARTBEATS_MS = (100, 120, 250, 500)
PARTS: dict[str, dict[str, Open]] = {
    "ours": {
        "ours-2-replace": ours(2, 1),
        "ours-2-failover": ours(2, 1, "replace"),
        "ours-4-replace": ours(4, 2),
        "ours-4-failover": ours(4, 2, "replace"),
    },
    "torchrun": {
        "torchrun": rival(Tool("torchrun", "torchrun_ddp.py", ("--max-restarts=1000",))),
    },
    "ray-train": {
        "ray-train-defaults": ray_train("defaults"),
        "ray-train-fastest": ray_train("fastest"),
    },
    "torchft": {f"torchft-{each}": torchft(each) for each in HEARTBEATS_MS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    names = [*PARTS, *(name for group in PARTS.values() for name in group)]
    parser.add_argument("--only", nargs="+", choices=names, default=list(PARTS), metavar="NAME")
    parser.add_argument("--kills", type=int, help="of each; default 20")
    parser.add_argument("--watch-s", type=float, help="watch for false alarms; default 600")
    parser.add_argument("--out", type=Path, help="keep what was found in this file")
    parser.add_argument("--combine", nargs="+", type=Path, help="report from such files")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then too
    if args.combine:
        found = combine([json.loads(path.read_text()) for path in args.combine])
    else:
        size = QUICK if args.quick else FULL
        watch_s = size.watch_s if args.watch_s is None else args.watch_s
        size = replace(size, kills=args.kills or size.kills, watch_s=watch_s)
        found = measure(size, args.only, args.out)
    report_recovery(found).print()


def measure(size: Size, only: Sequence[str], out: Path | None) -> dict[str, Any]:
    """Run the chosen parts one after the other; what was found, as plain data."""
    found, keep = open_record(size, out)
    size = replace(size, workload=replace(size.workload, data=packed_text()))
    for group, parts in PARTS.items():
        for name, start in parts.items():
            if group in only or name in only:
                say(f"{name}: {size.kills} kills")
                keep("parts", name, strike_all(start, size))
    if size.watch_s > 0:
        _watch_torchft(size, found, keep)
        if "ours-2-replace" in found["parts"]:
            keep("watches", "ours-2-replace", watch(PARTS["ours"]["ours-2-replace"], size))
    return found


def open_record(size: Size, out: Path | None) -> tuple[dict[str, Any], Keep]:
    """What a run finds, as plain data, and how to add to it; `out` is written anew each time."""
    run = time.strftime("%Y-%m-%dT%H:%M:%S")
    found: dict[str, Any] = {"workload": size.workload.flags(), "parts": {}, "watches": {}}

    def keep(kind: str, name: str, result: dict[str, Any]) -> None:
        found[kind][name] = {"run": run, **result}
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n")

    return found, keep


def strike_all(start: Open, size: Size, fault: Fault = KILL) -> dict[str, Any]:
    """Start a contestant and strike its workers in turn; what each fault cost, as plain data."""
    began_s = time.time()
    random = np.random.default_rng(SEED)  # the same gaps and moments for everybody
    kills: list[Kill] = []
    with closing(start(size)) as side:
        for number in range(size.kills):
            await_steady(side, kills, int(random.integers(*size.gap)))
            kills.append(strike(side, number, float(random.random()), fault))
            fault.undo(side, kills[-1])
        await_steady(side, kills, 3)
        commits = side.commits()
        recoveries = []
        for kill in kills:
            found = look_after(kill, commits, side.size)
            assert found is not None, "the job has been steady since"
            recoveries.append(side.recover(kill, found))
        outages = [
            (kill.at_s, kill.at_s + max(recovery.full_s, recovery.beyond_s))
            for kill, recovery in zip(kills, recoveries, strict=True)
        ]
        return {
            "name": side.name,
            "wall_s": time.time() - began_s,
            "step_s": _undisturbed(commits, side.size, outages),
            "false_alarms": count_alarms(side.signs(), outages),
            "recoveries": [recovery.to_json() for recovery in recoveries],
        }


def watch(start: Open, size: Size) -> dict[str, Any]:
    """Let a contestant train beside two busy processes until it raises a false alarm."""
    with closing(start(size)) as side:
        await_steady(side, [], 10)
        with busy_processes(2):
            say(f"{side.name}: {size.watch_s:.0f} s beside two busy processes")
            began_s = time.time()
            alarms = 0
            while not alarms and time.time() - began_s < size.watch_s:
                time.sleep(WATCH_INTERVAL_S)
                alarms = count_alarms(side.signs(), [])
            commits = [c for c in side.commits() if c.at_s > began_s]
        return {
            "name": side.name,
            "seconds": time.time() - began_s,
            "false_alarms": alarms,
            "step_s": statistics.median(commit.seconds for commit in commits),
        }


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Processes of ordinary niceness that compute all the time."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _watch_torchft(size: Size, found: dict[str, Any], keep: Keep) -> None:
    """Watch the fastest heartbeat; the next one if it raises a false alarm, and so on."""
    while (name := best_heartbeat(found)) is not None and name not in found["watches"]:
        keep("watches", name, watch(PARTS["torchft"][name], size))


def await_steady(side: Side, kills: Sequence[Kill], steps: int) -> None:
    """Wait until this many new steps were committed at full strength since the last kill."""

    def is_steady() -> bool:
        commits = side.commits()
        if not commits or commits[-1].workers != side.size:
            return False
        since_s = 0.0
        if kills:
            found = look_after(kills[-1], commits, side.size)
            if found is None:
                return False
            since_s = max(found.full.at_s, found.beyond.at_s)
        new = {c.step for c in commits if c.at_s > since_s and c.workers == side.size}
        return len(new) >= steps and len(side.victims()) == side.size

    what = f"{side.name}: {steps} steps at full strength after {len(kills)} kills"
    try:
        side.timeline.wait(is_steady, what, STEADY_TIMEOUT_S)
    except CrewError as error:
        raise CrewError(f"{error}\n{side.said()}") from None


def strike(side: Side, number: int, into_step: float, fault: Fault) -> Kill:
    """Strike a worker this far into the step after next."""
    commits = side.commits()
    step_s = statistics.median(commit.seconds for commit in commits[-10:])
    at_s = commits[-1].at_s + (1 + into_step) * step_s
    place = number % side.size
    pid, era = side.victims()[place], side.era()
    time.sleep(max(at_s - time.time(), 0.0))
    return Kill(fault.strike(side, place), place, pid, era, into_step)


def _undisturbed(
    commits: Sequence[Commit], size: int, outages: Sequence[tuple[float, float]]
) -> float:
    """Median seconds of a step at full strength that no kill came near."""
    return statistics.median(
        c.seconds
        for c in commits
        if c.workers == size and not any(s <= c.at_s and c.begin_s <= e for s, e in outages)
    )


def say(text: str) -> None:
    """Progress, for whoever watches."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

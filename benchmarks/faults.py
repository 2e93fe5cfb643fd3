"""What other faults than a kill cost: hangs, loops, lost and cut-off nodes, a dropped connection.

The last line is JSON. `--quick` strikes once at a tiny size, to see that it works; its figures
mean nothing. `--only` takes some parts (the rivals take part only if they are named there),
`--out FILE` keeps what was found after every part, and `--combine FILE...` reports from such files
without running anything. Nodes are network namespaces: without root and `ip` their parts are
left out, and the table says so.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.crew import CrewError
from benchmarks.faults_report import report_faults
from benchmarks.recovery import (
    FULL,
    QUICK,
    Open,
    Size,
    await_steady,
    busy_processes,
    open_record,
    ours,
    ray_train,
    rival,
    say,
    strike,
    strike_all,
    torchft,
)
from benchmarks.recovery_faults import (
    CutNode,
    DropConnection,
    Fault,
    KillWorker,
    LoopWorker,
    LoseNode,
    StopWorker,
)
from benchmarks.recovery_report import combine
from benchmarks.recovery_rivals import Tool
from benchmarks.recovery_sides import Ours, OursOnNodes, Side
from benchmarks.recovery_timeline import is_after
from benchmarks.rivals.job import packed_text
from chaos.errors import ChaosError
from elasticmoe.cluster.jobs import submit

FAULTS: Final = 10
GAP: Final = (25, 45)
"""A checkpoint lies in between: as long as none was measured, a step that writes one may take
any time, and no stall is seen in it."""
RIVAL_FAULTS: Final = 2
RIVAL_LIMIT_S: Final = 120.0
"""A rival that has committed no step by then is said not to have noticed."""
LOOPING: Final = "benchmarks.looping_worker:run_worker"
NOT_OURS: Final = ("protection.quarantine_faults=0",)
"""What befalls a node ten times in a row here is not its own doing."""


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of fault, struck again and again on one contestant."""

    start: Open
    fault: type[Fault]
    rung: str = "replace"
    """What must answer it; another one is counted."""
    is_busy: bool = False
    """Beside two busy processes."""


def looping(workers: int, stages: int) -> Open:
    """Our job with workers that can be made to loop."""
    return lambda size: Ours(
        size.workload,
        workers=workers,
        stages=stages,
        checkpoint_every=size.checkpoint_every,
        launch=partial(submit, entry=LOOPING),
    )


def on_nodes(size: Size) -> Side:
    """Our job on two nodes of two workers each."""
    workload = replace(size.workload, overrides=(*size.workload.overrides, *NOT_OURS))
    return OursOnNodes(workload, checkpoint_every=size.checkpoint_every)


PARTS: Final[dict[str, dict[str, Part]]] = {
    "hang": {
        "hang-2": Part(ours(2, 1), StopWorker),
        "hang-4": Part(ours(4, 2), StopWorker),
    },
    "loop": {
        "loop-2": Part(looping(2, 1), LoopWorker),
        "loop-4": Part(looping(4, 2), LoopWorker),
    },
    "dropped-connection": {
        "dropped-connection-2": Part(ours(2, 1), DropConnection, rung="retry"),
        "dropped-connection-4": Part(ours(4, 2), DropConnection, rung="retry"),
    },
    "busy": {
        "hang-busy": Part(ours(2, 1), StopWorker, is_busy=True),
        "kill-busy": Part(ours(2, 1), KillWorker, is_busy=True),
        "loop-busy": Part(looping(2, 1), LoopWorker, is_busy=True),
        "dropped-connection-busy": Part(ours(2, 1), DropConnection, rung="retry", is_busy=True),
        "node-loss-busy": Part(on_nodes, LoseNode, rung="failover", is_busy=True),
        "partition-busy": Part(on_nodes, CutNode, rung="failover", is_busy=True),
    },
    "node-loss": {"node-loss": Part(on_nodes, LoseNode, rung="failover")},
    "partition": {"partition": Part(on_nodes, CutNode, rung="failover")},
}
RIVALS: Final[dict[str, Open]] = {
    "torchrun-hang": rival(Tool("torchrun", "torchrun_ddp.py", ("--max-restarts=1000",))),
    "ray-train-hang": ray_train("fastest"),
    "torchft-hang": torchft(500),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    names = [*PARTS, *(name for group in PARTS.values() for name in group), "rivals", *RIVALS]
    parser.add_argument("--only", nargs="+", choices=names, default=list(PARTS), metavar="NAME")
    parser.add_argument("--faults", type=int, help=f"of each kind; default {FAULTS}")
    parser.add_argument("--out", type=Path, help="keep what was found in this file")
    parser.add_argument("--combine", nargs="+", type=Path, help="report from such files")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then too
    if args.combine:
        found = combine([json.loads(path.read_text()) for path in args.combine])
    else:
        size = (
            replace(QUICK, kills=1, gap=(11, 15))
            if args.quick
            else replace(FULL, kills=FAULTS, gap=GAP)
        )
        size = replace(size, kills=args.faults or size.kills)
        found = measure(size, args.only, args.out)
    report_faults(found).print()


def measure(size: Size, only: Sequence[str], out: Path | None) -> dict[str, Any]:
    """Run the chosen parts one after the other; what was found, as plain data."""
    found, keep = open_record(size, out)
    size = replace(size, workload=replace(size.workload, data=packed_text()))
    for group, parts in PARTS.items():
        for name, part in parts.items():
            if group in only or name in only:
                say(f"{name}: {size.kills} faults")
                keep("parts", name, strike_part(part, size))
    for name, start in RIVALS.items():
        if "rivals" in only or name in only:
            keep("watches", name, outwait(start, size))
    return found


def strike_part(part: Part, size: Size) -> dict[str, Any]:
    """Strike one contestant; what each fault cost, or why it was not to be had here."""
    with busy_processes(2) if part.is_busy else nullcontext():
        try:
            result = strike_all(part.start, size, part.fault())
        except ChaosError as error:
            return {"left_out": str(error)}
    others = sum(recovery["rung"] != part.rung for recovery in result["recoveries"])
    return {**result, "other_rungs": others}


def outwait(start: Open, size: Size) -> dict[str, Any]:
    """Stop a rival's worker, and wait for what comes of it: each time a rival of its own."""
    seconds: list[float | None] = []
    name = ""
    for number in range(min(size.kills, RIVAL_FAULTS)):
        with closing(start(size)) as side:
            name = side.name
            say(f"{name}: a stopped worker, {RIVAL_LIMIT_S:g} s at most")
            await_steady(side, [], size.gap[0])
            kill = strike(side, number, 0.5, StopWorker())
            try:
                side.timeline.wait(
                    lambda side=side, kill=kill: any(is_after(c, kill) for c in side.commits()),  # type: ignore[misc]
                    "a step after the stop",
                    RIVAL_LIMIT_S,
                )
                first = min(c.begin_s + c.waited_s for c in side.commits() if is_after(c, kill))
                seconds.append(first - kill.at_s)
            except CrewError as error:
                say(str(error))
                seconds.append(None)
            finally:
                _continue(kill.pid)
    return {"name": name, "limit_s": RIVAL_LIMIT_S, "seconds": seconds}


def _continue(pid: int) -> None:
    """A process that is stopped would outlive its launcher's SIGTERM."""
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main()

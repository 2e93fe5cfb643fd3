"""What every rival does once its loop stands: obey a benchmark, or train alone and tell about it.

Alone it prints one JSON object per line: `start` with the worker's pid and the times of what led
up to it, `loaded`, `step` for every committed step, `failed` for one that was not committed, and at
last `end` with all figures. `at_s` is Unix time.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.crew import obey
from benchmarks.rivals.job import add_workload_arguments
from benchmarks.rivals.loop import TorchLoop


def make_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of every rival."""
    parser = argparse.ArgumentParser(description=description)
    add_workload_arguments(parser)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--events", default="", help="append event lines to this file")
    parser.add_argument("--checkpoint-dir", default="", help="save and resume here")
    parser.add_argument("--checkpoint-every", type=int, default=20, help="steps")
    parser.add_argument("--orders", default="", help="socket of a benchmark that gives turns")
    return parser


class Events:
    """Appends event lines to a file or standard output; whole lines, also from many processes."""

    def __init__(self, path: str, rank: int) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY) if path else 1
        self._rank = rank

    def emit(self, event: str, **fields: Any) -> None:
        """Write one line."""
        plain = {"event": event, "rank": self._rank, "at_s": time.time(), **fields}
        os.write(self._descriptor, json.dumps(plain).encode() + b"\n")


class Saving:
    """Checkpoints in a directory that all workers see; rank 0 writes. Without one: none."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory) / "latest.pt" if directory else None

    def restore(self, loop: TorchLoop) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if self._path is not None and self._path.exists():
            loop.load_state_dict(torch.load(self._path, weights_only=True))

    def save(self, loop: TorchLoop) -> None:
        """Write a checkpoint that is there whole or not at all."""
        if self._path is not None and loop.team.rank == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            torch.save(loop.state_dict(), partial)
            partial.replace(self._path)


def run(
    loop: TorchLoop,
    args: argparse.Namespace,
    *,
    name: str,
    launched_s: float,
    moments: Mapping[str, float] | None = None,
    saving: Saving | None = None,
) -> None:
    """Train as told.

    Args:
        launched_s: Unix time at which the rival's first process started.
        moments: Unix times of what this worker has behind it: `process`, `imported`, `joined`.
        saving: how checkpoints are kept; by default in `--checkpoint-dir`.
    """
    if args.orders:
        obey(loop, args.orders, loop.team.rank)
    events = Events(args.events, loop.team.rank)
    saving = saving or Saving(args.checkpoint_dir)
    events.emit("start", rival=name, pid=os.getpid(), moments=dict(moments or {}))
    saving.restore(loop)
    events.emit("loaded", step=loop.steps_done)
    seconds: list[float] = []
    first_step_s = 0.0
    while loop.steps_done < args.steps:
        start = time.perf_counter()
        if not loop.step():
            events.emit("failed", seconds=time.perf_counter() - start)
            continue  # torchft: the team changed during the step, which is done again
        seconds.append(time.perf_counter() - start)
        first_step_s = first_step_s or time.time() - launched_s
        events.emit(
            "step",
            step=loop.steps_done,
            seconds=seconds[-1],
            loss_share=loop.loss_share,
            workers=loop.team.present,
            waited_s=loop.team.waited_s,
        )
        if loop.steps_done % args.checkpoint_every == 0:
            saving.save(loop)
    events.emit(
        "end",
        rival=name,
        pid=os.getpid(),
        workers=loop.team.size,
        tokens_per_step=loop.job.batch.global_samples * loop.job.data.seq_len,
        first_step_s=first_step_s,
        step_s=seconds,
    )


def process_start_s(pid: int) -> float:
    """Unix time at which a process started, to 10 ms.

    From the process's age, both ends of which are counted from boot; the boot's own Unix time
    is known to a second only.
    """
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - (up_s - int(stat[19]) / os.sysconf("SC_CLK_TCK"))

"""What heartbeats, leases and reports cost: CPU time of all that watches, beside the workers'.

A job with two workers at `small`, through Ray as any user runs it, with both cores busy: there the
share of the CPU time is the share of the step time. Counted as watching: the threads of the
workers that beat and read commands, the warm parent, the agent and the controller.

Agent and controller are actors of Ray, and one that does nothing wakes a hundred times a second
(`CoreWorker.CheckSignal`, 10 ms in Ray's source; none of `RAY_event_stats`, metrics, task events,
the worker's own heartbeat or a synchronous actor makes a difference). What such an actor takes is
measured beside them, and counted once for each of the two: `watching_share_without_ray` leaves it
out, `watching_share` is everything.
The last line is JSON. `--quick` runs it at a tiny size, to see that it works.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray

from benchmarks.crew import CrewError
from benchmarks.figures import Report
from benchmarks.recovery_sides import Ours
from benchmarks.rivals.job import Workload
from elasticmoe.cluster.connect import start_local_ray

FULL, QUICK = Workload(), Workload(preset="quickstart", samples=4, seq_len=32, waves=2)
FIRST_STEP = 3
"""Before it caches fill and the yardstick of MFU is measured."""
WATCHING_THREADS = ("pulse", "mailbox")
ACTORS = ("agent", "controller")


class Idle:
    """An actor like an agent or a controller, that does nothing."""

    async def pid(self) -> int:
        """Of its process."""
        return os.getpid()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    report = Report()
    workload, steps = (QUICK, 10) if args.quick else (FULL, args.steps)
    side = Ours(workload, workers=2, stages=1, checkpoint_every=1_000_000)
    try:
        start_local_ray()
        actor = ray.remote(Idle).options(num_cpus=0).remote()
        idle = ray.get(actor.pid.remote())
        _wait_for_step(side, FIRST_STEP)
        before = _cpu_seconds(side, idle)
        begun_s = time.perf_counter()
        _wait_for_step(side, FIRST_STEP + steps)
        after = _cpu_seconds(side, idle)
        lasted_s = time.perf_counter() - begun_s
    finally:
        side.close()
        ray.shutdown()
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    training, of_ray = spent.pop("training"), spent.pop("idle")
    for name in ACTORS:
        spent[name] -= of_ray
    report.section(f"2 workers, {workload.step_tokens} tokens a step, {steps} steps")
    report.note("CPU time of training", f"{training / lasted_s:10.3f} cores")
    for name, seconds in sorted(spent.items()):
        report.note(f"CPU time of {name}", f"{1e3 * seconds / steps:10.3f} ms per step")
    report.note("CPU time of Ray's own in each actor", f"{1e3 * of_ray / steps:10.3f} ms per step")
    own = sum(spent.values())
    report.figure("watching_share_without_ray", own / training)
    report.figure("watching_share", (own + len(ACTORS) * of_ray) / training, most=0.005)
    report.print()


def _wait_for_step(side: Ours, step: int) -> None:
    while max((commit.step for commit in side.commits()), default=0) < step:
        time.sleep(0.05)


def _cpu_seconds(side: Ours, idle: int) -> dict[str, float]:
    """CPU time so far, by what it is for."""
    found = {
        "training": 0.0,
        "controller": _of_process(side.controller_pid),
        "agent": _of_process(_agent_beside(side.controller_pid)),
        "idle": _of_process(idle),
    }
    parents = set()
    for pid in side.victims():
        parents.add(_parent(pid))
        for name, seconds in _threads(pid):
            watches = name in WATCHING_THREADS
            kind = f"workers' {name}s" if watches else "training"
            found[kind] = found.get(kind, 0.0) + seconds
    for warm_parent in parents:
        found["warm parents"] = found.get("warm parents", 0.0) + _of_process(warm_parent)
    return found


def _agent_beside(controller: int) -> int:
    """The agent's process: another child of the raylet that started the controller."""
    raylet = _parent(controller)
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            is_agent = (path / "cmdline").read_bytes().startswith(b"ray::AgentActor")
            if is_agent and _parent(int(path.name)) == raylet:
                return int(path.name)
    raise CrewError("the agent is gone")


def _of_process(pid: int) -> float:
    return sum(seconds for _, seconds in _threads(pid))


def _threads(pid: int) -> Iterator[tuple[str, float]]:
    """Name and CPU time of every thread."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        spent_ns = (thread / "schedstat").read_text().split()[0]
        yield (thread / "comm").read_text().strip(), int(spent_ns) / 1e9


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


if __name__ == "__main__":
    main()

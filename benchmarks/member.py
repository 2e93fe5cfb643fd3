"""Our side of a comparison: a gang of processes without Ray around it, each under orders.

`python benchmarks/member.py --role MODULE:CLASS ...` makes one member's process.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist

from benchmarks.crew import Crew, obey
from benchmarks.rivals.job import Workload, add_workload_arguments
from elasticmoe.model.inventory import build_inventory
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.types import Member
from elasticmoe.runtime.data import SampleReader
from elasticmoe.runtime.gang import Gang, Seat, form_gang
from elasticmoe.runtime.groups import Over, Rendezvous
from elasticmoe.runtime.step import train_step
from elasticmoe.runtime.workplace import Workplace
from elasticmoe.spec.job import JobSpec


class Worker:
    """A member that takes steps; the roles of other measurements derive from it."""

    def __init__(self, workload: Workload, member: int, workers: int, port: int) -> None:
        self.workload, self.member, self.workers, self.port = workload, member, workers, port
        self.gang = self.form(workload.job(), generation=1)
        self._losses: list[float] = []

    def form(self, job: JobSpec, generation: int) -> Gang:
        """Form a gang with the other members; every worker is a failure domain of its own."""
        members = tuple(Member(i, f"node-{i}", f"node-{i}") for i in range(self.workers))
        inventory = build_inventory(job.model, job.data.seq_len)
        return form_gang(
            Workplace(job, inventory, torch.device("cpu")),
            Seat(
                make_plan(job, inventory, members),
                self.member,
                Rendezvous("127.0.0.1", self.port, generation),
            ),
            over=Over(),
            reader=SampleReader(job.data, job.model.vocab_size, job.sample_tokens),
        )

    def join_torch(self) -> None:
        """Join torch's default process group too, for hand-written collectives."""
        store = dist.TCPStore("127.0.0.1", self.port, None, False)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("torch", store),
            rank=self.member,
            world_size=self.workers,
        )

    def take(self, steps: int, waves: int | None = None) -> list[float]:
        """Take steps; returns the seconds of each. `waves` is a rival's knob, ours stay."""
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self._losses.append(train_step(self.gang, 0).result.loss)
            seconds.append(time.perf_counter() - start)
        return seconds

    def phases(self, steps: int) -> list[dict[str, float]]:
        """Take steps; returns the seconds of each phase of each."""
        return [dict(train_step(self.gang, 0).seconds) for _ in range(steps)]

    def losses(self) -> list[float]:
        """Of all steps that `take` took."""
        return self._losses


def start_gang(role: type[Worker], workload: Workload, workers: int) -> tuple[Crew, dist.TCPStore]:
    """Start a gang whose members are `role`; keep the store as long as the crew."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    script = str(Path(__file__).resolve())
    commands = [
        [
            sys.executable,
            script,
            f"--role={role.__module__}:{role.__name__}",
            f"--member={member}",
            f"--workers={workers}",
            f"--port={store.port}",
            *workload.flags(),
        ]
        for member in range(workers)
    ]
    return Crew(f"elasticmoe, {workers} workers", commands, workers), store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_workload_arguments(parser)
    for number in ("--member", "--workers", "--port"):
        parser.add_argument(number, type=int, required=True)
    parser.add_argument("--role", required=True)
    parser.add_argument("--orders", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    module, _, name = args.role.partition(":")
    role = getattr(importlib.import_module(module), name)
    worker = role(Workload.from_args(args), args.member, args.workers, args.port)
    obey(worker, args.orders, args.member)


if __name__ == "__main__":
    main()

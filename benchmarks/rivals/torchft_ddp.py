"""Rival: torchft, one replica group per worker, with a lighthouse of its own.

Run it by its path: it starts the lighthouse and the workers, and starts a worker that died again.
At its best: `manager.allreduce` by hand on one flat buffer (torchft's own DDP wrapper crashes the
survivor when its peer dies during the backward pass), a quorum that forms during the forward
pass, and a short heartbeat, which decides nearly all of its recovery time.
"""

import argparse
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from benchmarks.crew import worker_environment
from benchmarks.rivals.job import Workload
from benchmarks.rivals.loop import Alone, TorchLoop
from benchmarks.rivals.run import make_parser, process_start_s, run


class TorchftTeam(Alone):
    """The replica groups that the lighthouse sees, this worker's place fixed at start."""

    def __init__(self, rank: int, size: int, heartbeat_interval_ms: int) -> None:
        from torchft import Manager, ProcessGroupGloo

        self.rank, self.size = rank, size
        self._loop: TorchLoop | None = None
        self._store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        self.manager = Manager(
            pg=ProcessGroupGloo(timeout=timedelta(seconds=30)),
            load_state_dict=self._load,
            state_dict=self._save,
            min_replica_size=1,
            rank=0,
            world_size=1,
            store_addr="127.0.0.1",
            store_port=self._store.port,
            replica_id=f"worker-{rank}",
            hostname="127.0.0.1",
            heartbeat_interval=timedelta(milliseconds=heartbeat_interval_ms),
            init_sync=False,  # every worker draws the same first weights
        )

    def attach(self, loop: TorchLoop) -> None:
        """Whose state a newcomer is healed with."""
        self._loop = loop

    @property
    def present(self) -> int:
        """See `Team`; a newcomer that is being healed does not take part yet."""
        return self.manager.num_participants()

    def begin(self) -> None:
        """See `Team`."""
        self.waited_s = 0.0
        self.manager.start_quorum()

    def sum(self, tensor: torch.Tensor) -> None:
        """See `Team`."""
        start = time.perf_counter()
        self.manager.wait_quorum()  # allreduce would; it began before the forward pass
        self.waited_s += time.perf_counter() - start
        self.manager.allreduce(tensor, reduce_op=dist.ReduceOp.SUM).wait()

    def commit(self) -> bool:
        """See `Team`."""
        return self.manager.should_commit()

    def _save(self) -> dict[str, Any]:
        assert self._loop is not None, "attach() comes before the first step"
        return self._loop.state_dict()

    def _load(self, state: dict[str, Any]) -> None:
        assert self._loop is not None, "attach() comes before the first step"
        self._loop.load_state_dict(state)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rank", type=int, default=-1, help="set by the launcher")
    parser.add_argument("--max-restarts", type=int, default=3)
    parser.add_argument("--heartbeat-timeout-ms", type=int, default=120)
    parser.add_argument("--heartbeat-interval-ms", type=int, default=30)
    parser.add_argument("--quorum-tick-ms", type=int, default=20)
    args = parser.parse_args()
    if args.rank < 0:
        sys.exit(launch(args))
    moments = {"process": process_start_s(os.getpid()), "imported": time.time()}
    torch.set_num_threads(1)
    team = TorchftTeam(args.rank, args.workers, args.heartbeat_interval_ms)
    moments["joined"] = time.time()
    loop = TorchLoop(Workload.from_args(args).job(), team)
    team.attach(loop)
    launched_s = process_start_s(os.getppid())
    run(loop, args, name="torchft", launched_s=launched_s, moments=moments)
    team.manager.shutdown(wait=False)
    os._exit(0)  # its quorum thread would wait for a peer that has ended too


def launch(args: argparse.Namespace) -> int:
    """Start lighthouse and workers; restart what dies until all have finished."""
    from torchft.coordination import LighthouseServer

    lighthouse = LighthouseServer(
        bind="127.0.0.1:0",
        min_replicas=1,
        join_timeout_ms=100,
        quorum_tick_ms=args.quorum_tick_ms,
        heartbeat_timeout_ms=args.heartbeat_timeout_ms,
    )
    environment = worker_environment(
        {"TORCHFT_LIGHTHOUSE": lighthouse.address(), "RUST_LOG": "warn"}
    )

    def start(rank: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], f"--rank={rank}"]
        return subprocess.Popen(command, env=environment)

    workers = {rank: start(rank) for rank in range(args.workers)}
    restarts = 0
    try:
        while workers:
            time.sleep(0.01)
            for rank, worker in list(workers.items()):
                code = worker.poll()
                if code == 0:
                    del workers[rank]
                elif code is not None:
                    restarts += 1
                    if restarts > args.max_restarts:
                        return 1
                    workers[rank] = start(rank)
    finally:
        for worker in workers.values():
            worker.kill()
        lighthouse.shutdown()
    return 0


if __name__ == "__main__":
    main()

"""Rival: data parallelism under torchrun.

Run it by its path: it starts torchrun, which starts it again as each worker. Two ways of summing
gradients, of which a comparison takes the faster: `--sum flat`, one all-reduce of one buffer
behind the backward pass; `--sum ddp`, DistributedDataParallel (`no_sync` while accumulating,
gradients as bucket views) for the dense part and a flat all-reduce for the experts, whose
gradients autograd does not see.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from benchmarks.crew import worker_environment
from benchmarks.rivals.job import Workload
from benchmarks.rivals.loop import TorchLoop, TorchTeam
from benchmarks.rivals.run import make_parser, process_start_s, run

ENVIRONMENT = {
    # torch 2.13 shares one store between restarts, and gloo then finds dead peers in it
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


def launch_command(
    workers: int, *arguments: str, max_restarts: int = 0, monitor_interval_s: float = 0.1
) -> list[str]:
    """The torchrun command line; `monitor_interval_s`: how often it looks for dead workers."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={workers}", f"--max-restarts={max_restarts}"]
    launcher += [f"--monitor-interval={monitor_interval_s}"]
    return [*launcher, str(Path(__file__).resolve()), *arguments]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-restarts", type=int, default=3)
    parser.add_argument("--sum", choices=["flat", "ddp"], default="flat", dest="how")
    args = parser.parse_args()
    if "RANK" not in os.environ:
        command = launch_command(
            args.workers,
            *sys.argv[1:],
            max_restarts=args.max_restarts,
            monitor_interval_s=0.02,
        )
        sys.exit(subprocess.call(command, env=worker_environment(ENVIRONMENT)))
    moments = {"process": process_start_s(os.getpid()), "imported": time.time()}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    moments["joined"] = time.time()
    loop = TorchLoop(Workload.from_args(args).job(), TorchTeam(), ddp=args.how == "ddp")
    run(
        loop,
        args,
        name=f"torchrun-{args.how}",
        launched_s=process_start_s(os.getppid()),
        moments=moments,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

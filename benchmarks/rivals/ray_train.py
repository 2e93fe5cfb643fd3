"""Rival: Ray Train, data-parallel, on a Ray of its own.

At its best here: no dashboard, workers at ordinary niceness, quick health checks, checkpoints
reported when the loop saves one. Gradients travel as one flat all-reduce (as in torchrun's best).
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.crew import ROOT
from benchmarks.rivals.job import Workload
from benchmarks.rivals.run import make_parser, process_start_s

ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "1",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-failures", type=int, default=3)
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    launched_s = process_start_s(os.getpid())

    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    home = tempfile.mkdtemp(prefix="ray-train-")
    print_events = not args.events
    args.events = args.events or f"{home}/events.jsonl"
    ray.init(address="local", num_cpus=args.workers, include_dashboard=False, log_to_driver=False)
    trainer = TorchTrainer(
        train,
        train_loop_config={"args": vars(args), "launched_s": launched_s},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=False),
        run_config=RunConfig(
            name="rival",
            storage_path=home,
            failure_config=FailureConfig(max_failures=args.max_failures),
        ),
    )
    try:
        trainer.fit()
        if print_events:
            sys.stdout.write(Path(args.events).read_text())
    finally:
        ray.shutdown()
        shutil.rmtree(home, ignore_errors=True)


def train(config: dict[str, Any]) -> None:
    """One worker."""
    import torch

    from benchmarks.rivals.loop import TorchLoop, TorchTeam
    from benchmarks.rivals.run import run

    args = argparse.Namespace(**config["args"])
    torch.set_num_threads(1)
    loop = TorchLoop(Workload.from_args(args).job(), TorchTeam())
    run(loop, args, name="ray-train", launched_s=config["launched_s"])


if __name__ == "__main__":
    main()

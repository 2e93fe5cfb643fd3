"""Rival: Ray Train, data-parallel, on a Ray of its own.

At its best here (`--settings fastest`): no dashboard, workers at ordinary niceness, quick health
checks, checkpoints written straight to a directory, so that none is thrown away because Ray's
controller has not polled yet. `--settings defaults` is Ray Train as it comes, with checkpoints
reported to it. Gradients travel as one flat all-reduce (as in torchrun's best).
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.crew import ROOT
from benchmarks.rivals.job import Workload
from benchmarks.rivals.loop import TorchLoop, TorchTeam
from benchmarks.rivals.run import Saving, make_parser, process_start_s, run

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
FASTEST = {
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "1",
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-failures", type=int, default=3)
    parser.add_argument("--settings", choices=["fastest", "defaults"], default="fastest")
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT if args.settings == "defaults" else {**ENVIRONMENT, **FASTEST})
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
    moments = {"process": process_start_s(os.getpid()), "joined": time.time()}
    args = argparse.Namespace(**config["args"])
    torch.set_num_threads(1)
    loop = TorchLoop(Workload.from_args(args).job(), TorchTeam())
    run(
        loop,
        args,
        name="ray-train",
        launched_s=config["launched_s"],
        moments=moments,
        saving=Reported() if args.settings == "defaults" else None,
    )


class Reported(Saving):
    """Checkpoints as Ray Train's guide has them: reported by all workers, rank 0 with the file."""

    def __init__(self) -> None:
        super().__init__("")

    def restore(self, loop: TorchLoop) -> None:
        """See `Saving`."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as directory:
                Saving(directory).restore(loop)

    def save(self, loop: TorchLoop) -> None:
        """See `Saving`."""
        import ray.train

        with tempfile.TemporaryDirectory() as directory:
            Saving(directory).save(loop)
            checkpoint = ray.train.Checkpoint(directory) if loop.team.rank == 0 else None
            ray.train.report({"step": loop.steps_done}, checkpoint=checkpoint)


if __name__ == "__main__":
    main()

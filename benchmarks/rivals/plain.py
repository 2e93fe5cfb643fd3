"""Rival: a plain torch loop in one process."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.rivals.job import Workload
from benchmarks.rivals.loop import Alone, TorchLoop
from benchmarks.rivals.run import make_parser, process_start_s, run


def main() -> None:
    args = make_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    loop = TorchLoop(Workload.from_args(args).job(), Alone())
    run(loop, args, name="plain", launched_s=process_start_s(os.getpid()))


if __name__ == "__main__":
    main()

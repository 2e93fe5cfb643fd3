"""One job for every side of a comparison: preset, batch, data, optimizer, precision."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from elasticmoe.runtime.dataset import DATASET_NAME
from elasticmoe.runtime.pack import pack, stdlib_sources
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained. `flags` hands it to another process, `from_args` reads it there."""

    preset: str = "small"
    samples: int = 64
    """Of one step, on all workers together."""
    seq_len: int = 256
    waves: int = 4
    """Micro-batches of a step; a rival may be given another number, ours keeps it."""
    data: str = ""
    """A packed corpus; empty: `packed_text`."""
    overrides: tuple[str, ...] = ()
    """`path=value`, as in `elasticmoe train --set`."""

    def job(self, **tables: dict[str, Any]) -> JobSpec:
        """The spec; `tables` replace or add whole sections."""
        plain: dict[str, Any] = {
            "version": 1,
            "name": "benchmark",
            "model": {"preset": self.preset},
            "data": {"sources": [{"path": self.data or packed_text()}], "seq_len": self.seq_len},
            "batch": {"global_samples": self.samples, "num_waves": self.waves},
            "optimizer": {"learning_rate": 3e-4},
            "schedule": {"steps": 1_000_000, "kind": "constant"},
            "workers": {"replicas": 1, "min": 1, "max": 64, "device": "cpu"},
            "storage": {"dir": "unused"},
        }
        return parse_data({**plain, **tables}, self.overrides)

    def flags(self) -> list[str]:
        """Command-line arguments from which `from_args` makes an equal workload."""
        found = [f"--preset={self.preset}", f"--batch={self.samples}", f"--seq-len={self.seq_len}"]
        found += [f"--waves={self.waves}", f"--data={self.data}"]
        return found + [f"--set={override}" for override in self.overrides]

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        """Read what `add_workload_arguments` declared."""
        return cls(
            preset=args.preset,
            samples=args.batch,
            seq_len=args.seq_len,
            waves=args.waves,
            data=args.data,
            overrides=tuple(args.set),
        )

    @property
    def step_tokens(self) -> int:
        """Predicted tokens of one step."""
        return self.samples * self.seq_len


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a workload is made of."""
    default = Workload()
    parser.add_argument("--preset", default=default.preset)
    parser.add_argument("--batch", type=int, default=default.samples, help="samples per step")
    parser.add_argument("--seq-len", type=int, default=default.seq_len)
    parser.add_argument("--waves", type=int, default=default.waves, help="micro-batches per step")
    parser.add_argument("--data", default="", help="packed corpus; default: Python's own sources")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")


def packed_text() -> str:
    """Real text: the top level of the running Python's library as byte tokens, packed once.

    It lies in the system's temporary directory, under a name that includes user and version.
    """
    version = ".".join(str(part) for part in sys.version_info[:3])
    directory = Path(tempfile.gettempdir()) / f"elasticmoe-benchmark-{os.getuid()}-py{version}"
    if not (directory / DATASET_NAME).exists():
        modules: Sequence[Path] = [stdlib_sources().parents[1] / "*.py"]
        pack(modules, directory)
    return str(directory)

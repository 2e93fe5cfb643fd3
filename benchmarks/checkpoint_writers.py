"""The member that takes checkpoints: by our writer, and by variants of torch's `async_save`."""

import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from benchmarks.member import Worker
from elasticmoe.checkpoint.manifest import Manifest, digest_inventory, file_row
from elasticmoe.checkpoint.store import open_store
from elasticmoe.checkpoint.write import seal
from elasticmoe.runtime.snapshots import SnapshotWriter, Written
from elasticmoe.runtime.step import train_step

SNAPSHOTS = ("ours", "thread", "thread, staged aside", "process")
"""Ours, and torch's: on a thread; with the copy made on a thread while the next forward runs;
in a process of its own."""
WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """One worker's times around one checkpoint."""

    quiet_s: list[float]
    """Ordinary steps before it."""
    stall_s: float
    """The call that takes the snapshot; part of the first saving step."""
    saving_s: list[float]
    """Steps from the snapshot on."""
    manifest_s: float
    """From the snapshot to the moment at which the checkpoint was whole."""

    def excess_s(self, manifest_s: float) -> float:
        """Time of all steps that a checkpoint of this duration touched, less ordinary steps."""
        ordinary = statistics.median(self.quiet_s)
        passed = total = 0.0
        for seconds in self.saving_s:
            if passed > manifest_s:
                break
            passed += seconds
            total += seconds - ordinary
        return total


class SavingWorker(Worker):
    """A member that trains and saves."""

    def prepare(self) -> int:
        """Get ready; returns the bytes that this member saves."""
        self.join_torch()
        self._stagers: dict[str, DefaultStager] = {}
        self._writers: dict[str, SnapshotWriter] = {}
        self._before_apply: Callable[[], object] = lambda: None
        self.take(3)
        return sum(t.numel() * t.element_size() for t in self._state().values())

    def round(self, how: str, directory: str, quiet: int, saving: int) -> RoundTimes:
        """Take ordinary steps, then a snapshot and some more steps; wait for its end."""
        dist.barrier()
        quiet_s = [self._timed_step() for _ in range(quiet)]
        start = time.perf_counter()
        future = self._save_ours(directory) if how == "ours" else self._save_dcp(how, directory)
        ended = Future[float]()
        future.add_done_callback(lambda _: ended.set_result(time.perf_counter()))
        stall_s = time.perf_counter() - start
        saving_s = [stall_s + self._timed_step()]
        saving_s += [self._timed_step() for _ in range(saving - 1)]
        manifest_s = ended.result(WAIT_S) - start
        future.result()
        return RoundTimes(quiet_s, stall_s, saving_s, manifest_s)

    def _timed_step(self) -> float:
        start = time.perf_counter()
        wait, self._before_apply = self._before_apply, lambda: None
        self.gang.groups.world.barrier()
        train_step(self.gang, 0)
        wait()
        return time.perf_counter() - start

    def _state(self) -> dict[str, torch.Tensor]:
        """What this member saves, as few large tensors: what suits torch's writer best."""
        homes = self.gang.homes
        mine = slice(0, homes.primary_numel)
        return {
            f"member-{self.member}.master": homes.master[mine],
            f"member-{self.member}.exp_avg": homes.exp_avg[mine],
            f"member-{self.member}.exp_avg_sq": homes.exp_avg_sq[mine],
        }

"""The member that takes checkpoints: by our writer, and by variants of torch's `async_save`."""

import json
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse

from benchmarks.member import Worker
from benchmarks.steps import commit, compute
from elasticmoe.checkpoint.manifest import Manifest, digest_inventory, file_row
from elasticmoe.checkpoint.store import open_store
from elasticmoe.checkpoint.write import delete_checkpoint, seal
from elasticmoe.runtime.checkpoints import CheckpointWriter, Written

STAGING: Final = {
    "thread": StagingOptions(False, False, False, False),
    "thread, copied aside": StagingOptions(False, False, True, False),
    "process": StagingOptions(False, True, False, False),
}
"""Variants of `async_save`: written by a thread; also copied by a thread, while the next forward
and backward run; written by a process. All copy into buffers that are kept; pinned memory needs an
accelerator."""
SNAPSHOTS: Final = ("ours", *STAGING)
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

    def prepare(self, home: str) -> int:
        """Get ready to save in a directory; returns the bytes that this member saves."""
        self.join_torch()
        self._home, self._store = Path(home), open_store(f"{home}/ours")
        self._writer = CheckpointWriter(self._store, self._on_written)
        self._number = 0
        self._stagers = {how: DefaultStager(options) for how, options in STAGING.items()}
        self._flat: dict[str, torch.Tensor] = {}
        self._before_commit: Callable[[], object] = _nothing
        self.take(3)
        return sum(t.numel() * t.element_size() for t in self._state().values())

    def round(self, how: str, quiet: int, saving: int) -> RoundTimes:
        """Take ordinary steps, then a snapshot and some more steps; wait for its end."""
        self._number += 1
        dist.barrier()
        quiet_s = [self._timed_step() for _ in range(quiet)]
        start = time.perf_counter()
        step = self.gang.progress.step
        future = self._save_ours() if how == "ours" else self._save_dcp(how)
        ended = Future[float]()
        future.add_done_callback(lambda _: ended.set_result(time.perf_counter()))
        stall_s = time.perf_counter() - start
        saving_s = [stall_s + self._timed_step()]
        saving_s += [self._timed_step() for _ in range(saving - 1)]
        manifest_s = ended.result(WAIT_S) - start
        future.result()
        dist.barrier()
        if self.member == 0:
            delete_checkpoint(self._store, step)
            shutil.rmtree(self._directory(), ignore_errors=True)
        return RoundTimes(quiet_s, stall_s, saving_s, manifest_s)

    def _timed_step(self) -> float:
        start = time.perf_counter()
        computed = compute(self.gang)
        self._before_commit()
        self._before_commit = _nothing
        commit(self.gang, computed, protected=True)
        return time.perf_counter() - start

    def _state(self) -> dict[str, torch.Tensor]:
        """As much as this member saves, as few large tensors: what suits torch's writer best.

        They are made once, not copied together for every checkpoint, which would slow it down.
        """
        if not self._flat:
            state, units = self.gang.homes.state, self.gang.homes.primary
            kinds = zip(
                ("master", "exp_avg", "exp_avg_sq"),
                zip(*(state.tensors_of(unit) for unit in units), strict=True),
                strict=True,
            )
            self._flat = {f"member-{self.member}.{kind}": torch.cat(parts) for kind, parts in kinds}
        return self._flat

    def _directory(self) -> str:
        """Where torch's checkpoint of this round goes."""
        return str(self._home / f"torch-{self._number}")

    def _save_dcp(self, how: str) -> Future[None]:
        kinds = AsyncCheckpointerType
        answer = dcp.async_save(
            self._state(),
            storage_writer=dcp.FileSystemWriter(self._directory()),
            planner=dcp.DefaultSavePlanner(enable_plan_caching=True),
            async_checkpointer_type=kinds.PROCESS if how == "process" else kinds.THREAD,
            async_stager=self._stagers[how],
        )
        if isinstance(answer, AsyncSaveResponse):
            self._before_commit = answer.staging_completion.result
            return answer.upload_completion
        return answer

    def _save_ours(self) -> Future[None]:
        """As a worker does it; member 0 seals, which in a cluster a process of the agent does."""
        self._done = Future[None]()
        self._writer.take(self.gang)
        return self._done

    def _on_written(self, written: Written) -> None:
        """On the writing thread: member 0 waits for everybody's rows and writes the manifest."""
        try:
            if written.error:
                raise RuntimeError(written.error)
            self._tell(written)
            if self.member == 0:
                self._seal(written)
        except Exception as error:
            self._done.set_exception(error)
        else:
            self._done.set_result(None)

    def _tell(self, written: Written) -> None:
        path = self._rows_path(written.step, self.member)
        path.with_suffix(".partial").write_text(json.dumps(written.files))
        path.with_suffix(".partial").rename(path)

    def _seal(self, written: Written) -> None:
        rows = []
        for member in range(self.workers):
            path = self._rows_path(written.step, member)
            while not path.exists():
                time.sleep(0.001)
            rows += json.loads(path.read_text())
            path.unlink()
        job = self.gang.job
        seal(
            self._store,
            Manifest(
                job=job.name,
                step=written.step,
                timeline=1,
                generation=written.generation,
                model=job.model.model_dump(mode="json"),
                inventory=digest_inventory(self.gang.inventory),
                data="",
                global_samples=job.batch.global_samples,
                seed=job.data.seed,
                files=tuple(file_row(row) for row in rows),
                state=written.state,
            ),
        )

    def _rows_path(self, step: int, member: int) -> Path:
        return self._home / f"rows-{step}-{member}.json"


def _nothing() -> None:
    return

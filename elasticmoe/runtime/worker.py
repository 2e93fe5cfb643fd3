"""A worker process: obeys its agent, trains with its gang, ends when its agent is gone.

Four threads: this one trains; the mailbox reads commands, so that a generation can be broken
while training is stuck in a collective; one beats, to show that the interpreter runs; the last one
waits for a notice that the process is to end.
"""

import os
import socket
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import torch

from elasticmoe.checkpoint.read import Checkpoint, open_checkpoint_at
from elasticmoe.checkpoint.store import Store, open_store
from elasticmoe.errors import ElasticMoEError, GangBrokenError
from elasticmoe.messages.worker import (
    CheckpointFailed,
    CheckpointPart,
    Copies,
    FormGang,
    GangEnded,
    GangFormed,
    StepDone,
    WorkerFailed,
    WorkerParked,
    WorkerReady,
)
from elasticmoe.model.inventory import build_inventory
from elasticmoe.model.self_test import check_gate_and_bias
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.runtime.checkpoints import CheckpointWriter, Written
from elasticmoe.runtime.data import SampleReader
from elasticmoe.runtime.gang import Gang, Seat, form_gang
from elasticmoe.runtime.groups import Rendezvous
from elasticmoe.runtime.guard import Guard, StepsSkippedError
from elasticmoe.runtime.mailbox import Current, Mailbox, name_thread
from elasticmoe.runtime.memory import State
from elasticmoe.runtime.notice import heed_sigterm
from elasticmoe.runtime.optimizer import CorruptedError
from elasticmoe.runtime.recall import Recall
from elasticmoe.runtime.step import (
    CommittedStep,
    compare_homes,
    step_metrics,
    train_step,
)
from elasticmoe.runtime.workplace import Workplace, layout_of, prepare_modules
from elasticmoe.spec.job import JobSpec
from elasticmoe.vault.contents import read_copies
from elasticmoe.vault.pulse import Pulse
from elasticmoe.vault.snapshot import read_snapshots
from elasticmoe.vault.vault import Vault

_MEASURED_STEP: Final = 3
"""After this many steps of a generation the yardstick of MFU is measured: not before the first
step, which somebody waits for."""


def prepare(job: JobSpec) -> None:
    """Do, in the process that workers are forked from, what each of them would do at its start."""
    inventory = build_inventory(job.model, job.data.seq_len)
    check_gate_and_bias(job.model.moe, job.balance, torch.device("cpu"))
    prepare_modules(job, inventory)


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a worker of a job needs in its own process, whatever its number."""

    inventory: Inventory
    reader: SampleReader
    store: Store

    @classmethod
    def of(cls, job: JobSpec) -> "Equipment":
        """Gather it.

        Raises:
            ElasticMoEError: data or storage cannot be used.
        """
        return cls(
            build_inventory(job.model, job.data.seq_len),
            SampleReader(job.data, job.model.vocab_size, job.sample_tokens),
            open_store(job.storage.checkpoints or f"{job.storage.dir}/checkpoints"),
        )


_TOUCHED_BYTES: Final = 1 << 26
"""Memory that a process which stands by has from the kernel already, page by page: some 2 us per
4 KiB, which a recovery would wait for."""
_gathered: list[Equipment] = []
"""By a process that stands by for its job."""


def get_ready(job: JobSpec) -> None:
    """Do, in a process that stands by, what does not depend on which worker it will be."""
    torch.set_num_threads(job.workers.threads)
    first = threading.Thread(target=threading.Event().set)  # the next ones start sooner
    first.start()
    first.join()
    torch.zeros(_TOUCHED_BYTES, dtype=torch.uint8)  # freed, but stays with this process
    with suppress(ElasticMoEError):  # the worker will meet it, and can report it
        _gathered.append(Equipment.of(job))


def run_worker(
    sock: socket.socket, job: JobSpec, worker: int, log_dir: str, pulse: str = ""
) -> None:
    """Serve one agent until it hangs up or training fails for good.

    Args:
        sock: stream socket to the agent; JSON lines both ways.
        job: what to train.
        worker: this worker's number.
        log_dir: where this process's output goes (its agent opened the file).
        pulse: file of the page on which it shows what it does; empty: nobody watches.
    """
    torch.set_num_threads(job.workers.threads)
    mailbox = Mailbox(sock)
    heed_sigterm(mailbox, worker)
    mailbox.send(WorkerReady(worker, os.getpid()))
    try:
        Service(mailbox, job, worker, pulse).run()
    except Exception as error:
        traceback.print_exc()
        code = error.code if isinstance(error, ElasticMoEError) else type(error).__name__
        message = f"{str(error) or type(error).__name__} (output of worker {worker}: {log_dir})"
        seat = mailbox.current
        mailbox.send(
            WorkerFailed(
                generation=seat.generation if seat else 0,
                worker=worker,
                step=mailbox.step,
                code=code,
                message=message,
            )
        )
        os._exit(1)  # threads may hang in broken groups


def start_beating(path: str) -> Pulse:
    """Show from now on that this process runs, and that the calling thread lives."""
    fd = os.open(path, os.O_RDWR)
    pulse = Pulse(fd)
    os.close(fd)
    pulse.lifeline.hold()

    def beat() -> None:
        name_thread("pulse")
        pulse.beat_for_ever()

    threading.Thread(target=beat, daemon=True, name="pulse").start()
    return pulse


class Service:
    """One generation after the other, in the same memory."""

    def __init__(self, mailbox: Mailbox, job: JobSpec, worker: int, pulse: str) -> None:
        self._mailbox, self._job, self._worker = mailbox, job, worker
        self._device = choose_device(job, worker)
        check_gate_and_bias(job.model.moe, job.balance, self._device)
        # Not before the accelerator is awake: that may lock the interpreter for seconds.
        self._pulse = start_beating(pulse) if pulse else None
        self._equipment = _gathered.pop() if _gathered else Equipment.of(job)
        self._writer = CheckpointWriter(self._equipment.store, self._report_part)
        self._workplace: Workplace | None = None
        self._vault_path = ""
        self._parking = threading.Lock()
        self._parked = 0
        """Newest generation that this worker has said it has left."""
        self._adopted: list[tuple[int, Vault]] = []
        """Vaults of dead workers that it reads to join a generation."""
        mailbox.on_peer_died = self._park_early

    def _report_part(self, written: Written) -> None:
        self._mailbox.send(_as_report(self._worker, written))

    def run(self) -> None:
        """Join every generation that the agent names."""
        while True:
            form, current = self._mailbox.next_form()
            try:
                self._take_part(form, current)
            except (GangBrokenError, CorruptedError, StepsSkippedError) as error:
                code = "" if isinstance(error, GangBrokenError) else error.code
                self._park(form.generation, str(error), code)

    def _park(self, generation: int, reason: str, code: str = "") -> None:
        """Say, once, that a generation is left, and what this worker has in memory."""
        with self._parking:
            if generation <= self._parked:
                return
            self._parked = generation
        step, copies = self._mailbox.step, self._copies()
        adopted = [
            read_copies(vault, worker, is_alive=False)
            for worker, vault in (self._adopted if code == CorruptedError.code else ())
        ]
        report = WorkerParked(generation, self._worker, step, reason, copies, code, tuple(adopted))
        self._mailbox.send(report)

    def _park_early(self, generation: int, reason: str) -> None:
        """Called beside the training thread, on a generation that is broken: if that thread is
        computing, nothing it does until it notices touches what is committed or prepared, because
        the first collective after that fails. So nobody needs to wait for it."""
        if self._pulse is not None and self._pulse.phase == "compute":
            self._park(generation, reason)

    def _take_part(self, form: FormGang, current: Current) -> None:
        gang = self._join(form, current)
        self._adopted = []  # what is in them is of no use from here on
        self._mailbox.step = gang.progress.step
        formed = GangFormed(form.generation, self._worker, gang.progress.step + 1, gang.seconds)
        self._mailbox.send(formed)
        try:
            pauses, instructed = self._train(gang, form)
            if not pauses:  # in a pause the writing goes on
                self._writer.wait(gang.groups.over)
        finally:
            gang.groups.close()
        snapshots = read_snapshots(gang.homes.vault)
        step = gang.progress.step
        self._mailbox.send(GangEnded(form.generation, self._worker, step, snapshots, instructed))

    def _join(self, form: FormGang, current: Current) -> Gang:
        self._adopted = []  # by a generation that never formed: memory that may be needed now
        if self._pulse is not None:
            self._pulse.restart_count()
            self._pulse.enter("form", 0)
        workplace = self._workplace
        if workplace is None or form.vault not in ("", self._vault_path):
            vault = self._open(form.vault) if form.vault else None
            workplace = Workplace(
                self._job, self._equipment.inventory, self._device, vault, self._pulse
            )
            self._workplace, self._vault_path = workplace, form.vault
        start: Checkpoint | Recall | None = None
        if form.memory is not None:
            states = tuple(self._adopt(path) for _, path in form.adopted)
            self._adopted = [
                (dead, state.vault) for (dead, _), state in zip(form.adopted, states, strict=True)
            ]
            start = Recall(form.memory, states)
        elif form.checkpoint is not None:
            start = open_checkpoint_at(form.checkpoint)
        rendezvous = Rendezvous(form.store_host, form.store_port, form.generation)
        return form_gang(
            workplace,
            Seat(Plan.from_json(form.plan), form.member, rendezvous),
            over=current.over,
            start=start,
            reader=self._equipment.reader,
            on_groups=lambda groups: setattr(current, "breaker", groups.break_now),
        )

    def _open(self, path: str) -> Vault:
        fd = os.open(path, os.O_RDWR)
        try:
            return Vault(fd, layout_of(self._job, self._equipment.inventory))
        finally:
            os.close(fd)

    def _adopt(self, path: str) -> State:
        precision = self._job.model.precision
        return State(self._equipment.inventory, self._open(path), precision, torch.device("cpu"))

    def _copies(self) -> Copies | None:
        if self._workplace is None:
            return None
        vault, pulse = self._workplace.state.vault, self._pulse
        phase, collective = (pulse.phase, pulse.collective) if pulse else ("", 0)
        return read_copies(vault, self._worker, is_alive=True, phase=phase, collective=collective)

    def _train(self, gang: Gang, form: FormGang) -> tuple[bool, int]:
        """Take steps until the schedule ends, or a stop or a pause takes effect.

        Returns:
            Whether it is a pause, which leaves everything in memory and saves nothing; the newest
            command that took effect.
        """
        job, settled = gang.job, form.first_command - 1
        first_step, snapshot_s, guard = gang.progress.step, 0.0, Guard()
        interval = job.protection.hash_interval_steps
        if form.memory is not None and first_step == job.schedule.steps:
            if interval:
                compare_homes(gang)  # the step may have been committed without
            self._writer.take(gang)  # whoever was to write the last checkpoint may have died
        while gang.progress.step < job.schedule.steps:
            gang.groups.over.check()
            done = train_step(gang, self._mailbox.newest)
            step = self._mailbox.step = gang.progress.step
            newest = done.result.command
            commands = self._mailbox.take(newest, settled)
            actions = {command.action for command in commands}
            settled = max(settled, newest)
            if gang.is_first_member:
                if step == first_step + _MEASURED_STEP:
                    gang.measure()
                report = _step_report(gang, form.generation, done, settled)
                self._mailbox.send(replace(report, snapshot_s=snapshot_s))
            last = "stop" in actions or step == job.schedule.steps
            pauses = "pause" in actions and not last
            saves = last or "checkpoint" in actions or step % job.checkpoint.interval_steps == 0
            if interval and (saves or actions or step % interval == 0):
                compare_homes(gang)  # before anything is written, kept or moved
            if saves:
                self._writer.take(gang)
            for command in commands:
                if command.action == "protect":
                    assert command.plan is not None, "protection is restored by a plan"
                    gang.rehome(Plan.from_json(command.plan))
            snapshot_s = _take_snapshot(gang) if "snapshot" in actions else 0.0
            if pauses:
                gang.groups.world.barrier()  # nobody hangs up on a peer that still listens
            if last or pauses:
                return pauses, settled
            guard.note(gang, done.result)
        return False, settled


def _step_report(gang: Gang, generation: int, done: CommittedStep, settled: int) -> StepDone:
    return StepDone(
        generation=generation,
        step=gang.progress.step,
        seconds=sum(done.seconds.values()),
        loss=done.result.loss,
        metrics=step_metrics(gang, done),
        samples=done.result.samples,
        instructed=settled,
    )


def _take_snapshot(gang: Gang) -> float:
    """Returns the seconds that it took."""
    began_s = time.perf_counter()
    gang.take_snapshot()
    return time.perf_counter() - began_s


def _as_report(worker: int, written: Written) -> CheckpointPart | CheckpointFailed:
    if written.error:
        return CheckpointFailed(written.generation, worker, written.step, written.error)
    return CheckpointPart(written.generation, worker, written.step, written.files, written.state)


def choose_device(job: JobSpec, worker: int) -> torch.device:
    """The device of a worker: its own GPU where there is one, else the CPU."""
    wanted = job.workers.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda", worker % max(torch.cuda.device_count(), 1))
    torch.cuda.set_device(device)
    return device

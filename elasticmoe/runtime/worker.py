"""A worker process: obeys its agent, trains with its gang, ends when its agent is gone.

Two threads: this one trains; the control thread reads commands, so that a generation can be
broken while training is stuck in a collective.
"""

import os
import socket
import threading
import traceback
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch

from elasticmoe.checkpoint.read import Checkpoint, open_checkpoint_at
from elasticmoe.checkpoint.store import open_store
from elasticmoe.errors import ElasticMoEError, GangBrokenError
from elasticmoe.messages.codec import by_name, from_line, to_line
from elasticmoe.messages.worker import (
    BreakGang,
    CheckpointFailed,
    CheckpointPart,
    FormGang,
    GangEnded,
    GangFormed,
    Instruct,
    StepDone,
    WorkerCommand,
    WorkerFailed,
    WorkerParked,
    WorkerReady,
    WorkerReport,
)
from elasticmoe.model.inventory import build_inventory
from elasticmoe.model.self_test import check_gate_and_bias
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.runtime.data import SampleReader
from elasticmoe.runtime.gang import Gang, Seat, form_gang
from elasticmoe.runtime.groups import Over, Rendezvous
from elasticmoe.runtime.snapshots import SnapshotWriter, Written
from elasticmoe.runtime.step import CommittedStep, compare_homes, step_metrics, train_step
from elasticmoe.spec.job import JobSpec

_COMMANDS = by_name(WorkerCommand)
_MEASURED_STEP = 3
"""After this many steps of a generation the yardstick of MFU is measured: not before the first
step, which somebody waits for."""


def run_worker(sock: socket.socket, job: JobSpec, worker: int, log_dir: str) -> None:
    """Serve one agent until it hangs up or training fails for good.

    Args:
        sock: stream socket to the agent; JSON lines both ways.
        job: what to train.
        worker: this worker's number.
        log_dir: where this process's output goes (its agent opened the file).
    """
    torch.set_num_threads(job.workers.threads)
    mailbox = Mailbox(sock)
    mailbox.send(WorkerReady(worker, os.getpid()))
    try:
        _serve(mailbox, job, worker)
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


@dataclass(slots=True)
class _Current:
    """The generation this worker is in, or was told to join next."""

    generation: int
    over: Over
    breaker: Any
    """`Groups.break_now` once the groups exist."""


class Mailbox:
    """This worker's end of the line to its agent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._sending = sock, threading.Lock()
        self._forms: SimpleQueue[FormGang] = SimpleQueue()
        self._instructions: dict[int, Instruct] = {}
        self.current: _Current | None = None
        self.newest = 0
        """Newest command such that it and all before it have arrived."""
        self.step = 0
        threading.Thread(target=self._listen, daemon=True, name="control").start()

    def send(self, report: WorkerReport) -> None:
        """Report to the agent. Nobody trains for nobody: without one this process ends."""
        try:
            with self._sending:
                self._sock.sendall(to_line(report))
        except OSError:
            os._exit(0)

    def next_form(self) -> tuple[FormGang, _Current]:
        """Wait for the order to join a generation."""
        form = self._forms.get()
        current = self.current
        while current is None or current.generation != form.generation:
            form = self._forms.get()  # a newer order has overtaken this one
            current = self.current
        return form, current

    def take(self, upto: int, after: int) -> list[Instruct]:
        """Commands numbered (after, upto], in order."""
        return [self._instructions[number] for number in range(after + 1, upto + 1)]

    def _listen(self) -> None:
        with self._sock.makefile("rb") as lines:
            for line in lines:
                self._obey(from_line(_COMMANDS, line))
        os._exit(0)  # the agent is gone

    def _obey(self, command: FormGang | BreakGang | Instruct) -> None:
        current = self.current
        known = current.generation if current else 0
        if command.generation < known:
            return
        if isinstance(command, FormGang):
            if command.generation == known:
                return  # repeated by a controller that took over
            self._leave(f"generation {command.generation} follows")
            self._instructions.clear()
            self.newest = command.first_command - 1
            self.current = _Current(command.generation, Over(), None)
            self._forms.put(command)
        elif isinstance(command, BreakGang):
            self._leave("the controller ended this generation")
        elif command.generation == known:
            self._instructions[command.number] = command
            while self.newest + 1 in self._instructions:
                self.newest += 1

    def _leave(self, reason: str) -> None:
        if self.current is not None:
            self.current.over.set(reason)
            if self.current.breaker is not None:
                self.current.breaker(reason)


def _serve(mailbox: Mailbox, job: JobSpec, worker: int) -> None:
    device = choose_device(job, worker)
    check_gate_and_bias(job.model.moe, job.balance, device)
    inventory = build_inventory(job.model, job.data.seq_len)
    reader = SampleReader(job.data, job.model.vocab_size, job.sample_tokens)
    store = open_store(job.storage.checkpoints or f"{job.storage.dir}/checkpoints")
    writer = SnapshotWriter(store, lambda written: mailbox.send(_as_report(worker, written)))
    while True:
        form, current = mailbox.next_form()
        try:
            gang = _join(job, inventory, form, current, device, reader)
            mailbox.step = gang.progress.step
            formed = GangFormed(form.generation, worker, gang.progress.step + 1, gang.seconds)
            mailbox.send(formed)
            try:
                _train(mailbox, gang, writer, form)
            finally:
                gang.groups.close()
            writer.wait()
            mailbox.send(GangEnded(form.generation, worker, gang.progress.step))
        except GangBrokenError as error:
            mailbox.send(WorkerParked(form.generation, worker, mailbox.step, str(error)))


def _join(
    job: JobSpec,
    inventory: Inventory,
    form: FormGang,
    current: _Current,
    device: torch.device,
    reader: SampleReader,
) -> Gang:
    checkpoint: Checkpoint | None = None
    if form.checkpoint is not None:
        checkpoint = open_checkpoint_at(form.checkpoint)
    rendezvous = Rendezvous(form.store_host, form.store_port, form.generation)
    gang = form_gang(
        job,
        inventory,
        Seat(Plan.from_json(form.plan), form.member, rendezvous),
        over=current.over,
        device=device,
        checkpoint=checkpoint,
        reader=reader,
        on_groups=lambda groups: setattr(current, "breaker", groups.break_now),
    )
    return gang


def _train(mailbox: Mailbox, gang: Gang, writer: SnapshotWriter, form: FormGang) -> None:
    """Take steps until the schedule ends or a stop takes effect."""
    job, progress, settled = gang.job, gang.progress, form.first_command - 1
    first_step = progress.step
    while progress.step < job.schedule.steps:
        gang.groups.over.check()
        done = train_step(gang, mailbox.newest)
        mailbox.step = progress.step
        actions = {command.action for command in mailbox.take(done.result.command, settled)}
        settled = max(settled, done.result.command)
        if gang.is_first_member:
            if progress.step == first_step + _MEASURED_STEP:
                gang.measure()
            mailbox.send(_step_report(gang, form.generation, done, settled))
        last = "stop" in actions or progress.step == job.schedule.steps
        if last or "checkpoint" in actions or progress.step % job.checkpoint.interval_steps == 0:
            writer.take(gang)
        interval = job.protection.hash_interval_steps
        if interval and (last or progress.step % interval == 0):
            compare_homes(gang)
        if last:
            return


def _step_report(gang: Gang, generation: int, done: CommittedStep, settled: int) -> StepDone:
    samples = gang.job.batch.global_samples
    step = gang.progress.step
    return StepDone(
        generation=generation,
        step=step,
        seconds=sum(done.seconds.values()),
        loss=done.result.loss,
        metrics=step_metrics(gang, done),
        samples=((step - 1) * samples, step * samples),
        instructed=settled,
    )


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

"""A training process that trains nothing: it says what a real one would, without torch."""

import ctypes
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from elasticmoe.messages.codec import by_name, from_line, to_line
from elasticmoe.messages.worker import (
    BreakGang,
    CheckpointPart,
    Copies,
    FormGang,
    GangEnded,
    GangFormed,
    Instruct,
    StepDone,
    WorkerCommand,
    WorkerParked,
    WorkerReady,
)
from elasticmoe.spec.job import JobSpec
from elasticmoe.vault.contents import read_copies
from elasticmoe.vault.layout import VaultLayout
from elasticmoe.vault.pulse import Pulse
from elasticmoe.vault.vault import Vault

T = TypeVar("T")
STEP_S = 0.02
COMMANDS = by_name(WorkerCommand)
LAYOUT = VaultLayout(num_units=6, num_layers=1, num_experts=2, numel=12, largest_unit=2, itemsize=4)


def run_worker(sock: socket.socket, job: JobSpec, worker: int, log_dir: str, pulse: str) -> None:
    """Take a step every `STEP_S` until the job's steps are done or the agent is gone.

    Its heart stops, and nothing else, at SIGUSR1. At SIGUSR2 it keeps the interpreter's lock for
    ever, as a call into a library that hangs would: no thread of Python's runs any more.
    """
    FakeWorker(sock, job, worker, pulse, keep=None).run()


def run_with_vault(
    sock: socket.socket, job: JobSpec, worker: int, log_dir: str, pulse: str
) -> None:
    """The same, with all units in its vault, from `FromMemory.step` where it is told to."""
    FakeWorker(sock, job, worker, pulse, keep=Kept(worker)).run()


def crash_at_once(sock: socket.socket, job: JobSpec, worker: int, log_dir: str, pulse: str) -> None:
    """Raise before the first report."""
    raise RuntimeError(json.dumps({"worker": worker}))


def start_beating(path: str) -> Pulse:
    """Beat every 10 ms, until SIGUSR1, or as long as there is an interpreter to run in."""
    pulse = open_file(path, Pulse)
    pulse.lifeline.hold()
    goes_on = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: goes_on.set())
    signal.signal(signal.SIGUSR2, lambda *_: ctypes.PyDLL(None).pause())

    def beat() -> None:
        while not goes_on.wait(0.01):
            pulse.beat()

    threading.Thread(target=beat, daemon=True).start()
    return pulse


def open_file(path: str, kind: Callable[[int], T]) -> T:
    fd = os.open(path, os.O_RDWR)
    try:
        return kind(fd)
    finally:
        os.close(fd)


class Kept:
    """What a worker with a vault keeps in it: the step, in every unit's stamps."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._vault: Vault | None = None
        self._path = ""

    def join(self, gang: FormGang) -> dict[str, float]:
        """Open what the order names; tell what was found there."""
        if gang.vault:
            self._path = gang.vault
            self._vault = open_file(gang.vault, lambda fd: Vault(fd, LAYOUT))
        assert self._vault is not None
        found = {"vault_step": self._vault.step}
        for dead, path in gang.adopted:
            found[f"adopted_step_{dead}"] = open_file(path, Vault).step
        self._vault.join(gang.generation)
        return found

    def commit(self, step: int) -> None:
        vault = self._vault
        assert vault is not None
        vault.stamps_U2[...] = step + 1
        nothing_LE = np.zeros((1, 2))
        vault.write_progress(step, step, nothing_LE, nothing_LE)

    def copies(self) -> Copies | None:
        return read_copies(self._vault, self._worker, is_alive=True) if self._vault else None


class FakeWorker:
    """Obeys its agent."""

    def __init__(
        self, sock: socket.socket, job: JobSpec, worker: int, pulse: str, keep: Kept | None
    ) -> None:
        self._sock, self._job, self._worker = sock, job, worker
        self._say(WorkerReady(worker, os.getpid()))
        self._pulse = start_beating(pulse)
        self._kept = keep
        self._gang: FormGang | None = None
        self._peers: Peers | None = None
        self._step, self._stop, self._instructed = 0, False, 0

    def run(self) -> None:
        """Serve until the agent is gone."""
        buffer = b""
        while True:
            self._sock.settimeout(None if self._gang is None else STEP_S)
            try:
                received = self._sock.recv(1 << 16)
            except TimeoutError:
                self._take_step()
                continue
            if not received:
                return
            buffer += received
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                self._obey(from_line(COMMANDS, line))

    def _obey(self, command: WorkerCommand) -> None:
        match command:
            case FormGang():
                self._join(command)
            case BreakGang() if self._gang is not None:
                copies = self._kept.copies() if self._kept else None
                generation = self._gang.generation
                self._say(WorkerParked(generation, self._worker, self._step, "told to", copies))
                self._gang = None
            case Instruct():
                self._stop, self._instructed = command.action in ("stop", "pause"), command.number

    def _join(self, gang: FormGang) -> None:
        self._gang = gang
        self._pulse.restart_count()
        self._pulse.enter("form", 0)
        found = self._kept.join(gang) if self._kept else {}
        self._step = int(gang.checkpoint[-8:]) if gang.checkpoint else 0
        if gang.memory is not None:
            self._step = gang.memory.step
        began = time.monotonic()
        self._peers = Peers(gang)
        found["groups"] = time.monotonic() - began
        self._say(GangFormed(gang.generation, self._worker, self._step + 1, found))

    def _take_step(self) -> None:
        gang, peers, job = self._gang, self._peers, self._job
        assert gang is not None
        assert peers is not None
        if not peers.have_taken(self._step):
            return  # the agent will say why, if they never do
        step = self._step = self._step + 1
        self._pulse.enter("compute", step)
        self._pulse.count_collective()
        if self._kept is not None:
            self._kept.commit(step)
        if gang.member == 0:
            size = job.batch.global_samples
            samples = ((step - 1) * size, step * size)
            self._say(
                StepDone(gang.generation, step, STEP_S, 1 / step, {}, samples, self._instructed)
            )
        if step == job.schedule.steps or peers.end_with(step, wanted=self._stop):
            self._say(CheckpointPart(gang.generation, self._worker, step, [], {"step": step}))
            self._say(GangEnded(gang.generation, self._worker, step))
            self._gang = None

    def _say(self, message: object) -> None:
        self._sock.sendall(to_line(message))


class Peers:
    """The members of a generation keep in step, and agree which step is the last one."""

    def __init__(self, gang: FormGang) -> None:
        """Wait in the rendezvous store until every member is there.

        Raises:
            RuntimeError: the store has ended.
        """
        from torch.distributed import TCPStore

        self._store = TCPStore(gang.store_host, gang.store_port, is_master=False)
        self._members = len(gang.plan["members"])
        self._key = f"generation-{gang.generation}"
        self._entered = -1
        while not self._all_have(0):
            time.sleep(0.001)

    def have_taken(self, step: int) -> bool:
        """Say that this member has taken a step; whether all have."""
        try:
            return self._all_have(step)
        except RuntimeError:  # the store has ended, and the generation with it
            return False

    def _all_have(self, step: int) -> bool:
        new = step != self._entered
        self._entered = step
        return int(self._store.add(f"{self._key}-{step}", int(new))) >= self._members

    def end_with(self, step: int, *, wanted: bool) -> bool:
        """Whether a step is the last one; who wants that proposes one that nobody has begun."""
        key = f"{self._key}-last"
        try:
            if wanted:
                self._store.compare_set(key, "", str(step + 2))
            return bool(self._store.check([key])) and int(self._store.get(key)) == step
        except RuntimeError:
            return False

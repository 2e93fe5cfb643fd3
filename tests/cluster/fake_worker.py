"""A training process that trains nothing: it says what a real one would, without torch."""

import json
import os
import socket
import time

from elasticmoe.messages.codec import by_name, from_line, to_line
from elasticmoe.messages.worker import (
    BreakGang,
    CheckpointPart,
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

STEP_S = 0.02
COMMANDS = by_name(WorkerCommand)


def run_worker(sock: socket.socket, job: JobSpec, worker: int, log_dir: str) -> None:
    """Take a step every `STEP_S` until the job's steps are done or the agent is gone."""
    sock.sendall(to_line(WorkerReady(worker, os.getpid())))
    gang: FormGang | None = None
    step, stop, instructed = 0, False, 0
    buffer = b""
    while True:
        sock.settimeout(None if gang is None else STEP_S)
        try:
            received = sock.recv(1 << 16)
        except TimeoutError:
            received = None
        if received == b"":
            return
        buffer += received or b""
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            command = from_line(COMMANDS, line)
            if isinstance(command, FormGang):
                gang = command
                step = int(gang.checkpoint[-8:]) if gang.checkpoint else 0
                began = time.monotonic()
                meet(command)
                groups_s = time.monotonic() - began
                say = GangFormed(gang.generation, worker, step + 1, {"groups": groups_s})
                sock.sendall(to_line(say))
            elif isinstance(command, BreakGang) and gang is not None:
                sock.sendall(to_line(WorkerParked(gang.generation, worker, step, "told to")))
                gang = None
            elif isinstance(command, Instruct):
                stop, instructed = command.action == "stop", command.number
        if gang is None or received is not None:
            continue
        step += 1
        if gang.member == 0:
            size = job.batch.global_samples
            samples = ((step - 1) * size, step * size)
            done = StepDone(gang.generation, step, STEP_S, 1 / step, {}, samples, instructed)
            sock.sendall(to_line(done))
        if step == job.schedule.steps or stop:
            part = CheckpointPart(gang.generation, worker, step, [], {"step": step})
            sock.sendall(to_line(part))
            sock.sendall(to_line(GangEnded(gang.generation, worker, step)))
            gang = None


def meet(gang: FormGang) -> None:
    """Wait in the rendezvous store until every member is there."""
    from torch.distributed import TCPStore

    store = TCPStore(gang.store_host, gang.store_port, is_master=False)
    key = f"generation-{gang.generation}"
    store.add(key, 1)
    while int(store.add(key, 0)) < len(gang.plan["members"]):
        time.sleep(0.001)


def crash_at_once(sock: socket.socket, job: JobSpec, worker: int, log_dir: str) -> None:
    """Raise before the first report."""
    raise RuntimeError(json.dumps({"worker": worker}))

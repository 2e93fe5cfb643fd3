"""When a forked worker is as good as gone: no thread of it will run again."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from elasticmoe.cluster.worker_process import Worker, core_waits
from elasticmoe.vault.pulse import Pulse, create_pulse

BIG = 1 << 28
"""Bytes that the kernel takes apart for some 12 ms."""
CHILD = """
import ctypes, mmap, os, socket, sys, threading, time
from elasticmoe.vault.pulse import Pulse
Pulse(int(sys.argv[1])).lifeline.hold()
sock = socket.socket(fileno=int(sys.argv[2]))
big = mmap.mmap(-1, int(sys.argv[3]))
for page in range(0, len(big), 4096):
    big[page] = 1
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
sock.sendall(b"ready\\n" * 1000)
sock.recv(1)
ctypes.CDLL(None).syscall(60, 0)  # ends this thread alone
"""


class Child:
    """A process that holds its lifeline, and what its agent has of it."""

    def __init__(self) -> None:
        self.fd = create_pulse("test")
        ours, theirs = socket.socketpair()
        self.ours, handles = ours, (self.fd, theirs.fileno())
        words = [sys.executable, "-c", CHILD, *map(str, handles), str(BIG)]
        self.process = subprocess.Popen(words, pass_fds=handles)
        theirs.close()

    async def worker(self) -> Worker:
        """As an agent sees it once it is ready."""
        reader, writer = await asyncio.open_connection(sock=self.ours)
        await reader.readexactly(len("ready\n"))
        self.words = 0

        async def read() -> None:
            while await reader.readline():
                self.words += 1

        worker = Worker(1, "", "", None, writer, asyncio.ensure_future(read()))
        worker.forked(self.process.pid)
        return worker

    async def until_end_is_seen(self, worker: Worker) -> None:
        seen = asyncio.Event()

        async def note() -> None:
            seen.set()

        worker.watch_lifeline(Pulse(self.fd), note)
        await asyncio.wait_for(seen.wait(), 10)


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.process.kill()
    child.process.wait()
    os.close(child.fd)


def test_a_killed_process_is_final_before_its_memory_is_taken_apart(child: Child) -> None:
    async def scenario() -> None:
        worker = await child.worker()
        os.kill(worker.pid, signal.SIGKILL)
        await child.until_end_is_seen(worker)

        evidence = await worker.until_final()

        assert evidence == "killed by signal 9"
        assert not select.select([worker.pidfd], [], [], 0)[0]  # the kernel is not done with it
        await asyncio.wait_for(worker.until_gone(), 0.01)  # it is not waited for
        await worker.reading  # all that it has said was heard, though its socket is open
        assert child.words == 999

    asyncio.run(scenario())


def test_a_process_of_which_one_thread_runs_on_is_not_final(child: Child) -> None:
    async def scenario() -> None:
        worker = await child.worker()
        worker.writer.write(b"x")
        await child.until_end_is_seen(worker)

        assert await worker.until_final() == ""
        assert len(core_waits(worker.pid)) > 1
        assert not worker.is_final

    asyncio.run(scenario())


def test_a_process_that_was_reaped_is_not_known_to_have_been_killed(child: Child) -> None:
    async def scenario() -> None:
        worker = await child.worker()
        child.process.kill()
        child.process.wait()

        assert await worker.until_final() == ""

    asyncio.run(scenario())

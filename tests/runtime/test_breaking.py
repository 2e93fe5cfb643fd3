"""Everybody who waits in a collective is freed at once, whoever the missing peer's neighbours are.

Most members of a collective never speak with the one that is missing: no connection of theirs is
reset when it dies, and none at all when it merely stops.
"""

import multiprocessing
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from gangs import plan_for, tiny_job

from elasticmoe.errors import GangBrokenError
from elasticmoe.runtime.groups import Groups, Over, Rendezvous

pytestmark = [pytest.mark.dist, pytest.mark.timeout(60)]
MEMBERS = 4
FREED_S = 0.5
"""10 ms where nothing else runs; of two cores eight busy processes leave a member a quarter."""
STUCK_S = 0.05
"""Whoever is in a collective of milliseconds for so long waits for somebody."""
ANSWER_S = 20.0
ROWS = 64


def all_to_all(gang: Groups, missing: int) -> None:
    sent, received = torch.zeros(2, MEMBERS * ROWS, 16).unbind()
    gang.world.all_to_all(received, sent, [ROWS] * MEMBERS, [ROWS] * MEMBERS)


def barrier(gang: Groups, missing: int) -> None:
    gang.world.barrier()


def receive(gang: Groups, missing: int) -> None:
    gang.world.receive(torch.zeros(ROWS), missing, 0).wait()


Collective = Callable[[Groups, int], None]


@dataclass(frozen=True)
class Member:
    """A process of its own, and the line to it."""

    pid: int
    line: socket.socket

    def hears(self, word: bytes) -> None:
        self.line.sendall(word)

    def says(self, word: bytes) -> None:
        assert select.select([self.line], [], [], ANSWER_S)[0], f"no {word!r} came"
        assert self.line.recv(1) == word


def live(member: int, port: int, line: socket.socket, collective: Collective) -> None:
    """One generation after the other: enter the collective, unless it is this member's turn to be
    missing; say so; leave when told to break."""
    for generation in range(1, MEMBERS + 1):
        missing = generation - 1
        meeting = Rendezvous("127.0.0.1", port, generation)
        over = Over()
        gang = Groups(plan_for(tiny_job(), MEMBERS), member, meeting, torch.device("cpu"), over)
        gang.world.barrier()
        told = threading.Event()

        def obey(gang: Groups = gang, told: threading.Event = told) -> None:
            assert line.recv(1) == b"b"
            gang.break_now("a drill")
            told.set()

        threading.Thread(target=obey, daemon=True).start()
        line.sendall(b"e")
        if member != missing:
            with pytest.raises(GangBrokenError):
                collective(gang, missing)
            line.sendall(b"f")
        assert told.wait(ANSWER_S)
        gang.close()
        line.sendall(b"c")


@pytest.fixture
def members(request: pytest.FixtureRequest) -> Iterator[list[Member]]:
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    made: list[Member] = []
    context = multiprocessing.get_context("forkserver")  # whatever threads this process has
    context.set_forkserver_preload(["gangs"])
    processes = []
    for number in range(MEMBERS):
        ours, theirs = socket.socketpair()
        arguments = (number, store.port, theirs, request.param)
        process = context.Process(target=live, args=arguments, daemon=True)
        process.start()
        theirs.close()
        assert process.pid is not None
        processes.append(process)
        made.append(Member(process.pid, ours))
    yield made
    for process, member in zip(processes, made, strict=True):
        process.kill()
        process.join()
        member.line.close()


@pytest.mark.parametrize("members", [all_to_all, barrier, receive], indirect=True)
def test_all_who_wait_for_a_silent_or_killed_member_are_freed_at_once(
    members: list[Member],
) -> None:
    for missing in range(MEMBERS):
        for member in members:
            member.says(b"e")
        others = [member for number, member in enumerate(members) if number != missing]
        lines = [member.line for member in others]
        assert select.select(lines, [], [], STUCK_S)[0] == []  # the fault fired: all of them wait
        kills = missing == MEMBERS - 1  # the last one dies; the others only stay away

        began_s = time.monotonic()
        if kills:
            os.kill(members[missing].pid, signal.SIGKILL)
        for member in others:
            member.hears(b"b")
        for member in others:
            member.says(b"f")

        assert time.monotonic() - began_s < FREED_S
        if not kills:
            members[missing].hears(b"b")
            for member in members:
                member.says(b"c")

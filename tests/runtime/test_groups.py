"""What broken groups leave behind: real processes, real sockets."""

import json
import os
import random
import sys
import threading
import time
import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from gangs import plan_for, tiny_job

from elasticmoe.errors import GangBrokenError
from elasticmoe.runtime import groups
from elasticmoe.runtime.groups import Groups, Over, Rendezvous

pytestmark = [pytest.mark.dist, pytest.mark.timeout(60)]
MEMBERS, ROUNDS = 2, 15
WAIT_S = 5
ROWS = 2000


def counts() -> dict[str, int]:
    """Threads and descriptors of this process."""
    return {name: len(os.listdir(f"/proc/self/{name}")) for name in ("task", "fd")}


def wait_for_burials(most: dict[str, int]) -> dict[str, int]:
    """`counts` as soon as they are no more than `most`, or when there is no more hope of it."""
    deadline_s = time.monotonic() + WAIT_S + 10
    found = counts()
    while time.monotonic() < deadline_s and any(found[name] > most[name] for name in most):
        time.sleep(0.01)
        found = counts()
    return found


def form_and_break(member: int, port: int, generation: int) -> None:
    """Exchange until one member, by turns, breaks the groups in the middle of it."""
    rng = random.Random(generation)  # the same on all members
    plan = plan_for(tiny_job(), MEMBERS)
    meeting = Rendezvous("127.0.0.1", port, generation)
    gang = Groups(plan, member, meeting, torch.device("cpu"), Over())
    gang.world.barrier()  # all have formed it
    sent, received = torch.zeros(2, MEMBERS * ROWS, 64).unbind()
    breaks = threading.Timer(rng.uniform(0.0, 0.02), gang.break_now, ("a drill",))
    if generation % MEMBERS == member:
        breaks.start()
    with pytest.raises(GangBrokenError):
        exchange_for_ever(gang, sent, received, rng)
    if generation % MEMBERS == member:
        breaks.join()
    gang.close()


def exchange_for_ever(
    gang: Groups, sent: torch.Tensor, received: torch.Tensor, rng: random.Random
) -> None:
    rows = [ROWS] * MEMBERS
    while True:
        if rng.random() < 0.3:
            gang.world.barrier()
        else:
            gang.world.all_to_all(received, sent, rows, rows)


def meet(store: dist.TCPStore, member: int, generation: int) -> None:
    """Return when all members have left the generation before, which takes some `WAIT_S`."""
    store.set(f"{generation}/{member}", "here")
    store.wait([f"{generation}/{other}" for other in range(MEMBERS)], 4 * timedelta(seconds=WAIT_S))


def run_member(member: int, port: int, answer: int) -> None:
    groups.LONGEST_WAIT = timedelta(seconds=WAIT_S)  # by then also what hangs in the library ends
    store = dist.TCPStore("127.0.0.1", port, None, False)
    before = counts()
    for generation in range(1, ROUNDS + 1):
        meet(store, member, generation)
        form_and_break(member, port, generation)
    most = before | {"fd": before["fd"] + 2}  # torch keeps some of its own
    os.write(answer, json.dumps([most, wait_for_burials(most)]).encode())


def test_threads_and_descriptors_of_broken_groups_are_freed() -> None:
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    answers, pids = [], []
    for member in range(MEMBERS):
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                run_member(member, store.port, theirs)
                os._exit(0)
            except BaseException:
                traceback.print_exc(file=sys.stderr)
                os._exit(1)
        os.close(theirs)
        answers.append(ours)
        pids.append(pid)

    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * MEMBERS

    for answer in answers:
        most, after = json.loads(os.read(answer, 4096))
        os.close(answer)
        assert after["task"] <= most["task"]
        assert after["fd"] <= most["fd"]

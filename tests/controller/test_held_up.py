"""A journal that takes long: nobody is judged by time in which nobody could be heard."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest
from fake_job import SAMPLES, small_job
from loops import Agent, ListJournal

from elasticmoe.controller import loop
from elasticmoe.controller.decisions import Break, Decision, Fence, Recover
from elasticmoe.controller.machine import replay
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Decided
from elasticmoe.messages.commands import (
    BreakGeneration,
    Command,
    FormGeneration,
    KillWorkers,
    StartWorkers,
    WakeAt,
)
from elasticmoe.messages.events import (
    CheckpointAsked,
    JournalResumed,
    NodeUp,
    Reported,
    TimePassed,
    WorkerDied,
)
from elasticmoe.messages.worker import GangFormed, StepDone, WorkerParked, WorkerReady

TICK_S = 0.05
STEP_S = 0.1
NODE = {0: "a", 1: "a", 2: "b"}
PATIENCE_S = 20.0


class Disk(ListJournal):
    """Takes as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.has_room, self.waits = threading.Event(), threading.Event()
        self.has_room.set()
        self.take_time: Callable[[], None] = lambda: None

    def sync(self) -> None:
        if not self.has_room.is_set():
            self.waits.set()
            assert self.has_room.wait(PATIENCE_S)
        self.take_time()
        super().sync()


class Gang(Agent):
    """Three workers on two nodes, and who takes their place; all happens when a test says so."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.disk = disk
        self.job = small_job(
            workers={"replicas": 3, "min": 1, "max": 3}, checkpoint={"interval_steps": 100}
        )
        self.step = 0
        self.posts: list[asyncio.Future[None]] = []

    async def answer(self, command: Command) -> None:
        match command:
            case StartWorkers():
                for worker in command.workers:
                    await self.say(worker, WorkerReady(worker, 100 + worker))
            case FormGeneration():
                for worker in NODE:
                    await self.say(worker, GangFormed(command.generation, worker, 1, {}))
            case WakeAt(at_s=at_s):
                while self.now_s < at_s:
                    await asyncio.sleep(0)
                await self.post(TimePassed(at_s))

    async def say(self, worker: int, report: object) -> None:
        await self.post(Reported(0, NODE.get(worker, "a"), report))  # type: ignore[arg-type]

    async def take_step(self) -> None:
        self.now_s, self.step = self.now_s + STEP_S, self.step + 1
        samples = ((self.step - 1) * SAMPLES, self.step * SAMPLES)
        await self.say(0, StepDone(1, self.step, STEP_S, 1.0, {}, samples, 0))

    async def park(self, worker: int) -> None:
        await self.say(worker, WorkerParked(1, worker, self.step, "a peer is gone"))

    def meanwhile(self, post: Awaitable[None]) -> None:
        """Have something said that is not on record before there is room."""
        self.posts.append(asyncio.ensure_future(post))

    async def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            await asyncio.sleep(0.001)

    async def make_room(self) -> None:
        self.disk.has_room.set()
        await asyncio.gather(*self.posts)

    def decided(self, kind: type[Decision]) -> list[Decision]:
        bodies = [record.body for record in self.disk.records]
        found = [body.decision for body in bodies if isinstance(body, Decided)]
        return [decision for decision in found if isinstance(decision, kind)]

    def ordered(self, kind: type[Command]) -> list[Command]:
        return [command for command in self.commands if isinstance(command, kind)]


def run(scenario: Callable[[Gang], Awaitable[None]]) -> Gang:
    """Let a gang train for so long that its pace is known; then a scenario."""

    async def main() -> Gang:
        gang = Gang(Disk())
        controller = await gang.begin()
        running = asyncio.ensure_future(controller.run())
        async with asyncio.timeout(PATIENCE_S):
            for node, capacity in (("a", 2), ("b", 1)):
                await gang.post(NodeUp(0, node, node, "host", capacity, 2**30))
            while controller.state.phase is not Phase.TRAINING:
                await asyncio.sleep(0.001)
            for _ in range(8):
                await gang.take_step()
            await scenario(gang)
            while not controller._inbox.empty():
                await asyncio.sleep(0.001)
        controller._flush()
        assert replay(gang.disk.records) == controller.state
        running.cancel()
        for task in gang.tasks:
            task.cancel()
        return gang

    return asyncio.run(main())


async def fill(gang: Gang, post: Awaitable[None]) -> None:
    """Leave no room, and have something said that must be written down."""
    gang.disk.has_room.clear()
    gang.meanwhile(post)
    while not gang.disk.waits.is_set():
        await asyncio.sleep(0.001)


def test_steps_that_could_not_be_told_while_the_disk_was_full_are_no_stall() -> None:
    async def scenario(gang: Gang) -> None:
        await fill(gang, gang.post(CheckpointAsked(0)))
        await gang.pass_time(3.5)  # the bound is 0.3 s
        await gang.make_room()
        await gang.pass_time(0.15)  # agents are told to say again what was not taken
        for _ in range(4):
            await gang.take_step()

    gang = run(scenario)

    assert gang.decided(Break) == []
    assert gang.ordered(KillWorkers) == []
    assert any(isinstance(record.body, JournalResumed) for record in gang.disk.records)
    assert gang.controller.state.committed_step == 12
    assert max(gang.controller.state.pace.intervals) < 2 * STEP_S


def test_a_gang_that_does_stand_still_is_found_after_the_disk_had_room_again() -> None:
    async def scenario(gang: Gang) -> None:
        await fill(gang, gang.post(CheckpointAsked(0)))
        await gang.pass_time(3.5)
        await gang.make_room()
        assert gang.decided(Break) == []
        await gang.pass_time(1.0)

    assert len(run(scenario).decided(Break)) == 1


def test_whoever_hears_late_of_a_break_has_all_its_patience() -> None:
    async def scenario(gang: Gang) -> None:
        await fill(gang, gang.post(WorkerDied(0, "a", 1, "killed by signal 9", "log")))
        await gang.pass_time(2.0)
        gang.meanwhile(gang.park(2))  # accepted, though it cannot be written down yet
        await gang.pass_time(1.5)
        assert gang.ordered(BreakGeneration) == []
        await gang.make_room()
        await gang.pass_time(0.8)  # of 1.0 s
        assert len(gang.ordered(BreakGeneration)) == 1
        await gang.park(0)
        while not gang.decided(Recover):
            await asyncio.sleep(0.001)

    gang = run(scenario)

    assert gang.decided(Fence) == []
    assert gang.ordered(KillWorkers) == []


def test_on_a_disk_that_is_always_slow_a_worker_that_does_not_park_is_killed() -> None:
    async def scenario(gang: Gang) -> None:
        def take_time() -> None:
            gang.now_s += 2 * TICK_S

        gang.disk.take_time = take_time
        await gang.post(WorkerDied(0, "a", 1, "killed by signal 9", "log"))
        await gang.park(2)
        await gang.pass_time(2.0)

    gang = run(scenario)

    assert any(isinstance(record.body, JournalResumed) for record in gang.disk.records)
    assert [fence.workers for fence in gang.decided(Fence)] == [(0,)]  # type: ignore[attr-defined]


def test_a_quick_journal_leaves_no_record_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "HELD_UP_S", 30.0)  # whatever else this machine does

    async def scenario(gang: Gang) -> None:
        await gang.post(WorkerDied(0, "a", 1, "killed by signal 9", "log"))
        for worker in (0, 2):
            await gang.park(worker)
        while not gang.decided(Recover):
            await asyncio.sleep(0.001)

    gang = run(scenario)

    assert not any(isinstance(record.body, JournalResumed) for record in gang.disk.records)

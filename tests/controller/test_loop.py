"""The loop: durable before acted on, decided before done, and safe to start again."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import pytest
from fake_job import SAMPLES, small_inventory, small_job

from elasticmoe.controller.decisions import Train
from elasticmoe.controller.history import check_history
from elasticmoe.controller.loop import Controller
from elasticmoe.controller.machine import replay
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Decided, Progress, Record
from elasticmoe.errors import StorageError
from elasticmoe.messages.commands import (
    Command,
    EndJob,
    FormGeneration,
    SealCheckpoint,
    StartWorkers,
    WakeAt,
)
from elasticmoe.messages.events import (
    CheckpointSealed,
    JobSubmitted,
    NodeUp,
    Reported,
    TermBegan,
    TimePassed,
    WorkerDied,
)
from elasticmoe.messages.worker import (
    CheckpointPart,
    GangEnded,
    GangFormed,
    StepDone,
    WorkerParked,
    WorkerReady,
)

JOB = small_job(workers={"replicas": 2, "min": 1, "max": 2}, schedule={"steps": 6})


class ListJournal:
    """A journal in memory that can refuse to write."""

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self.records = list(records)
        self.room = 10_000
        self.durable = len(self.records)
        self.syncs = 0

    def read(self) -> Sequence[Record]:
        return list(self.records)

    def append(self, record: Record) -> None:
        if len(self.records) >= self.room:
            raise StorageError("disk full")
        self.records.append(record)

    def sync(self) -> None:
        self.durable, self.syncs = len(self.records), self.syncs + 1


class Agent:
    """Carries out commands by posting, later, what good workers would report."""

    def __init__(self, journal: ListJournal) -> None:
        self.journal = journal
        self.commands: list[Command] = []
        self.undecided: list[Command] = []
        self.now_s = 0.0
        self.step_s = 0.5
        self.die_at: int | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    async def carry_out(self, command: Command) -> None:
        self.commands.append(command)
        durable = self.journal.records[: self.journal.durable]
        late = self.journal.records[self.journal.durable :]
        decided = any(isinstance(record.body, Decided) for record in durable)
        pending = any(isinstance(record.body, Decided) for record in late)
        if not isinstance(command, WakeAt) and (pending or not decided):
            self.undecided.append(command)  # a timer may run for what is not on record yet
        task = asyncio.ensure_future(self.answer(command))
        self.tasks.add(task)

    async def answer(self, command: Command) -> None:
        match command:
            case StartWorkers():
                for worker in command.workers:
                    await self.report(WorkerReady(worker, 100 + worker))
            case FormGeneration():
                await self.train(command)
            case SealCheckpoint(step=step):
                await self.post(CheckpointSealed(0, step, f"c/{step}", 1, command.generation))

    async def train(self, command: FormGeneration) -> None:
        members = [member["worker"] for member in command.plan["members"]]
        start = int(command.checkpoint.removeprefix("c/")) if command.checkpoint else 0
        for worker in members:
            await self.report(GangFormed(command.generation, worker, start + 1, {}))
        for step in range(start + 1, 7):
            self.now_s += self.step_s
            samples = ((step - 1) * SAMPLES, step * SAMPLES)
            await self.report(StepDone(command.generation, step, self.step_s, 1.0, {}, samples, 0))
            if step == self.die_at:
                self.die_at = None
                await self.report(WorkerParked(command.generation, members[0], step, "reset"))
                await self.post(WorkerDied(0, "a", members[1], "killed by signal 9", "log"))
                return
        for worker in members:
            await self.report(CheckpointPart(command.generation, worker, 6, [], {}))
            await self.report(GangEnded(command.generation, worker, 6))

    async def report(self, report) -> None:
        await self.post(Reported(0, "a", report))

    async def post(self, event) -> None:
        await self.controller.post(replace(event, at_s=self.now_s))

    async def begin(self, clock: Callable[[], float] | None = None) -> Controller:
        self.controller = Controller(self.journal, self, clock or (lambda: self.now_s))
        if not self.journal.records:
            spec, inventory = JOB.model_dump(mode="json"), asdict(small_inventory(JOB))
            await self.post(JobSubmitted(0, spec, inventory, []))
        await self.post(TermBegan(0, self.controller.state.term + 1, "test"))
        return self.controller


class StillAgent(Agent):
    """Is told what to do and does nothing."""

    async def answer(self, command: Command) -> None:
        pass


async def train(agent: Agent) -> Controller:
    controller = await agent.begin()
    await agent.post(NodeUp(0, "a", "a", "host", 2, 2**30))
    await asyncio.wait_for(controller.run(), 10)
    return controller


def test_a_job_runs_to_its_end_and_its_journal_rebuilds_the_state() -> None:
    agent = Agent(ListJournal())

    controller = asyncio.run(train(agent))

    assert controller.state.phase is Phase.DONE
    assert isinstance(agent.commands[-1], EndJob)
    assert replay(agent.journal.records) == controller.state
    assert check_history(agent.journal.records) == []
    assert [record.number for record in agent.journal.records] == list(
        range(len(agent.journal.records))
    )


def test_decisions_are_on_record_before_they_are_carried_out() -> None:
    agent = Agent(ListJournal())

    asyncio.run(train(agent))

    assert agent.commands
    assert agent.undecided == []


def test_one_sync_serves_all_events_that_come_while_it_runs() -> None:
    class SlowJournal(ListJournal):
        def sync(self) -> None:
            time.sleep(0.05)
            super().sync()

    async def report_many() -> ListJournal:
        journal = SlowJournal()
        agent = StillAgent(journal)
        await agent.begin()
        before = journal.syncs
        nodes = [NodeUp(0, f"node-{n}", "a", "host", 1, 2**30) for n in range(40)]
        await asyncio.gather(*(agent.post(node) for node in nodes))
        assert journal.durable == len(journal.records)
        assert journal.syncs - before <= 2
        return journal

    journal = asyncio.run(report_many())

    assert len(journal.records) == 42


def test_a_decision_is_synced_together_with_its_event() -> None:
    async def decide_once() -> None:
        agent = StillAgent(ListJournal())
        controller = await agent.begin()
        running = asyncio.ensure_future(controller.run())
        await asyncio.sleep(0.05)  # it waits for events
        before = agent.journal.syncs

        await agent.post(NodeUp(0, "a", "a", "host", 2, 1))
        while not any(isinstance(command, StartWorkers) for command in agent.commands):
            await asyncio.sleep(0.001)

        assert isinstance(agent.journal.records[-1].body, Decided)
        assert agent.journal.syncs - before == 1
        running.cancel()

    asyncio.run(decide_once())


def test_steps_are_folded_into_few_records() -> None:
    agent = Agent(ListJournal())
    agent.step_s = 0.01

    asyncio.run(train(agent))

    progress = [r.body for r in agent.journal.records if isinstance(r.body, Progress)]
    assert [(piece.first_step, piece.last_step) for piece in progress] == [(1, 6)]


def test_slow_steps_are_written_one_by_one() -> None:
    agent = Agent(ListJournal())
    agent.step_s = 30.0

    asyncio.run(train(agent))

    progress = [r.body for r in agent.journal.records if isinstance(r.body, Progress)]
    assert len(progress) == 6


def test_a_death_leads_to_a_new_generation_through_the_loop() -> None:
    agent = Agent(ListJournal())
    agent.die_at = 3

    controller = asyncio.run(train(agent))

    assert agent.die_at is None
    assert controller.state.phase is Phase.DONE
    assert controller.state.generation == 2
    assert controller.state.tally.steps_rolled_back == 3
    assert replay(agent.journal.records) == controller.state
    assert check_history(agent.journal.records) == []


def test_a_journal_that_cannot_be_written_ends_the_loop_before_anything_is_done() -> None:
    agent = Agent(ListJournal())
    agent.journal.room = 3  # the submission, the term and the node; not the decision to start

    with pytest.raises(StorageError, match="disk full"):
        asyncio.run(train(agent))

    assert agent.commands == []


def test_a_timer_is_written_down_only_if_it_matters() -> None:
    async def wait_for_room(settled_s: float) -> tuple[ListJournal, Controller]:
        journal = ListJournal()
        agent = StillAgent(journal)
        controller = await agent.begin()
        await agent.post(NodeUp(0, "a", "a", "host", 1, 2**30))
        agent.now_s = settled_s
        await agent.post(TimePassed(0))
        running = asyncio.ensure_future(controller.run())
        while not controller._inbox.empty():
            await asyncio.sleep(0)
        running.cancel()
        return journal, controller

    early, waiting = asyncio.run(wait_for_room(0.5))
    late, begun = asyncio.run(wait_for_room(1.5))

    assert waiting.state.phase is Phase.WAITING
    assert not any(isinstance(record.body, TimePassed) for record in early.records)
    assert begun.state.phase is not Phase.WAITING
    assert sum(isinstance(record.body, TimePassed) for record in late.records) == 1
    assert replay(early.records) == waiting.state
    assert replay(late.records) == begun.state


def test_what_is_decided_behind_a_backlog_bears_the_time_at_which_it_is_done() -> None:
    async def decide_late() -> ListJournal:
        agent = StillAgent(ListJournal())
        controller = await agent.begin(clock=lambda: 50.0)
        await agent.post(NodeUp(0, "a", "a", "host", 2, 2**30))
        running = asyncio.ensure_future(controller.run())
        while not agent.commands:
            await asyncio.sleep(0)
        running.cancel()
        assert replay(agent.journal.records) == controller.state
        return agent.journal

    journal = asyncio.run(decide_late())

    bodies = [record.body for record in journal.records]
    (decided,) = [body for body in bodies if isinstance(body, Decided)]
    assert decided.decision.at_s == 50.0
    assert [body.at_s for body in bodies if isinstance(body, NodeUp)] == [0.0]


def test_a_controller_that_starts_again_repeats_what_was_begun() -> None:
    agent = Agent(ListJournal())
    asyncio.run(train(agent))
    formed = next(
        place
        for place, record in enumerate(agent.journal.records)
        if isinstance(record.body, Decided) and isinstance(record.body.decision, Train)
    )
    second = Agent(ListJournal(agent.journal.records[:formed]))

    async def again() -> None:
        controller = await second.begin()
        task = asyncio.ensure_future(controller.run())
        await asyncio.wait_for(task, 10)

    asyncio.run(again())

    assert second.controller.state.phase is Phase.DONE
    assert second.controller.state.term == 2
    assert check_history(second.journal.records) == []

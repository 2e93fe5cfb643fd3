"""The loop with a journal in memory, and an agent that it can command."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from fake_job import SAMPLES, small_inventory, small_job

from elasticmoe.controller.loop import Controller
from elasticmoe.controller.record import Decided, Record
from elasticmoe.errors import StorageError
from elasticmoe.messages.commands import (
    Command,
    FormGeneration,
    SealCheckpoint,
    StartWorkers,
    WakeAt,
)
from elasticmoe.messages.events import (
    CheckpointSealed,
    JobSubmitted,
    Reported,
    TermBegan,
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
        self.job = JOB
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
            spec, inventory = self.job.model_dump(mode="json"), asdict(small_inventory(self.job))
            await self.post(JobSubmitted(0, spec, inventory, []))
        await self.post(TermBegan(0, self.controller.state.term + 1, "test"))
        return self.controller


class StillAgent(Agent):
    """Is told what to do and does nothing."""

    async def answer(self, command: Command) -> None:
        pass

"""A small pretend world: agents and workers that do what commands say, faults on demand.

Everything happens in the order of a pretend clock. `World.run` feeds the brain event by event and
keeps the journal exactly as the real loop would.
"""

import heapq
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from elasticmoe.controller.history import check_history
from elasticmoe.controller.machine import advance, outstanding, replay
from elasticmoe.controller.record import Decided, Record, as_progress
from elasticmoe.controller.state import JobState
from elasticmoe.messages.commands import (
    BreakGeneration,
    Command,
    DeleteCheckpoint,
    EndJob,
    FormGeneration,
    InstructGang,
    KillWorkers,
    SealCheckpoint,
    StartWorkers,
    WakeAt,
)
from elasticmoe.messages.events import (
    CheckpointLost,
    CheckpointSealed,
    Event,
    JobSubmitted,
    NodeLost,
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
    WorkerFailed,
    WorkerParked,
    WorkerReady,
)
from elasticmoe.plan.types import ALIGN, Block, Inventory, Parameter, Unit
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data

STEP_S, READY_S, FORM_S, PARK_S, DEATH_S, PART_S, SEAL_S = 0.1, 0.03, 0.02, 0.01, 0.03, 0.04, 0.02
SAMPLES = 4


def small_job(**changes: dict[str, object]) -> JobSpec:
    """A job of 30 steps on 2 to 4 workers with a checkpoint every 10 steps."""
    tables: dict[str, object] = {
        "version": 1,
        "name": "test",
        "model": {"preset": "quickstart"},
        "data": {"sources": [{"path": "text"}], "seq_len": 16},
        "batch": {"global_samples": SAMPLES, "num_waves": 1},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"steps": 30},
        "workers": {"replicas": 4, "min": 2, "max": 8},
        "checkpoint": {"interval_steps": 10, "keep": 2},
        "storage": {"dir": "runs/test"},
    }
    for name, table in changes.items():
        tables[name] = {**tables.get(name, {}), **table}  # type: ignore[dict-item]
    return parse_data(tables)


def small_inventory(job: JobSpec) -> Inventory:
    """One dense block per part of the network: the brain looks no closer."""
    names = ["embedding", *(f"layer.{n}" for n in range(job.model.num_layers)), "head"]
    names += [f"mtp.{n}" for n in range(job.model.mtp_depth)]
    blocks = tuple(
        Block(
            index=index,
            name=name,
            layer=int(name.split(".")[1]) if name.startswith("layer.") else -1,
            parameters=(Parameter("weight", (ALIGN,), decay=True, offset=0),),
            decay_numel=ALIGN,
            numel=ALIGN,
            num_experts=0,
            flops_per_token=2.0 * ALIGN,
            activation_bytes_per_token=1.0,
        )
        for index, name in enumerate(names)
    )
    units = tuple(Unit(block.index, block.index, -1, 0, ALIGN, ALIGN) for block in blocks)
    return Inventory(blocks, units)


@dataclass
class Gang:
    """A generation as the workers see it."""

    generation: int
    members: tuple[int, ...]
    step: int
    joined: set[int] = field(default_factory=set)
    broken: bool = False
    ended: bool = False
    actions: list[tuple[int, str]] = field(default_factory=list)
    instructed: int = 0


@dataclass
class World:
    """Nodes, workers, a clock; see `run`."""

    job: JobSpec = field(default_factory=small_job)
    nodes: dict[str, int] = field(default_factory=lambda: {"a": 2, "b": 2})
    now_s: float = 100.0
    state: JobState = field(default_factory=JobState)
    records: list[Record] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    alive: dict[int, str] = field(default_factory=dict)
    stuck: set[int] = field(default_factory=set)
    """Workers that never park."""
    gang: Gang | None = None
    sealed: dict[str, int] = field(default_factory=dict)
    fired: list[str] = field(default_factory=list)
    """Faults that happened: a test that injects one checks it here."""
    on_step: dict[int, Callable[[], None]] = field(default_factory=dict)
    on_event: Callable[[Event], None] | None = None
    seals_work: bool = True
    seal_s: float = SEAL_S
    starts_die: bool = False
    fails_at: dict[int, str] = field(default_factory=dict)
    """Step -> error code that member 0 ends with, every time."""
    crash: str = ""
    """How the controller crashes at the next event: `undecided` (the event is on record) or
    `undone` (its decisions are too, no command was carried out)."""
    _queue: list[tuple[float, int, Event, Callable[[], bool]]] = field(default_factory=list)
    _count: int = 0

    def submit(self, checkpoints: list[dict[str, object]] | None = None) -> None:
        """Hand in the job and bring all nodes up."""
        spec = self.job.model_dump(mode="json")
        inventory = asdict(small_inventory(self.job))
        self.at(0, JobSubmitted(0, spec, inventory, checkpoints or []))
        self.at(0, TermBegan(0, 1, "test"))
        for name, capacity in self.nodes.items():
            self.at(0, NodeUp(0, name, name, "host", capacity, 2**30))

    def run(self, until: Callable[[], bool] = lambda: False, limit_s: float = 2000.0) -> None:
        """Let things happen until the job ends, nothing is left to happen, or `until` holds."""
        end_s = self.now_s + limit_s
        while self._queue and not self.state.is_final and not until():
            time_s, _, event, still = heapq.heappop(self._queue)
            if time_s > end_s:
                return
            self.now_s = max(self.now_s, time_s)
            if still():
                self.deliver(replace(event, at_s=self.now_s))

    def deliver(self, event: Event) -> None:
        """Give the brain one event, as the loop does."""
        if self.on_event is not None:
            self.on_event(event)
        number = len(self.records)
        self.records.append(Record(number, as_progress(event) or event))
        crash, self.crash = self.crash, ""
        if crash != "undecided":
            self.state, commands = advance(self.state, event)
            for decision in self.state.decided:
                self.records.append(Record(len(self.records), Decided(number, decision)))
        if crash:
            self.restart_controller()
            commands = ()
        for command in commands:
            self.carry_out(command)
        if isinstance(event, Reported) and isinstance(event.report, StepDone):
            self.on_step.pop(event.report.step, lambda: None)()

    def restart_controller(self) -> None:
        """Lose the controller; another one reads the journal and begins a term."""
        self.fired.append("restart")
        self.state = replay(self.records)
        for command in outstanding(self.state):
            self.carry_out(command)
        self.at(0, TermBegan(0, self.state.term + 1, "test"))

    def at(self, delay_s: float, event: Event, still: Callable[[], bool] = lambda: True) -> None:
        """Let an event happen later, if `still` holds then."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._count, event, still))

    def kill(self, worker: int, *, evidence: str = "killed by signal 9") -> None:
        """End a worker's process; its peers notice before its agent does."""
        if worker not in self.alive:
            return
        self.fired.append(f"kill {worker}")
        node = self.alive.pop(worker)
        gang = self.gang
        if gang and worker in gang.members and not gang.ended:
            self._break(gang, "connection reset")
        self.at(DEATH_S, WorkerDied(0, node, worker, evidence, f"logs/{worker}.txt"))

    def lose_node(self, node: str) -> None:
        """End a node with everybody on it."""
        if node not in self.nodes:
            return
        self.fired.append(f"lose {node}")
        del self.nodes[node]
        gang = self.gang
        for worker in [worker for worker, where in self.alive.items() if where == node]:
            del self.alive[worker]
            if gang and worker in gang.members and not gang.ended:
                self._break(gang, "connection reset")
        self.at(DEATH_S, NodeLost(0, node, "agent does not answer"))

    def add_node(self, node: str, capacity: int) -> None:
        """Bring up a node."""
        if node in self.nodes:
            return
        self.fired.append(f"add {node}")
        self.nodes[node] = capacity
        self.at(2 * DEATH_S, NodeUp(0, node, node, "host", capacity, 2**30))

    def cut(self) -> None:
        """Break the gang's communication with everybody alive."""
        if self.gang and not self.gang.ended:
            self.fired.append("cut")
            self._break(self.gang, "connection reset")

    def fail(self, worker: int, code: str, step: int) -> None:
        """Let a worker end with an error of its own."""
        assert self.gang is not None
        node = self.alive[worker]
        self.fired.append(f"fail {worker}")
        report = WorkerFailed(self.gang.generation, worker, step, code, f"{code} here")
        self.at(0.005, Reported(0, node, report))
        del self.alive[worker]
        self._break(self.gang, "connection reset")
        self.at(DEATH_S, WorkerDied(0, node, worker, "exit status 1", f"logs/{worker}.txt"))

    def carry_out(self, command: Command) -> None:
        """Do what the brain says."""
        self.commands.append(command)
        match command:
            case StartWorkers():
                self._start(command)
            case KillWorkers():
                for worker in command.workers:
                    self.stuck.discard(worker)
                    self.kill(worker)
            case FormGeneration():
                self._form(command)
            case BreakGeneration():
                if self.gang and self.gang.generation == command.generation:
                    self._break(self.gang, "told to")
            case InstructGang():
                gang = self.gang
                known = gang and command.number in [number for number, _ in gang.actions]
                if gang and gang.generation == command.generation and not known:
                    gang.actions.append((command.number, command.action))
            case SealCheckpoint():
                self._seal(command)
            case DeleteCheckpoint():
                self.sealed.pop(command.uri, None)
            case WakeAt():
                self.at(max(command.at_s - self.now_s, 0), TimePassed(0))
            case EndJob():
                self._queue.clear()

    def _start(self, command: StartWorkers) -> None:
        for worker in command.workers:
            if command.node not in self.nodes or worker in self.alive:
                continue
            self.alive[worker] = command.node
            if self.starts_die:
                self.kill(worker, evidence="exit status 1")
            else:
                self._report(READY_S, worker, WorkerReady(worker, 1000 + worker))

    def _form(self, command: FormGeneration) -> None:
        if self.gang and self.gang.generation >= command.generation:
            return
        members = tuple(member["worker"] for member in command.plan["members"])
        start = self.sealed[command.checkpoint] if command.checkpoint else 0
        gang = self.gang = Gang(command.generation, members, start)
        for worker in members:
            if worker not in self.alive:
                self._break(gang, "nobody there")
        for worker in members:
            report = GangFormed(gang.generation, worker, start + 1, {})
            self._report(FORM_S, worker, report, lambda: not gang.broken)
        self._later(FORM_S + STEP_S, lambda: self._step(gang))

    def _step(self, gang: Gang) -> None:
        if gang.broken or gang.ended or gang is not self.gang:
            return
        step = gang.step + 1
        if step in self.fails_at:
            self.fail(gang.members[0], self.fails_at[step], step)
            return
        gang.step = step
        actions = [action for number, action in gang.actions if number > gang.instructed]
        gang.instructed = max([gang.instructed, *(number for number, _ in gang.actions)])
        samples = ((step - 1) * SAMPLES, step * SAMPLES)
        done = StepDone(gang.generation, step, STEP_S, 1.0 / step, {}, samples, gang.instructed)
        self._report(0, gang.members[0], done)
        last = step == self.job.schedule.steps or "stop" in actions
        if last or actions or step % self.job.checkpoint.interval_steps == 0:
            for worker in gang.members:
                files = [{"path": f"{step}/{worker}"}]
                part = CheckpointPart(gang.generation, worker, step, files, {"step": step})
                self._report(PART_S, worker, part, lambda: not gang.broken or gang.ended)
        if last:
            gang.ended = True
            for worker in gang.members:
                self._report(0.01, worker, GangEnded(gang.generation, worker, step))
        else:
            self._later(STEP_S, lambda: self._step(gang))

    def _seal(self, command: SealCheckpoint) -> None:
        uri = f"checkpoints/{command.step}-{command.generation}"
        if not self.seals_work:
            self.at(self.seal_s, CheckpointLost(0, command.step, "disk full", command.generation))
            return
        self.sealed[uri] = command.step
        self.at(self.seal_s, CheckpointSealed(0, command.step, uri, 1000, command.generation))

    def _break(self, gang: Gang, reason: str) -> None:
        if gang.broken:
            return
        gang.broken = True
        for worker in gang.members:
            parked = WorkerParked(gang.generation, worker, gang.step, reason)
            if worker not in self.stuck:
                self._report(PARK_S, worker, parked)

    def _report(
        self, delay_s: float, worker: int, report: object, still: Callable[[], bool] | None = None
    ) -> None:
        node = self.alive.get(worker, "")
        self.at(
            delay_s,
            Reported(0, node, report),  # type: ignore[arg-type]
            lambda: worker in self.alive and (still is None or still()),
        )

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        def act() -> bool:
            action()
            return False

        self.at(delay_s, TimePassed(0), act)


def decisions(world: World, kind: type[Any]) -> list[Any]:
    """Decisions of one kind that are on record."""
    found = (record.body for record in world.records if isinstance(record.body, Decided))
    return [one.decision for one in found if isinstance(one.decision, kind)]


def assert_sound(world: World) -> None:
    """What must hold after every run: nothing ignored, a sound history, a faithful journal."""
    assert world.state.tally.ignored == 0
    assert check_history(world.records) == []
    assert replay(world.records) == world.state

"""A small pretend world: agents and workers that do what commands say, faults on demand.

Everything happens in the order of a pretend clock. `World.run` feeds the brain event by event and
keeps the journal exactly as the real loop would.
"""

import heapq
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fake_gang import PART_S, Gang, Vault
from fake_job import small_inventory, small_job

from elasticmoe.controller.history import check_history
from elasticmoe.controller.machine import advance, glance, outstanding, replay
from elasticmoe.controller.record import Decided, Progress, Record, as_progress
from elasticmoe.controller.state import JobState
from elasticmoe.messages.commands import (
    BreakGeneration,
    Command,
    DeleteCheckpoint,
    EndJob,
    ForgetVaults,
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
    WorkerSilent,
)
from elasticmoe.messages.worker import StepDone, WorkerFailed, WorkerReady
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.spec.job import JobSpec

READY_S, DEATH_S, SEAL_S, SILENCE_S = 0.014, 0.008, 0.02, 0.2


@dataclass
class World:
    """Nodes, workers, a clock; see `run`."""

    job: JobSpec = field(default_factory=small_job)
    nodes: dict[str, int] = field(default_factory=lambda: {"a": 2, "b": 2})
    memory_bytes: int = 2**30
    """Of every node; `small_nodes` have another amount."""
    small_nodes: dict[str, int] = field(default_factory=dict)
    now_s: float = 100.0
    state: JobState = field(default_factory=JobState)
    records: list[Record] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    alive: dict[int, str] = field(default_factory=dict)
    stuck: set[int] = field(default_factory=set)
    """Workers that never park."""
    stopped: set[int] = field(default_factory=set)
    """Workers that do nothing any more."""
    vaults: dict[int, Vault] = field(default_factory=dict)
    taken_over: dict[int, int] = field(default_factory=dict)
    """Dead worker -> who has its vault now."""
    broken_promises: list[str] = field(default_factory=list)
    """Where the brain counted on memory that was not there."""
    highest_voted: int = 0
    """Newest step whose vote anybody passed in this history: it must never be redone."""
    formed_late_s: dict[int, float] = field(default_factory=dict)
    """Position -> how long the report is under way that the member has joined."""
    pause_s: float = 0.0
    """How much longer the next step takes; gone with the generation."""
    save_pause_s: float = 0.0
    """How much longer a step takes at whose end a checkpoint is written."""
    first_pause_s: float = 0.0
    """How much longer the first step of a generation takes."""
    report_s: float = 0.0
    """How long the report of a step is under way."""
    gang: Gang | None = None
    sealed: dict[str, int] = field(default_factory=dict)
    fired: list[str] = field(default_factory=list)
    """Faults that happened: a test that injects one checks it here."""
    on_step: dict[int, Callable[[], None]] = field(default_factory=dict)
    on_point: Callable[[str, int, int], None] = lambda point, step, worker: None
    """Told of every point of the protocol that a worker reaches: its name, the step, the worker."""
    on_event: Callable[[Event], None] | None = None
    seals_work: bool = True
    seal_s: float = SEAL_S
    part_s: float = PART_S
    """From a step's end to the report that a member's part of its checkpoint is durable."""
    starts_die: bool = False
    skipped: set[int] = field(default_factory=set)
    """Steps that change nothing."""
    fails_at: dict[int, str] = field(default_factory=dict)
    """Step -> error code that member 0 ends with, every time."""
    crash: str = ""
    """How the controller crashes at the next event: `undecided` (the event is on record) or
    `undone` (its decisions are too, no command was carried out)."""
    _queue: list[tuple[float, int, Event, Callable[[], bool]]] = field(default_factory=list)
    _count: int = 0
    _said_s: dict[int, float] = field(default_factory=dict)

    @property
    def inventory(self) -> Inventory:
        """What the model consists of."""
        return small_inventory(self.job)

    def submit(self, checkpoints: list[dict[str, object]] | None = None) -> None:
        """Hand in the job and bring all nodes up."""
        spec = self.job.model_dump(mode="json")
        inventory = asdict(self.inventory)
        self.at(0, JobSubmitted(0, spec, inventory, checkpoints or []))
        self.at(0, TermBegan(0, 1, "test"))
        for name, capacity in self.nodes.items():
            self.at(0, self._node_up(name, capacity))

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
        nothing = glance(self.state, event) if isinstance(event, TimePassed) else None
        if nothing is not None and not self.crash:
            self.state, commands = nothing
            for command in commands:
                self.carry_out(command)
            return
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

    def restart_controller(self, *, forgets: bool = False) -> None:
        """Lose the controller; another one reads the journal and begins a term.

        Args:
            forgets: it had not written down the progress that it heard last.
        """
        self.fired.append("restart")
        while forgets and isinstance(self.records[-1].body, Progress):
            self.records.pop()
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
        self._end(worker, evidence)

    def _end(self, worker: int, evidence: str) -> None:
        node = self.alive.pop(worker)
        self.stuck.discard(worker)
        self.stopped.discard(worker)
        vault = self.vaults.get(worker)
        if vault is not None:
            vault.tear()
        self._break(worker, "connection reset")

        def buried() -> None:
            if node in self.nodes:
                copies = vault.copies(worker) if vault is not None else None
                log = f"logs/{worker}.txt"
                self.at(0, WorkerDied(0, node, worker, evidence, log, copies))

        self.later(DEATH_S, buried)

    def stop(self, worker: int) -> None:
        """Stop a worker's process: its heart stands still, and so does the gang."""
        if worker in self.alive:
            self.fired.append(f"stop {worker}")
            self.stopped.add(worker)
            silent = WorkerSilent(0, self.alive[worker], worker, f"no heartbeat for {SILENCE_S} s")
            self.at(SILENCE_S, silent, lambda: worker in self.stopped)

    def hang(self, worker: int) -> None:
        """Let a worker loop without progress: its heart beats."""
        if worker in self.alive:
            self.fired.append(f"hang {worker}")
            self.stopped.add(worker)

    def lose_node(self, node: str) -> None:
        """End a node with everybody and all memory on it."""
        if node not in self.nodes:
            return
        self.fired.append(f"lose {node}")
        del self.nodes[node]
        for worker in [worker for worker, where in self.alive.items() if where == node]:
            del self.alive[worker]
            self._break(worker, "connection reset")
        for worker in [worker for worker, vault in self.vaults.items() if vault.node == node]:
            del self.vaults[worker]
        self.at(DEATH_S, NodeLost(0, node, "agent does not answer"))

    def lose_node_of(self, worker: int) -> None:
        """End the node that a worker runs on, unless it is the last one."""
        if len(self.nodes) > 1:
            self.lose_node(self.alive.get(worker, ""))

    def _break(self, worker: int, reason: str) -> None:
        gang = self.gang
        if gang and worker in gang.members and not gang.ended:
            gang.break_up(reason)

    def hand_over(self, dead: int, heir: int) -> None:
        """Give a dead worker's vault to another one of its node."""
        owner = dead
        while owner in self.taken_over:
            owner = self.taken_over[owner]
        if owner == heir:
            return
        vault = self.vaults.get(owner)
        if vault is None or owner in self.alive or vault.node != self.alive[heir]:
            self.broken_promises.append(f"worker {heir} cannot inherit from {dead}")
            return
        self.vaults[heir] = self.vaults.pop(owner)
        self.taken_over[owner] = heir

    def vault_of(self, worker: int) -> Vault | None:
        """A dead worker's vault, or what came of it."""
        while worker in self.taken_over:
            worker = self.taken_over[worker]
        return self.vaults.get(worker)

    def add_node(self, node: str, capacity: int) -> None:
        """Bring up a node."""
        if node in self.nodes:
            return
        self.fired.append(f"add {node}")
        self.nodes[node] = capacity
        self.at(2 * DEATH_S, self._node_up(node, capacity))

    def _node_up(self, node: str, capacity: int) -> NodeUp:
        memory_bytes = self.small_nodes.get(node, self.memory_bytes)
        return NodeUp(0, node, node, "host", capacity, memory_bytes)

    def reached(self, point: str, step: int, worker: int) -> None:
        """A worker of the gang has come to a point of the protocol."""
        if point == "voted":
            self.highest_voted = max(self.highest_voted, step)
        self.on_point(point, step, worker)

    def at_point(self, point: str, step: int, action: Callable[[int], None], nth: int = 0) -> None:
        """Let something happen once, when the nth worker comes to a point of a step."""
        seen: list[int] = []

        def look(name: str, at: int, worker: int) -> None:
            if (name, at) == (point, step):
                seen.append(worker)
                if len(seen) == nth + 1:
                    action(worker)

        before = self.on_point

        def both(name: str, at: int, worker: int) -> None:
            before(name, at, worker)
            look(name, at, worker)

        self.on_point = both

    def cut(self) -> None:
        """Break the gang's communication with everybody alive."""
        if self.gang and not self.gang.ended:
            self.fired.append("cut")
            self.gang.break_up("connection reset")

    def fail(self, worker: int, code: str, step: int) -> None:
        """Let a worker end with an error of its own."""
        assert self.gang is not None
        self.fired.append(f"fail {worker}")
        report = WorkerFailed(self.gang.generation, worker, step, code, f"{code} here")
        self.at(0.005, Reported(0, self.alive[worker], report))
        self._end(worker, "exit status 1")

    def carry_out(self, command: Command) -> None:
        """Do what the brain says."""
        self.commands.append(command)
        match command:
            case StartWorkers():
                self._start(command)
            case KillWorkers():
                for worker in command.workers:
                    if worker in self.alive:
                        self._end(worker, "killed by signal 9")
            case FormGeneration():
                self._form(command)
            case ForgetVaults():
                for worker in command.workers:
                    assert worker not in self.alive
                    self.vaults.pop(worker, None)
            case BreakGeneration():
                if self.gang and self.gang.generation == command.generation:
                    self.gang.break_up("told to")
            case InstructGang():
                if self.gang and self.gang.generation == command.generation:
                    plan = Plan.from_json(command.plan) if command.plan else None
                    self.gang.instruct(command.number, command.action, plan)
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
                self.report(READY_S, worker, WorkerReady(worker, 1000 + worker))

    def _form(self, command: FormGeneration) -> None:
        if self.gang is None or self.gang.generation < command.generation:
            self.gang = Gang(self, command)
            self.gang.begin()

    def _seal(self, command: SealCheckpoint) -> None:
        uri = f"checkpoints/{command.step}-{command.generation}"
        if not self.seals_work:
            self.at(self.seal_s, CheckpointLost(0, command.step, "disk full", command.generation))
            return
        self.sealed[uri] = command.step
        self.at(self.seal_s, CheckpointSealed(0, command.step, uri, 1000, command.generation))

    def report(
        self, delay_s: float, worker: int, report: object, still: Callable[[], bool] | None = None
    ) -> None:
        """Let a worker say something, if it lives then; its reports keep their order."""
        node = self.alive.get(worker, "")
        sent = isinstance(report, StepDone)  # on its way even if the worker dies
        at_s = max(self.now_s + delay_s, self._said_s.get(worker, 0.0))
        self._said_s[worker] = at_s
        self.at(
            at_s - self.now_s,
            Reported(0, node, report),  # type: ignore[arg-type]
            lambda: (sent or self.works(worker)) and (still is None or still()),
        )

    def works(self, worker: int) -> bool:
        """Whether a worker lives and does something."""
        return worker in self.alive and worker not in self.stopped

    def later(self, delay_s: float, action: Callable[[], object]) -> None:
        """Let something happen that nobody is told of."""
        self.at(delay_s, TimePassed(0), lambda: (action(), False)[1])


def decisions(world: World, kind: type[Any]) -> list[Any]:
    """Decisions of one kind that are on record."""
    found = (record.body for record in world.records if isinstance(record.body, Decided))
    return [one.decision for one in found if isinstance(one.decision, kind)]


def assert_sound(world: World) -> None:
    """What must hold after every run: nothing ignored, a sound history, a faithful journal."""
    assert world.broken_promises == []
    assert world.state.tally.ignored == 0
    assert check_history(world.records) == []
    assert replay(world.records) == world.state

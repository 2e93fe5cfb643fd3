"""The controller's hands in the pretend world: what each command leads to."""

from functools import partial

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
    CommandFailed,
    Event,
    TimePassed,
)
from elasticmoe.messages.worker import WorkerReady
from elasticmoe.plan.types import Plan
from elasticmoe.simulator.forming import form
from elasticmoe.simulator.gang import Instruction
from elasticmoe.simulator.leaving import break_by_order, die, end_node
from elasticmoe.simulator.nodes import Node, Process
from elasticmoe.simulator.world import Saved, World


class Hands:
    """Does what commands say."""

    def act(self, world: World, command: Command) -> None:
        """Begin what a command says; its outcome is an event."""
        match command:
            case StartWorkers():
                if not world.tell(command.node, lambda node: _start(world, node, command)):
                    _failed_start(world, command, f"node {command.node} has no agent")
            case KillWorkers():
                world.tell(command.node, lambda node: _kill(world, node, command))
            case FormGeneration():
                form(world, command)
            case BreakGeneration():
                _break(world, command)
            case InstructGang():
                _instruct(world, command)
            case SealCheckpoint():
                _seal(world, command)
            case DeleteCheckpoint():
                world.saved.pop(command.uri, None)
            case ForgetVaults():
                world.tell(command.node, lambda node: _forget(node, command))
            case WakeAt():
                _wake(world, command.at_s)
            case EndJob():
                world.over = True

    def end_agent(self, world: World, node: Node) -> None:
        """An agent ends itself: its controller has given it up."""
        end_node(world, node, seen=True)
        node.agent = False


def _start(world: World, node: Node, command: StartWorkers) -> None:
    for number in command.workers:
        if number in node.processes:
            continue
        if len(node.processes) >= node.capacity:
            _failed_start(world, command, f"node {node.name} has no room for worker {number}")
            return
        process = node.processes[number] = Process(number, node)
        ready_s = world.costs.fork_s * world.between(0.8, 1.6)
        world.at(ready_s, partial(_ready, world, process))


def _ready(world: World, process: Process) -> None:
    if not process.dead and not process.hung:
        process.ready = True
        world.report(process, WorkerReady(process.number, 1000 + process.number))


def _failed_start(world: World, command: StartWorkers, reason: str) -> None:
    _post_later(
        world,
        CommandFailed(0.0, "StartWorkers", reason, node=command.node, workers=command.workers),
    )


def _kill(world: World, node: Node, command: KillWorkers) -> None:
    for number in command.workers:
        process = node.processes.get(number)
        if process is not None:
            die(world, process, "killed by signal 9")


def _break(world: World, command: BreakGeneration) -> None:
    gang = world.gang
    members = frozenset(gang.workers if gang and gang.generation == command.generation else ())
    for node in list(world.nodes.values()):
        world.tell(node.name, lambda node: break_by_order(world, node, command.generation, members))


def _instruct(world: World, command: InstructGang) -> None:
    gang = world.gang
    if gang is None or gang.generation != command.generation:
        return
    waiting = set(gang.nodes)

    def arrive(node: Node) -> None:
        waiting.discard(node.name)
        known = any(one.number == command.number for one in gang.actions)
        if not waiting and not known:
            plan = None if command.plan is None else Plan.from_json(command.plan)
            gang.actions.append(Instruction(world.now_s, command.number, command.action, plan))

    for name in gang.nodes:
        if not world.tell(name, arrive):
            reason = f"node {name} has no agent"
            _post_later(world, CommandFailed(0.0, "InstructGang", reason, command.generation))


def _seal(world: World, command: SealCheckpoint) -> None:
    """A clerk writes the manifest; it is durable a little before anybody hears of it."""
    step, generation = command.step, command.generation
    versions = set(world.parts.get((generation, step), {}).values())
    if len(versions) != 1:
        world.truth.noticed(f"checkpoint of step {step} is sealed from {len(versions)} versions")
    if world.seal_failures and step < world.job.schedule.steps:  # at the end it is no use to redo
        world.seal_failures -= 1
        _post_later(world, CheckpointLost(0.0, step, "disk full", generation), world.costs.seal_s)
        return
    uri = f"checkpoints/{step}-{generation}"

    def sealed() -> None:
        world.saved[uri] = Saved(step, min(versions))
        _post_later(world, CheckpointSealed(0.0, step, uri, 1000, generation))

    world.at(world.costs.seal_s * world.between(0.5, 1.5), sealed)


def _forget(node: Node, command: ForgetVaults) -> None:
    for worker in command.workers:
        process = node.processes.get(worker)
        if process is None:
            node.forget(worker)


def _wake(world: World, at_s: float) -> None:
    term = world.keeper.term

    def wake() -> None:
        world.now_s = max(world.now_s, at_s)  # never early by a rounding error
        if world.keeper.up and world.keeper.term == term:
            world.post(TimePassed(0.0))

    world.at(max(at_s - world.now_s, 0.0), wake)


def _post_later(world: World, event: Event, delay_s: float = 0.001) -> None:
    """Post an outcome to the controller that asked; one that has died never hears of it."""
    term = world.keeper.term

    def arrive() -> None:
        if world.keeper.up and world.keeper.term == term:
            world.post(event)

    world.at(delay_s, arrive)

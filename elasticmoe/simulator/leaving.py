"""Workers leave their gang: they break off, die, hang, or are told to go."""

from functools import partial
from math import inf

from elasticmoe.messages.events import WorkerDied, WorkerSilent
from elasticmoe.messages.worker import WorkerParked
from elasticmoe.simulator.gang import Gang, Left
from elasticmoe.simulator.nodes import Node, Process
from elasticmoe.simulator.world import World

PASS_ON_S = 0.0003
"""A line from an agent to its worker."""


def break_off(world: World, process: Process, reason: str) -> None:
    """A living worker finds its generation over: it finishes what it must, parks and says so."""
    gang = process.gang
    if gang is None or process.dead or process.hung or process.stuck:
        return
    gang.left[process.number] = Left(world.now_s)
    process.gang, process.leaving = None, gang
    noticed_s = gang.leaves_at_s(process.number)
    parked_s = noticed_s + world.between(*world.costs.park_s)
    process.free_s = parked_s

    def park() -> None:
        if process.leaving is gang and not process.dead:
            _settle(world, process, gang)
            process.leaving = None
            _report_parked(world, process, gang.generation, reason)

    world.at(parked_s - world.now_s, park)


def die(world: World, process: Process, evidence: str, *, seen: bool = True) -> None:
    """A worker's process ends in the middle of whatever it does.

    Args:
        evidence: what its agent says of it.
        seen: whether peers on other nodes see resets; a machine that vanishes sends none.
    """
    if process.dead:
        return
    gang = process.gang or process.leaving
    if process.leaving is not None:
        process.leaving.left[process.number].until_s = world.now_s
        _settle(world, process, process.leaving)
    elif process.gang is not None and not process.hung and not process.stuck:
        _stop(world, process, process.gang)
    process.dead, process.gang, process.leaving = True, None, None
    world.at(
        world.between(0.7, 1.5) * world.costs.detect_s, lambda: _reap(world, process, evidence)
    )
    if seen and gang is not None:
        show_death(world, gang, process.node)


def show_death(world: World, gang: Gang, where: Node) -> None:
    """Some of a dead worker's peers see a connection reset."""
    waiting, gang.unaware = gang.unaware, []
    for name in waiting:
        node = world.nodes.get(name)
        if node is where or world.rng.random() >= world.costs.notice_probability:
            gang.unaware.append(name)
            continue
        if node is None:
            continue
        delay_s = world.between(0.5, 1.5) * world.costs.notice_s
        world.at(delay_s, partial(_see_reset, world, node, gang))


def hang(world: World, process: Process, lasts_s: float) -> None:
    """Stop a process; its agent hears its heart stop, unless it goes on before."""
    if process.dead or process.hung:
        return
    if process.gang is not None and not process.stuck:
        _stop(world, process, process.gang)
    elif process.leaving is not None:
        process.leaving.left[process.number].until_s = world.now_s
        _settle(world, process, process.leaving)
        process.gang, process.leaving = process.leaving, None
    process.hung = True
    world.at(world.costs.silence_s, lambda: _hear_silence(world, process, "no heartbeat"))
    if lasts_s:
        world.at(lasts_s, lambda: resume(world, process))


def stall(world: World, process: Process) -> None:
    """A process goes on beating, and makes no progress whatever it is told."""
    if process.dead or process.hung or process.stuck or process.gang is None:
        return
    _stop(world, process, process.gang)
    process.stuck = True


def resume(world: World, process: Process) -> None:
    """A stopped process goes on: it finds its generation over, or waits in a collective."""
    if process.dead or not process.hung:
        return
    process.hung = False
    gang = process.gang
    if gang is None or process.stuck:
        return
    gang.left[process.number].until_s = inf
    _settle(world, process, gang)
    process.gang = None
    process.free_s = world.now_s + world.between(*world.costs.park_s)
    world.at(
        process.free_s - world.now_s,
        lambda: _report_parked(world, process, gang.generation, "peers closed the connection"),
    )


def break_locally(world: World, node: Node, generation: int, reason: str) -> None:
    """An agent tells its workers that a generation is over, once."""
    if generation <= node.broken:
        return
    node.broken = generation
    for process in node.living():
        if process.gang is not None and process.gang.generation == generation:
            world.at(PASS_ON_S, partial(_obey, world, process, generation, reason))


def break_by_order(world: World, node: Node, generation: int, members: frozenset[int]) -> None:
    """What an agent does with `BreakGeneration`."""
    break_locally(world, node, generation, "the controller ended this generation")
    for process in node.living():
        if process.number in members and process.told < generation:
            process.told = generation
            parked = WorkerParked(generation, process.number, 0, "it had not been told to join yet")
            world.report(process, parked)


def end_node(world: World, node: Node, *, seen: bool) -> None:
    """A machine or its agent is gone, with all workers and vaults."""
    for process in node.living():
        die(world, process, "its node ended", seen=seen)
    node.processes.clear()
    node.vaults.clear()
    node.backlog.clear()


def _stop(world: World, process: Process, gang: Gang) -> None:
    """Nothing more comes of a process from now on."""
    gang.left[process.number] = Left(world.now_s, world.now_s)
    _settle(world, process, gang)


def _settle(world: World, process: Process, gang: Gang) -> None:
    """Write into its vault what a process has got to."""
    if process.vault is not None:
        process.phase = gang.freeze(process.number, process.vault, world.lineage)


def _reap(world: World, process: Process, evidence: str) -> None:
    node = process.node
    if node.processes.pop(process.number, None) is None or not node.runs:
        return
    break_locally(world, node, process.told, f"worker {process.number} ended")
    vault = process.vault
    copies = vault.copies(process.number, world.lineage, process.phase) if vault else None
    died = WorkerDied(
        0.0, node.name, process.number, evidence, f"logs/{process.number}.txt", copies
    )
    world.at(
        world.between(0.0, 1.0) * world.costs.link_s,
        lambda: world.deliver(node, died),
    )


def _hear_silence(world: World, process: Process, what: str) -> None:
    if process.dead or not process.hung:
        return
    node = process.node
    break_locally(world, node, process.told, f"worker {process.number} is silent")
    evidence = f"{what} for {world.costs.silence_s:g} s"
    world.say(node, process.number, WorkerSilent(0.0, node.name, process.number, evidence))


def _report_parked(world: World, process: Process, generation: int, reason: str) -> None:
    vault, lineage = process.vault, world.lineage
    step = lineage.step(vault.progress) if vault and vault.progress >= 0 else process.step
    copies = vault.copies(process.number, lineage, process.phase) if vault else None
    world.report(process, WorkerParked(generation, process.number, step, reason, copies))
    node = process.node
    break_locally(world, node, generation, f"worker {process.number} has parked")


def _see_reset(world: World, node: Node, gang: Gang) -> None:
    for process in node.living():
        if process.gang is gang:
            break_off(world, process, "connection reset by peer")


def _obey(world: World, process: Process, generation: int, reason: str) -> None:
    if process.gang is not None and process.gang.generation == generation:
        break_off(world, process, reason)

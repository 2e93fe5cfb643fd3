"""A generation forms: members meet, have their state in place, and begin."""

from functools import partial

from elasticmoe.messages.commands import FormGeneration
from elasticmoe.messages.events import CommandFailed
from elasticmoe.messages.worker import FromMemory, GangFormed, WorkerFailed
from elasticmoe.plan.types import Plan
from elasticmoe.simulator.gang import Gang, homes_by_member
from elasticmoe.simulator.leaving import break_off, die
from elasticmoe.simulator.nodes import Node, Process
from elasticmoe.simulator.training import begin_step, end_at_once, process_of
from elasticmoe.simulator.vaults import Units, Vault
from elasticmoe.simulator.world import World


def form(world: World, command: FormGeneration) -> None:
    """Open the generation's store, then send every member its order."""
    if world.gang is not None and world.gang.generation > command.generation:
        return  # its members have heard of a newer one
    if world.gang is not None and world.gang.generation == command.generation:
        gang = world.gang  # asked again by a controller that took over
    else:
        gang = world.gang = _gang_of(world, command)
        world.truth.opened(gang)
    by_node: dict[str, list[int]] = {}
    for position, member in enumerate(gang.plan.members):
        by_node.setdefault(member.node, []).append(position)

    def opened(store: Node) -> None:
        for name, positions in by_node.items():
            known = world.tell(name, partial(_send, world, gang, positions))
            if not known:
                _failed(world, gang, f"node {name} has no agent")

    if not world.tell(command.store_node, opened):
        _failed(world, gang, f"node {command.store_node} has no agent")


def _gang_of(world: World, command: FormGeneration) -> Gang:
    plan = Plan.from_json(command.plan)
    primaries, mirrors = homes_by_member(plan)
    memory, uri = command.memory, command.checkpoint
    saved = world.saved[uri] if uri is not None else None
    gang = Gang(
        generation=command.generation,
        plan=plan,
        workers=tuple(member.worker for member in plan.members),
        primaries=primaries,
        mirrors=mirrors,
        memory=memory,
        checkpoint=uri,
        first_command=command.first_command,
        step=memory.step if memory else saved.step if saved else 0,
        version=saved.version if saved else 0,
        alone=frozenset(unit for unit, homes in enumerate(plan.homes) if len(homes) == 1),
    )
    for unit, to in _arrivals(memory) if memory else ():
        gang.incoming.setdefault(to, []).append(unit)
    return gang


def _arrivals(memory: FromMemory) -> list[tuple[int, int]]:
    """(unit, member that gets it), in the order in which they get there."""
    gathered = [(unit, to) for unit, _, to in memory.gathered]
    rebuilt = [(unit, where) for unit, where, _ in memory.rebuilt]
    return gathered + rebuilt + [(unit, to) for unit, _, to in memory.moves]


def _failed(world: World, gang: Gang, reason: str) -> None:
    failed = CommandFailed(0.0, "FormGeneration", reason, gang.generation)
    world.at(world.costs.link_s, lambda: world.keeper.up and world.post(failed))


def _send(world: World, gang: Gang, positions: list[int], node: Node) -> None:
    """An agent sends its members their orders, once each; vaults change hands."""
    memory = gang.memory
    new = [
        (position, process)
        for position in positions
        if (process := node.processes.get(gang.workers[position])) is not None
        and process.told < gang.generation
    ]
    workers = {process.number for _, process in new}
    problem = _problem(node, memory, workers) if memory else ""
    if problem:
        world.truth.noticed(f"generation {gang.generation}: {problem}")
        _failed(world, gang, problem)
        return
    for heir, dead in memory.heirs if memory else ():
        if heir in workers:
            node.inherit(heir, dead)
    for position, process in new:
        process.told = gang.generation
        vault = node.vaults.get(process.number)
        if vault is None:
            vault = node.vaults[process.number] = Vault(node.name)
        process.vault = vault
        read = [one for reader, one in memory.adopted if reader == process.number] if memory else []
        gang.adopted[position] = [one for one in map(node.vault_of, read) if one is not None]
        if process.gang is not None:  # a newer order ends whatever went before
            break_off(world, process, f"generation {gang.generation} follows")
        wait_s = max(process.free_s - world.now_s, 0.0)
        world.at(wait_s, partial(_arrive, world, gang, position, process))


def _problem(node: Node, memory: FromMemory, workers: set[int]) -> str:
    """What an agent refuses; nothing has changed hands then."""
    for heir, dead in memory.heirs:
        vault = node.vault_of(dead)
        if heir not in workers:
            continue
        if vault is None:
            return f"the vault of worker {dead}, for worker {heir}, is not on node {node.name}"
        owners = [p.number for p in node.living() if p.vault is vault and p.number != heir]
        if owners:
            return f"worker {owners[0]} lives and works in the vault of worker {dead}"
    for reader, dead in memory.adopted:
        if reader in workers and node.vault_of(dead) is None:
            return f"the vault of worker {dead}, to be read by worker {reader}, is not there"
    return ""


def _arrive(world: World, gang: Gang, position: int, process: Process) -> None:
    """A member is ready to meet the others."""
    if process.dead or process.hung or process.stuck or world.gang is not gang:
        return
    process.gang = gang
    gang.arrived.add(position)
    if process.node.broken >= gang.generation:
        break_off(world, process, "the controller ended this generation")
        return
    if len(gang.arrived) < len(gang.workers) or gang.left:
        return
    world.at(world.costs.group_seconds(len(gang.workers)), lambda: _met(world, gang))


def _met(world: World, gang: Gang) -> None:
    """All members are in one group: they have their state in place."""
    if gang.left:
        return
    costs, forming = world.costs, gang.forming
    forming.groups_s = world.now_s
    moved = [_bytes(world, tuple(units)) for units in gang.incoming.values()]
    if gang.memory is None:
        largest = max(_bytes(world, gang.homes(member)) for member in range(len(gang.workers)))
        forming.recalled_s = world.now_s + largest / costs.load_bytes_per_s
    else:
        forming.recalled_s = world.now_s + costs.recall_s
    forming.moved_s = forming.recalled_s + max(moved, default=0) / costs.move_bytes_per_s
    world.at(forming.recalled_s - world.now_s, lambda: _recalled(world, gang))


def _recalled(world: World, gang: Gang) -> None:
    if gang.left:
        return
    if gang.memory is not None:
        gang.version = _shared_version(world, gang)
    gang.forming.shared = True
    world.at(gang.forming.moved_s - world.now_s, lambda: _moved(world, gang))


def _shared_version(world: World, gang: Gang) -> int:
    """Where the gang goes on: the progress that one member sends to all."""
    memory = gang.memory
    assert memory is not None, "from memory"
    member = memory.progress_from
    process = process_of(world, gang, member)
    vaults = list(gang.adopted.get(member, []))
    if process is not None and process.vault is not None:
        vaults.insert(0, process.vault)
    for vault in vaults:
        if memory.is_snapshot:
            found = vault.snapshot_of(memory.step, world.lineage)
            if found is not None:
                return found.version
            continue
        version = vault.progress
        if version >= 0 and world.lineage.step(version) == memory.step:
            return version
        if version >= 0 and world.lineage.step(version) == memory.step - 1:
            if vault.prepared is not None and vault.prepared_step == memory.step:
                return world.lineage.after(version, vault.prepared)
    world.truth.noticed(
        f"generation {gang.generation}: member {member} has no progress of step {memory.step}"
    )
    return 0


def _moved(world: World, gang: Gang) -> None:
    """Everything that was to be moved has arrived: is everything there?"""
    if gang.left:
        return
    missing = _take_stock(world, gang) if gang.memory is not None else {}
    if missing:
        member, unit = next(iter(missing.items()))
        text = f"unit {unit} is not whole at step {gang.step} ({len(missing)} members lack some)"
        world.truth.noticed(
            f"generation {gang.generation}: worker {gang.workers[member]} goes on from memory, "
            f"but {text}"
        )
        _fail_whole(world, gang, member, text)
        return
    for member in range(len(gang.workers)):
        process = process_of(world, gang, member)
        assert process is not None, "nobody has left"
        assert process.vault is not None, "whoever has arrived has a vault"
        if gang.memory is None:
            process.vault.clear()
        process.vault.join(gang.generation)
        gang.uniform(member, process.vault)
        process.step = gang.step
    gang.joined = True
    world.truth.joined(gang)
    world.at(world.costs.publish_s, lambda: _begin(world, gang))


def _take_stock(world: World, gang: Gang) -> dict[int, int]:
    """Roll forward and move as the plan says; per member the first unit it then lacks."""
    assert gang.memory is not None, "from memory"
    lineage = world.lineage
    vaults: list[Vault] = []
    for member in range(len(gang.workers)):
        process = process_of(world, gang, member)
        assert process is not None, "nobody has left"
        assert process.vault is not None, "whoever has arrived has a vault"
        gang.roll(member, process.vault, 1.0, lineage)
        vaults.append(process.vault)
    missing: dict[int, int] = {}
    there = [
        {
            unit
            for readable in (vault, *gang.adopted.get(member, ()))
            for unit in readable.units.get(gang.version, ())
        }
        for member, vault in enumerate(vaults)
    ]
    for unit, source, to in gang.memory.gathered:
        if unit not in there[source]:
            missing.setdefault(source, unit)
        there[to].add(unit)
    for unit, where, others in gang.memory.rebuilt:
        parities = _parities(gang, where, vaults[where])
        if not there[where].issuperset(others) or frozenset((unit, *others)) not in parities:
            missing.setdefault(where, unit)
        there[where].add(unit)
    for unit, source, _ in gang.memory.moves:
        if unit not in there[source]:
            missing.setdefault(source, unit)
    for member, vault in enumerate(vaults):
        gang.receive(member, vault, 1.0)
        has = set(vault.units.get(gang.version, ()))
        lacks = [unit for unit in gang.homes(member) if unit not in has]
        if lacks:
            missing.setdefault(member, lacks[0])
    return missing


def _parities(gang: Gang, member: int, vault: Vault) -> set[frozenset[int]]:
    """Units of which a member can read the XOR at the version to go on from."""
    return {
        frozenset(group)
        for readable in (vault, *gang.adopted.get(member, ()))
        for snapshot in readable.snapshots
        for group in snapshot.groups
        if snapshot.version == gang.version
    }


def _fail_whole(world: World, gang: Gang, member: int, text: str) -> None:
    process = process_of(world, gang, member)
    assert process is not None, "nobody has left"
    failed = WorkerFailed(gang.generation, process.number, gang.step, "not_whole", text)
    world.report(process, failed)
    world.at(2 * world.costs.link_s, lambda: die(world, process, "exit status 1"))


def _begin(world: World, gang: Gang) -> None:
    """Weights are published: everybody says so and begins."""
    if gang.left:
        return
    for member in range(len(gang.workers)):
        process = process_of(world, gang, member)
        assert process is not None, "nobody has left"
        formed = GangFormed(gang.generation, process.number, gang.step + 1, {})
        world.report(process, formed, world.between(0.0, 0.001))
    if gang.step >= world.job.schedule.steps:
        end_at_once(world, gang)
    else:
        begin_step(world, gang)


def _bytes(world: World, units: Units) -> float:
    sizes = world.inventory.units
    return float(sum(sizes[unit].numel for unit in units) * world.costs.element_bytes)

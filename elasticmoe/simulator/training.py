"""A gang takes steps: a few events each, whatever its size."""

from collections.abc import Callable
from functools import partial

from elasticmoe.messages.worker import CheckpointPart, GangEnded, StepDone
from elasticmoe.plan.types import Plan
from elasticmoe.simulator.costs import phases_of
from elasticmoe.simulator.gang import Gang, Instruction
from elasticmoe.simulator.lineage import Gradient
from elasticmoe.simulator.nodes import Node, Process
from elasticmoe.simulator.snapshots import plan_taking
from elasticmoe.simulator.vaults import Vault
from elasticmoe.simulator.world import Saved, World

Then = Callable[[World, Gang], None]
"""How a gang goes on."""


def begin_step(world: World, gang: Gang) -> None:
    """All members begin the next step together."""
    if gang.left or gang.ended or world.over:
        return
    step_s = world.costs.step_seconds(len(gang.workers), world.job.workers.replicas)
    step_s *= max(node.slow for node in nodes_of(world, gang).values())
    gang.phases = phases_of(world.costs, step_s)
    gang.began_s, gang.trains = world.now_s, True
    gang.voted = gang.published = False
    step = gang.step
    world.at(gang.phases.vote, lambda: _vote(world, gang, step))
    world.at(gang.phases.publish, lambda: _publish(gang, step))
    world.at(gang.phases.apply, lambda: _end(world, gang, step))
    for asked in list(world.on_phase):
        asked(gang)


def end_at_once(world: World, gang: Gang) -> None:
    """No step is left to take: what is left to do is the last checkpoint."""
    gang.ended = True
    _write_checkpoint(world, gang, last=True)


def nodes_of(world: World, gang: Gang) -> dict[str, Node]:
    """The nodes that a gang's members run on."""
    return {name: world.nodes[name] for name in gang.nodes}


def process_of(world: World, gang: Gang, member: int) -> Process | None:
    """A member's process, if it lives."""
    where = gang.plan.members[member]
    node = world.nodes.get(where.node)
    process = node.processes.get(where.worker) if node else None
    return None if process is None or process.dead else process


def _vote(world: World, gang: Gang, step: int) -> None:
    is_empty = len(gang.left) == len(gang.workers)
    if gang.step != step or is_empty or not gang.everyone_voted():
        return
    gang.voted = True
    version = world.lineage.after(gang.version, Gradient(gang.generation, step + 1))
    world.truth.voted(gang, version)


def _publish(gang: Gang, step: int) -> None:
    gang.published = gang.step == step and gang.voted and gang.everyone_published()


def _end(world: World, gang: Gang, step: int) -> None:
    """The step is over for all who are left; without everybody it is the gang's last."""
    if gang.step != step or not gang.published:
        return
    job = world.job
    version = world.lineage.after(gang.version, Gradient(gang.generation, step + 1))
    due = _due_instructions(gang)
    actions = {one.action for one in due}
    if not gang.left:
        gang.step, gang.version = step + 1, version
        world.truth.committed(gang, version)
    _report_step(world, gang, step + 1, version)
    if gang.left:
        return
    then: Then = begin_step
    if "stop" in actions or step + 1 == job.schedule.steps:
        then = end_at_once
    elif "pause" in actions:
        then = _pause
    elif "checkpoint" in actions or (step + 1) % job.checkpoint.interval_steps == 0:
        _write_checkpoint(world, gang, last=False)
    if "snapshot" in actions:
        then = partial(_take_snapshot, then=then)
    plans = [one.plan for one in due if one.plan is not None]
    if plans:
        then = partial(_protect, plan=plans[-1], then=then)
    then(world, gang)


def _protect(world: World, gang: Gang, plan: Plan, then: Then) -> None:
    """Copy units to their new homes between two steps; only then does the new plan hold, and the
    gang goes on, or ends."""
    incoming = [0] * len(gang.workers)
    for unit, (before, after) in enumerate(zip(gang.plan.homes, plan.homes, strict=True)):
        for member in set(after) - set(before):
            incoming[member] += world.inventory.units[unit].numel * world.costs.element_bytes
    copied_s = max(incoming) / world.costs.move_bytes_per_s
    gang.rest_until(world.now_s + copied_s)

    def copied() -> None:
        if not gang.left:
            gang.follow(plan)
            then(world, gang)

    world.at(copied_s, copied)


def _take_snapshot(world: World, gang: Gang, then: Then) -> None:
    """Have one in all members' vaults before the gang goes on, or ends."""
    taking = gang.taking = plan_taking(world, gang)
    vaults = [_vault_of(world, gang, member) for member in range(len(gang.workers))]
    gang.rest_until(world.now_s + taking.took_s)
    world.truth.snapshotted(gang)
    for vault in vaults:
        vault.make_room(world.lineage)

    def taken() -> None:
        if gang.left:
            return
        for member, vault in enumerate(vaults):
            gang.keep_snapshot(member, vault)
        gang.taking, gang.snapshot_s = None, taking.took_s
        then(world, gang)

    world.at(taking.took_s, taken)


def _vault_of(world: World, gang: Gang, member: int) -> Vault:
    """The vault of a member that is in its gang."""
    process = process_of(world, gang, member)
    assert process is not None, "nobody has left"
    assert process.vault is not None, "whoever trains has a vault"
    return process.vault


def _due_instructions(gang: Gang) -> list[Instruction]:
    """Those that everybody held when the records of this step were gathered."""
    assert gang.phases is not None, "a step is open"
    gathered_s = gang.began_s + 0.9 * gang.phases.agree
    found = []
    for one in sorted(gang.actions, key=lambda one: one.number):
        if one.since_s <= gathered_s and one.number == gang.instructed + 1:
            gang.instructed = one.number
            found.append(one)
    return found


def _report_step(world: World, gang: Gang, step: int, version: int) -> None:
    """The first member says that a step is committed, once it has applied it itself.

    Its number follows the one that the gang was told to go on from; its samples follow those that
    went into the state which the gang really had.
    """
    process = process_of(world, gang, 0)
    left = gang.left.get(gang.workers[0])
    assert gang.phases is not None, "a step was open"
    if process is None or (left is not None and left.until_s < world.now_s):
        return
    size, used = world.job.batch.global_samples, world.lineage.step(version)
    done = StepDone(
        generation=gang.generation,
        step=step,
        seconds=gang.phases.apply,
        loss=2.0 + 8.0 / (step + 1),
        metrics={},
        samples=((used - 1) * size, used * size),
        instructed=gang.instructed,
        snapshot_s=gang.snapshot_s,
    )
    gang.snapshot_s = 0.0
    process.step = step
    world.report(process, done)


def _write_checkpoint(world: World, gang: Gang, *, last: bool) -> None:
    """Every member copies its homes and writes them while training goes on."""
    step, version = gang.step, gang.version
    units = world.inventory.units
    for member in range(len(gang.workers)):
        process = process_of(world, gang, member)
        if process is None:
            continue
        elements = sum(units[unit].numel for unit in gang.primaries[member])
        write_s = elements * world.costs.element_bytes / world.costs.save_bytes_per_s
        write_s = (write_s + 0.005) * world.between(1.0, 1.3)
        world.at(
            write_s,
            partial(_written, world, gang, process, Saved(step, version), last),
        )
        if last:
            assert process.vault is not None, "whoever trains has a vault"
            gang.uniform(member, process.vault)
            process.gang = None
            process.step = step


def _pause(world: World, gang: Gang) -> None:
    """Everybody leaves between two steps, with all it keeps in its vault."""
    gang.ended = True
    for member in range(len(gang.workers)):
        process = process_of(world, gang, member)
        if process is None:
            continue
        assert process.vault is not None, "whoever trains has a vault"
        gang.uniform(member, process.vault)
        process.gang, process.step = None, gang.step
        world.report(process, _gang_ended(world, gang, process, gang.step))


def _written(world: World, gang: Gang, process: Process, saved: Saved, last: bool) -> None:
    """A member's part is durable; at its gang's end it says so when it has said that."""
    if process.dead or process.hung:
        return
    generation, worker, step = gang.generation, process.number, saved.step
    world.parts.setdefault((generation, step), {})[worker] = saved.version
    files = [{"path": f"{step}/{worker}"}]
    world.report(process, CheckpointPart(generation, worker, step, files, {"step": step}))
    if last:
        world.report(process, _gang_ended(world, gang, process, step))


def _gang_ended(world: World, gang: Gang, process: Process, step: int) -> GangEnded:
    vault = process.vault
    copies = vault.copies(process.number, world.lineage) if vault is not None else None
    snapshots = copies.snapshots if copies is not None else ()
    return GangEnded(gang.generation, process.number, step, snapshots, gang.instructed)

"""What is left between two generations, and how the next one is decided from it."""

from functools import cache, lru_cache
from typing import NamedTuple

from protocol_vault import Bug, Case, Copy, Slot, Vault, empty_vault, read_copies

from elasticmoe.controller.copies import Settled, find_sources, has_progress, settle_step
from elasticmoe.messages.worker import Copies

Homes = tuple[tuple[int, ...], ...]


class World(NamedTuple):
    """Everything that outlives a generation; worker i keeps its position i for good."""

    vaults: tuple[Vault | None, ...]
    """None: lost with its node, or there never was one."""
    weights: tuple[int, ...]
    """Step of each worker's compute weights; -1: its process is dead, or it has none."""
    alive: tuple[bool, ...]
    committed: int
    """Steps that the journal knows as committed, even if no report has arrived since."""
    reported: int
    """Steps that some worker may have reported."""
    generation: int = 1
    settled: int = -1
    """The step that was decided on since a generation last trained; -1: none."""
    faults: int = 0
    """Since a generation last trained."""
    lost: int = 0
    """Of these, those that lost vaults."""
    spread: int = 1
    """Different nodes that every unit then had homes on."""


class Decision(NamedTuple):
    """How the next generation starts."""

    step: int
    members: tuple[int, ...]
    homes: Homes
    moves: tuple[tuple[int, int, int], ...]
    """(unit, member that has it in its own or an adopted vault, home that lacks it)."""
    progress_from: int
    adopted: tuple[tuple[int, int], ...]
    """(member, dead worker on its node whose vault it reads and writes too)."""
    reason: str


class Unrecoverable(NamedTuple):
    """Memory does not hold enough; a snapshot or checkpoint is next."""

    reason: str


def begin(case: Case) -> World:
    """A gang that has just been formed from the seed."""
    members = tuple(range(case.workers))
    homes = plan_homes(case, members)
    vaults = tuple(
        Vault(
            tuple(Copy(0, 0) if worker in homes[unit] else Copy() for unit in range(case.units)),
            (Slot(0, ()), None),
            generation=1,
        )
        for worker in members
    )
    everybody = (True,) * case.workers
    return World(vaults, (0,) * case.workers, everybody, 0, 0, spread=measure_spread(case, homes))


@cache
def plan_homes(case: Case, members: tuple[int, ...]) -> Homes:
    """Primary first: the next members in the ring, on different nodes as far as there are any."""
    homes = []
    for unit in range(case.units):
        ring = sorted(members, key=lambda worker: (worker - unit) % case.workers)
        chosen: list[int] = []
        while len(chosen) < min(case.redundancy, len(members)):
            nodes = {case.node(worker) for worker in chosen}
            rest = [worker for worker in ring if worker not in chosen]
            chosen.append(min(rest, key=lambda worker: case.node(worker) in nodes))
        homes.append(tuple(chosen))
    return tuple(homes)


@cache
def measure_spread(case: Case, homes: Homes) -> int:
    """Nodes that can be lost at once, plus one."""
    return min(len({case.node(worker) for worker in chosen}) for chosen in homes)


def settle(case: Case, world: World, committed: int) -> Settled | None:
    """Decide on the step with the code that the controller runs.

    Args:
        committed: steps that the controller knows as committed.
    """
    if case.decide_once and world.settled >= 0:
        return Settled(world.settled, False, "it was decided before")
    asked = [
        copies
        for copies in _copies(case, world)
        if world.alive[copies.worker] or Bug.ASK_SURVIVORS not in case.bugs
    ]
    return settle_step(asked, committed)


def decide(
    case: Case, world: World, settled: Settled | None, *, replace: bool
) -> Decision | Unrecoverable | None:
    """Decide who supplies what, with the code that the controller runs.

    Args:
        settled: the step to go on from.
        replace: have a new worker in the place of every dead one (it takes over its vault where
            the node lives), instead of going on with who is left.

    Returns:
        None if the survivors alone cannot reach all that memory holds.
    """
    if settled is None:
        return Unrecoverable("no whole copy is left")
    workers = range(case.workers)
    members = tuple(worker for worker in workers if replace or world.alive[worker])
    reader = _find_readers(case, world, members)
    copies = [vault for vault in _copies(case, world) if vault.worker in reader]
    sources = find_sources(copies, settled.step)
    progress = [reader[vault.worker] for vault in copies if has_progress(vault, settled.step)]
    missing = [unit for unit in range(case.units) if unit not in sources]
    if missing or not progress:
        what = f"unit {missing[0]}" if missing else "the bias"
        reason = f"{what} is nowhere whole at step {settled.step} ({settled.reason})"
        return Unrecoverable(reason) if replace else None
    homes = plan_homes(case, members)
    moves = tuple(
        (unit, reader[min(sources[unit], key=lambda at: (at - home) % case.workers)], home)
        for unit, chosen in enumerate(homes)
        for home in chosen
        if home not in sources[unit]
    )
    adopted = tuple((member, dead) for dead, member in reader.items() if member != dead)
    return Decision(settled.step, members, homes, moves, progress[0], adopted, settled.reason)


def _copies(case: Case, world: World) -> list[Copies]:
    return [
        read_copies(case, vault, worker)
        for worker, vault in enumerate(world.vaults)
        if vault is not None
    ]


def _find_readers(case: Case, world: World, members: tuple[int, ...]) -> dict[int, int]:
    """Whose vault is read by which member: its own, and those of the dead of its node."""
    reader = {member: member for member in members}
    for worker, vault in enumerate(world.vaults):
        if vault is not None and worker not in reader:
            near = [member for member in members if case.node(member) == case.node(worker)]
            if near:
                reader[worker] = near[0]
    return reader


def rotations(case: Case) -> list[int]:
    """By how many positions workers and units can be turned without changing what is checked."""
    workers = range(case.workers)

    def together(turn: int) -> list[list[bool]]:
        nodes = [case.node((worker + turn) % case.workers) for worker in workers]
        return [[one == other for other in nodes] for one in nodes]

    return [turn for turn in workers if together(turn) == together(0)]


def turn_world(case: Case, world: World, turn: int) -> World:
    """Call every worker and every unit by another name."""
    vaults = [vault and _turn_vault(case, vault, turn) for vault in world.vaults]
    return world._replace(
        vaults=tuple(vaults[turn:] + vaults[:turn]),
        weights=world.weights[turn:] + world.weights[:turn],
        alive=world.alive[turn:] + world.alive[:turn],
    )


@lru_cache(maxsize=1 << 16)
def _turn_vault(case: Case, vault: Vault, turn: int) -> Vault:
    rows = range(0, case.units, case.workers)
    order = [row + (place + turn) % case.workers for row in rows for place in range(case.workers)]
    copies = tuple(vault.copies[unit] for unit in order)
    undo = vault.undo and (order.index(vault.undo[0]), vault.undo[1])
    return vault._replace(copies=copies, undo=undo)


def vault_of(case: Case, world: World, worker: int) -> Vault:
    """The vault that a member begins with."""
    return world.vaults[worker] or empty_vault(case)

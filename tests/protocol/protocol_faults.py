"""What faults can leave of a generation, and what of it may be called a success."""

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import NamedTuple

from protocol_run import BrokenPromiseError, Moment, Track
from protocol_vault import Bug, Case, Copy, History, Slot, Vault, drop_garbage, whole_step
from protocol_world import Decision, World, measure_spread

KILLED, LOST, PARKED = "killed", "lost with its node", "parked"

Fate = tuple[int, str, Moment]
"""(worker, how it ended, its last moment)."""


class Ending(NamedTuple):
    """How a generation ended."""

    faults: int
    nodes: tuple[int, ...]
    """Lost."""
    fates: tuple[Fate, ...]


def endings(case: Case, world: World, tracks: Sequence[Track], max_faults: int) -> Iterator[Ending]:
    """List every way in which up to so many faults can end a generation.

    A fault kills one process, loses one node, or cuts the communication of all.
    """
    members = {track.worker for track in tracks}
    nodes = sorted(
        {
            case.node(worker)
            for worker, vault in enumerate(world.vaults)
            if vault is not None or worker in members
        }
    )
    options = [_options(tracks, window) for window in _windows(tracks)]
    for faults, lost, killed in _fault_sets(case, members, nodes, max_faults):
        for window in options:
            choices = []
            for worker, (parked, dead) in window.items():
                if case.node(worker) in lost:
                    choices.append([(worker, LOST, parked[-1])])
                elif worker in killed:
                    choices.append([(worker, KILLED, moment) for moment in dead])
                else:
                    choices.append([(worker, PARKED, moment) for moment in parked])
            for fates in product(*choices):
                needed = faults + (_num_after_break(fates) == faults)
                if needed <= max_faults:
                    yield Ending(needed, lost, fates)


def _num_after_break(fates: Sequence[Fate]) -> int:
    """Deaths that came after a break: something else must have broken the collective."""
    return sum(1 for _, fate, moment in fates if fate == KILLED and moment.is_after_break)


def _fault_sets(
    case: Case, members: set[int], nodes: Sequence[int], max_faults: int
) -> Iterator[tuple[int, tuple[int, ...], frozenset[int]]]:
    for faults in range(1, max_faults + 1):
        for num_lost in range(faults + 1):
            for lost in combinations(nodes, num_lost):
                left = sorted(worker for worker in members if case.node(worker) not in lost)
                for killed in combinations(left, faults - num_lost):
                    yield faults, lost, frozenset(killed)
    yield 1, (), frozenset()


def _windows(tracks: Sequence[Track]) -> list[list[tuple[int, int]]]:
    """Per window the first and last moment of each track: from one collective to the next."""
    borders = []
    for track in tracks:
        entered = [at for at, moment in enumerate(track.moments) if moment.collective]
        borders.append(entered if entered[0] == 0 else [0, *entered])
    return [
        [(border[window], border[window + 1]) for border in borders]
        for window in range(len(borders[0]) - 1)
    ]


def _options(
    tracks: Sequence[Track], window: list[tuple[int, int]]
) -> dict[int, tuple[list[Moment], list[Moment]]]:
    """Per worker: the moments at which it can park in a window, and at which it can die."""
    found = {}
    for track, (first, last) in zip(tracks, window, strict=True):
        waiting = [track.moments[first], track.moments[last]]
        parked = [moment.broken[-1] if moment.broken else moment for moment in waiting]
        dead = [
            each for moment in track.moments[first : last + 1] for each in (moment, *moment.broken)
        ]
        found[track.worker] = (_unlike(parked), _unlike(dead))
    return found


def _unlike(moments: list[Moment]) -> list[Moment]:
    """One of all moments that leave the same behind."""
    kept: dict[object, Moment] = {}
    for moment in moments:
        held = tuple((worker, drop_garbage(vault)) for worker, vault in moment.held)
        left = moment._replace(held=held)
        kept.setdefault((held, left.weights, left.finished), left)
    return list(kept.values())


def fall(case: Case, world: World, ending: Ending) -> World:
    """What is left after an ending."""
    vaults = list(world.vaults)
    weights, alive = [-1] * case.workers, [False] * case.workers
    reported, lost = world.reported, len(ending.nodes)
    for worker, fate, moment in ending.fates:
        reported = max(reported, moment.finished)
        for owner, vault in moment.held:
            vaults[owner] = vault
        if fate == PARKED:
            weights[worker], alive[worker] = moment.weights, True
        elif fate == KILLED and case.is_mortal:
            vaults[worker] = moment.held[0][1]._replace(copies=(Copy(),) * case.units)
            lost += 1
    for worker in range(case.workers):
        if case.node(worker) in ending.nodes:
            vaults[worker] = None
    return world._replace(
        vaults=tuple(vaults),
        weights=tuple(weights),
        alive=tuple(alive),
        reported=reported,
        faults=world.faults + ending.faults,
        lost=world.lost + lost,
    )


def check_finished_alike(tracks: Sequence[Track]) -> None:
    """No two workers are ever more than one step apart."""
    for window in _windows(tracks):
        first = [track.moments[at].finished for track, (at, _) in zip(tracks, window, strict=True)]
        last = [track.moments[at].finished for track, (_, at) in zip(tracks, window, strict=True)]
        if max(last) - min(first) > 1:
            raise BrokenPromiseError("two workers are more than one step apart")


def check_recoverable(case: Case, world: World, reason: str) -> None:
    """Memory may fail us only if too much of it was lost."""
    if world.lost == 0:
        raise BrokenPromiseError(f"no vault was lost, and yet {reason}")
    if world.faults < world.spread:
        raise BrokenPromiseError(
            f"{world.faults} faults hit units with {world.spread} homes, and yet {reason}"
        )
    vaults = [vault for vault in world.vaults if vault is not None]
    found = {
        unit for vault in vaults for unit in range(case.units) if whole_step(case, vault, unit) >= 0
    }
    if len(found) == case.units and any(vault.step >= 0 for vault in vaults):
        raise BrokenPromiseError(f"every unit and the bias have a whole copy, and yet {reason}")


def check_formed(case: Case, world: World, decision: Decision, tracks: Sequence[Track]) -> History:
    """A new generation goes on exactly where an undisturbed run would be.

    Returns:
        What was applied to every unit and to the bias.
    """
    step = decision.step
    if step < world.reported:
        raise BrokenPromiseError(f"step {world.reported} was reported, the gang is back at {step}")
    values: dict[History, str] = {}
    for track in tracks:
        vault = track.vault
        for unit, homes in enumerate(decision.homes):
            if track.worker in homes:
                copy = vault.copies[unit]
                if (copy.before, copy.after) != (step, step):
                    raise BrokenPromiseError(
                        f"worker {track.worker} trains with unit {unit} at {copy.after}, not {step}"
                    )
                values[copy.value] = f"unit {unit} of worker {track.worker}"
        slot = vault.slot(step)
        values[slot.bias if slot else ((0, -1),)] = f"the bias of worker {track.worker}"
    expected = [at for at in range(1, step + 1) if at not in case.skipped]
    for value, name in values.items():
        if [at for at, _ in value] != expected:
            raise BrokenPromiseError(f"{name} had the gradients {value}, not of steps {expected}")
    if len(values) > 1:
        raise BrokenPromiseError(f"attempts are mixed: {values}")
    return next(iter(values))


def settle_in(case: Case, world: World, decision: Decision, tracks: Sequence[Track]) -> World:
    """The gang trains: what is past is called by one name, so that equal gangs look equal."""
    vaults: list[Vault | None] = [None] * case.workers
    if Bug.KEEP_THE_DEAD in case.bugs:
        vaults = [v and _rename(v)._replace(generation=0) for v in world.vaults]
    weights, alive = [-1] * case.workers, [False] * case.workers
    for track in tracks:
        for worker, vault in track.vaults.items():
            if worker == track.worker or Bug.KEEP_THE_DEAD in case.bugs:
                vaults[worker] = _rename(vault)
        weights[track.worker], alive[track.worker] = track.weights, True
    return World(
        tuple(vaults),
        tuple(weights),
        tuple(alive),
        committed=decision.step,
        reported=decision.step,
        spread=measure_spread(case, decision.homes),
    )


def _rename(vault: Vault) -> Vault:
    """Attempts of earlier generations all become attempt 0."""
    vault = drop_garbage(vault)
    copies = tuple(
        copy._replace(
            value=_renamed(copy.value),
            gradient=copy.gradient and (copy.gradient[0], 0),
        )
        for copy in vault.copies
    )
    slots = [slot and Slot(slot.step, _renamed(slot.bias)) for slot in vault.slots]
    return vault._replace(
        copies=copies,
        slots=(slots[0], slots[1]),
        counts=vault.counts and (vault.counts[0], 0),
        undo=vault.undo and (vault.undo[0], _renamed(vault.undo[1])),
        generation=1,
    )


def _renamed(value: History) -> History:
    return tuple((step, min(attempt, 0)) for step, attempt in value)

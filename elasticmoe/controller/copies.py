"""What survived a fault: which step is committed, and who can supply which unit.

Decided over surviving *copies*, not over survivors: a process may be dead and its vault whole. To
ask only the survivors whether they prepared is wrong (a model search breaks it with redundancy 1
and one death).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from elasticmoe.messages.worker import Copies


@dataclass(frozen=True, slots=True)
class Settled:
    """Which step the gang goes on from; never decided twice for one fault."""

    step: int
    """Committed steps."""
    commits_open_step: bool
    """Whether the step that was open is committed, not redone."""
    reason: str
    proven: int = 0
    """The newest step that was committed for certain: it counts as given up by who goes back."""


def settle_step(copies: Iterable[Copies], committed_step: int) -> Settled | None:
    """Decide whether the open step is committed.

    It is, if any copy or anybody's progress is new, anybody passed the vote, or the journal says
    so; else it is dropped
    if any whole copy is old and not prepared, because then nobody can have passed the vote; else
    every copy is prepared and it is committed.

    Args:
        copies: of all vaults that survive, those of dead processes included.
        committed_step: steps that the journal knows as committed.

    Returns:
        None if no whole copy is left.
    """
    known, steps, newest = tuple(copies), set[int](), committed_step
    for vault in known:
        oldest = max(vault.prepared, vault.step) - 1
        newest = max(newest, vault.voted, vault.step)
        for step, _ in vault.whole:  # one that is further behind was left over: it is no home now
            if step >= oldest:
                steps.add(step)
    if not steps:
        return None
    newest = max(newest, *steps)
    behind = any(vault.torn or 0 <= vault.step < newest for vault in known)
    if behind or newest - 1 in steps or newest not in steps:
        return Settled(newest, True, f"step {newest} had begun to be applied", newest)
    for vault in known:
        if vault.prepared != newest + 1 and any(step == newest for step, _ in vault.whole):
            reason = f"worker {vault.worker} was not prepared for step {newest + 1}"
            return Settled(newest, False, reason, newest)
    return Settled(newest + 1, True, f"everybody was prepared for step {newest + 1}", newest)


def suppliable(vault: Copies, step: int) -> Iterator[tuple[int, ...]]:
    """Units that a vault can supply as they are after `step` committed steps: those that are whole
    at it, or one step behind and prepared."""
    for at, units in vault.whole:
        if at == step or (at == step - 1 and vault.prepared == step):
            yield units


def find_sources(copies: Iterable[Copies], step: int) -> Mapping[int, tuple[int, ...]]:
    """Find whose vaults can supply each unit as it is after `step` committed steps.

    Returns:
        Unit -> workers, ascending.
    """
    found: dict[int, list[int]] = {}
    for vault in sorted(copies, key=lambda vault: vault.worker):
        for units in suppliable(vault, step):
            for unit in units:
                found.setdefault(unit, []).append(vault.worker)
    return {unit: tuple(workers) for unit, workers in found.items()}


def count_missing(copies: Iterable[Copies], step: int, num_units: int) -> tuple[int, int]:
    """Count the units that no vault can supply; returns the first of them (-1: none) too."""
    there = bytearray(num_units)
    for vault in copies:
        for units in suppliable(vault, step):
            for unit in units:
                there[unit] = 1
    return there.find(0), there.count(0)


def has_progress(vault: Copies, step: int) -> bool:
    """Whether a vault has bias, load and counters of a step, or can roll them forward."""
    return vault.step == step or (0 <= vault.step == step - 1 and vault.prepared == step)

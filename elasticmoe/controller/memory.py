"""A generation that goes on from the workers' vaults: who reads which, and what has to move."""

from collections.abc import Mapping, Sequence

from elasticmoe.controller.copies import has_progress, suppliable
from elasticmoe.controller.snapshots import as_of_snapshot
from elasticmoe.controller.state import JobState
from elasticmoe.controller.vaults import is_current, usable
from elasticmoe.errors import PlanError
from elasticmoe.messages.worker import Copies, FromMemory
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.moves import plan_moves, with_members
from elasticmoe.plan.types import Member, Plan


def plan_recall(
    state: JobState,
    members: tuple[Member, ...],
    *,
    step: int,
    replaced: Mapping[int, int],
    plan: Plan | None,
    is_snapshot: bool = False,
) -> tuple[Plan, FromMemory]:
    """Lay a generation out so that it goes on from what is in memory.

    Args:
        members: in the order of their positions.
        step: committed steps to go on from.
        replaced: new member -> the dead one whose position it takes.
        plan: keep this layout; none: make one for these members.
        is_snapshot: go back to the snapshot of that step.

    Raises:
        PlanError: something is in nobody's memory, or no layout fits.
    """
    assert state.job is not None, "no job was submitted"
    heirs = plan_heirs(state, members, replaced)
    readers = _Readers(state, members, heirs, step, is_snapshot=is_snapshot)
    sources = readers.sources()
    progress_from = readers.progress_from()
    if plan is not None:
        plan = with_members(plan, members)
    else:
        plan = make_plan(state.job.spec, state.job.inventory, members, present=sources)
    memory = FromMemory(
        step=step,
        moves=plan_moves(plan, state.job.inventory, sources),
        progress_from=progress_from,
        heirs=heirs,
        adopted=tuple(sorted(readers.adopted)),
        is_snapshot=is_snapshot,
        rebuilt=tuple(readers.rebuilt),
        gathered=tuple(sorted(readers.gathered)),
    )
    return plan, memory


def plan_heirs(
    state: JobState, members: Sequence[Member], replaced: Mapping[int, int]
) -> tuple[tuple[int, int], ...]:
    """Give members that have no vault of this history one that a dead worker of their node left.

    Who was told to take one over before keeps it, because it may have begun; next, who takes a
    dead member's position takes its vault; the others take whatever is left.

    Args:
        replaced: as in `plan_recall`.

    Returns:
        (new worker, dead worker), ascending.
    """
    fresh = [member for member in members if not _has_vault(state, member.worker)]
    if not fresh:
        return ()
    orphans: dict[str, list[int]] = {}
    promised: dict[int, int] = {}
    for owner, node, _ in usable(state):
        if owner in state.workers:
            continue
        heir = state.vaults[owner].heir
        if heir >= 0:
            promised[heir] = owner
        if heir not in state.workers:
            orphans.setdefault(node, []).append(owner)
    heirs = {m.worker: promised[m.worker] for m in fresh if m.worker in promised}
    for member in fresh:
        dead = replaced.get(member.worker, -1)
        left = orphans.get(member.node, [])
        choice = dead if dead in left else promised.get(dead, -1)
        if member.worker not in heirs and choice in left:
            heirs[member.worker] = choice
            left.remove(choice)
    for member in fresh:
        left = orphans.get(member.node, [])
        if member.worker not in heirs and left:
            heirs[member.worker] = left.pop(0)
    return tuple(sorted(heirs.items()))


def _has_vault(state: JobState, worker: int) -> bool:
    vault = state.vaults.get(worker)
    return vault is not None and is_current(state, vault)


class _Readers:
    """Which member can read which vault; adopts vaults of the dead that are needed."""

    def __init__(
        self,
        state: JobState,
        members: Sequence[Member],
        heirs: Sequence[tuple[int, int]],
        step: int,
        *,
        is_snapshot: bool,
    ) -> None:
        assert state.job is not None, "no job was submitted"
        self.adopted: list[tuple[int, int]] = []
        self.rebuilt: list[tuple[int, int, tuple[int, ...]]] = []
        self.gathered: set[tuple[int, int, int]] = set()
        self._members, self._step, self._is_snapshot = members, step, is_snapshot
        self._num_units = len(state.job.inventory.units)
        owns = {**{member.worker: member.worker for member in members}, **dict(heirs)}
        position = {member.worker: place for place, member in enumerate(members)}
        self._reader = {owner: position[worker] for worker, owner in owns.items()}
        at_node: dict[str, int] = {}
        for place, member in enumerate(members):
            at_node.setdefault(member.node, place)
        self._vaults: dict[int, Copies] = {}
        self._could_adopt: dict[int, int] = {}
        for owner, node, copies in usable(state):
            if owner not in self._reader:
                if owner in state.workers or node not in at_node:
                    continue  # a living worker's vault is its own
                self._could_adopt[owner] = at_node[node]
            self._vaults[owner] = as_of_snapshot(copies, step) if is_snapshot else copies

    def sources(self) -> dict[int, tuple[int, ...]]:
        """Unit -> positions of members that can supply it, ascending."""
        found: list[list[int]] = [[] for _ in range(self._num_units)]
        for owner, place in sorted(self._reader.items(), key=lambda item: item[1]):
            self._add(found, owner, place)
        if not all(found):
            self._adopt_missing(found)
        return dict(enumerate(map(tuple, found)))

    def _adopt_missing(self, found: list[list[int]]) -> None:
        """Let members read vaults of the dead that have what nobody else has."""
        for owner in sorted(self._could_adopt):
            there = suppliable(self._vaults[owner], self._step)
            if any(not found[unit] for units in there for unit in units):
                self._adopt(owner)
                self._add(found, owner, self._reader[owner])
        self._rebuild_missing(found)
        for unit, places in enumerate(found):
            if not places:
                raise PlanError(f"No member can read a copy of unit {unit} at step {self._step}.")
            places.sort()

    def _rebuild_missing(self, found: list[list[int]]) -> None:
        """Have units made from parities, by whoever can read these."""
        for owner in sorted({**self._reader, **self._could_adopt}):
            for group in self._parities(owner):
                lacking = [unit for unit in group if not found[unit]]
                if len(lacking) != 1:
                    continue
                if owner not in self._reader:
                    self._adopt(owner)
                place = self._reader[owner]
                others = tuple(unit for unit in group if unit != lacking[0])
                self.rebuilt.append((lacking[0], place, others))
                self.gathered |= {
                    (one, found[one][0], place) for one in others if place not in found[one]
                }
                found[lacking[0]].append(place)

    def _parities(self, owner: int) -> tuple[tuple[int, ...], ...]:
        copies = self._vaults.get(owner)
        if copies is None or not self._is_snapshot or not copies.snapshots:
            return ()
        return copies.snapshots[0].parities

    def _add(self, found: list[list[int]], owner: int, place: int) -> None:
        copies = self._vaults.get(owner)
        for units in suppliable(copies, self._step) if copies else ():
            for unit in units:
                if place not in found[unit]:
                    found[unit].append(place)

    def progress_from(self) -> int:
        """The member that has bias, load and counters."""
        having = [one for one in self._vaults if has_progress(self._vaults[one], self._step)]
        if not having:
            raise PlanError(f"No member can read the counters of step {self._step}.")
        if not any(owner in self._reader for owner in having):
            self._adopt(having[0])
        return min(self._reader[owner] for owner in having if owner in self._reader)

    def _adopt(self, owner: int) -> None:
        place = self._could_adopt[owner]
        self._reader[owner] = place
        self.adopted.append((self._members[place].worker, owner))

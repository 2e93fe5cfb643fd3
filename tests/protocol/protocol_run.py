"""One generation, as the list of moments at which each of its members can die or park.

Between two collectives a member touches nobody's memory but its own, so its moments are the same
in every interleaving, and each is computed once. `elasticmoe.runtime.recall` and
`elasticmoe.runtime.step` are what is modelled here, write by write.
"""

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from protocol_vault import (
    TORN,
    Bug,
    Case,
    Copy,
    Gradient,
    Slot,
    Vault,
    apply_gradient,
    mend,
    whole_step,
)
from protocol_world import Decision, Homes, World, vault_of

Held = tuple[tuple[int, Vault], ...]
"""(worker, its vault): the member's own first, then those it adopted."""


class Moment(NamedTuple):
    """What would be left of a member."""

    doing: str
    """What it did last."""
    held: Held
    weights: int
    """Step of its compute weights."""
    finished: int
    """Steps it has been through, and may have reported."""
    collective: str = ""
    """It is in this collective now, and gets no further before everybody is."""
    broken: tuple["Moment", ...] = ()
    """What it still does if the collective fails."""
    is_after_break: bool = False
    """It is one of these."""


class BrokenPromiseError(Exception):
    """The protocol did what it must never do."""


class Track:
    """One member's moments."""

    def __init__(self, case: Case, worker: int, held: Held, weights: int, finished: int) -> None:
        self.case, self.worker = case, worker
        self.vaults = dict(held)
        self.weights, self.finished = weights, finished
        self.moments: list[Moment] = []
        self.is_quiet = False

    @property
    def vault(self) -> Vault:
        """The member's own."""
        return self.vaults[self.worker]

    def write(self, doing: str, vault: Vault, worker: int | None = None) -> None:
        """Change a vault (by default its own): one more moment."""
        self.vaults[self.worker if worker is None else worker] = vault
        self._note(doing)

    def enter(self, collective: str) -> None:
        """Begin to wait for all others."""
        self._note(f"enter {collective}", collective)

    def _note(self, doing: str, collective: str = "") -> None:
        if self.is_quiet:
            return
        held = tuple(self.vaults.items())
        self.moments.append(Moment(doing, held, self.weights, self.finished, collective))

    def break_with(self, moments: Sequence[Moment]) -> None:
        """Say what follows the collective just entered, if it fails."""
        broken = tuple(moment._replace(is_after_break=True) for moment in moments)
        self.moments[-1] = self.moments[-1]._replace(broken=broken)

    def update(self, units: Iterable[int], step: int, undo: Iterable[int], worker: int) -> None:
        """Apply prepared gradients in place: stamp, write, stamp. `undo`: keep these meanwhile."""
        kept = frozenset(undo)
        for unit in units:
            vault = self.vaults[worker]
            copy = vault.copies[unit]
            if unit in kept:
                vault = vault._replace(undo=(unit, copy.value))
            is_skip = step in self.case.skipped
            torn = copy._replace(before=step, value=copy.value if is_skip else TORN)
            self.write(f"tear unit {unit}", vault.with_copy(unit, torn), worker)
            value = apply_gradient(self.case, copy.value, copy.gradient)
            whole = Copy(step, step, value, copy.gradient)
            vault = vault.with_copy(unit, whole)
            self.write(f"finish unit {unit}", vault, worker)
            if vault.undo and Bug.STALE_UNDO not in self.case.bugs:
                self.write("drop the undo copy", vault._replace(undo=None), worker)

    def save(self, slot: Slot, worker: int) -> None:
        """Keep progress beside that of the step before."""
        vault = self.vaults[worker]
        found = [at for at in (0, 1) if _step_of(vault.slots[at]) == slot.step - 1]
        target = 1 - found[0] if found else 0
        empty = (None, vault.slots[1]) if target == 0 else (vault.slots[0], None)
        self.write("begin to save the bias", vault._replace(slots=empty), worker)
        full = (slot, vault.slots[1]) if target == 0 else (vault.slots[0], slot)
        self.write("save the bias", vault._replace(slots=full), worker)


def recover(case: Case, world: World, decision: Decision, *, only_end: bool = False) -> list[Track]:
    """Form a generation from memory, up to the first collective of its first step.

    Args:
        only_end: keep no moments on the way.
    """
    tracks = []
    for member in decision.members:
        adopted = [dead for adopter, dead in decision.adopted if adopter == member]
        held = tuple((worker, vault_of(case, world, worker)) for worker in (member, *adopted))
        track = Track(case, member, held, world.weights[member], decision.step)
        generation = world.generation + 1
        track.moments += _look_back(case, held, generation, track.weights, decision.step)
        track.vaults = dict(track.moments[-1].held)
        track.is_quiet = only_end
        tracks.append(track)
    source = next(track for track in tracks if track.worker == decision.progress_from)
    progress = _find_progress(source, decision.step)
    _move(case, tracks, decision)
    for track in tracks:
        if track.vault.step != decision.step:
            track.write("clear the bias", track.vault._replace(slots=(None, None)))
            track.save(progress, track.worker)
        elif Bug.REWRITE_PROGRESS in case.bugs:
            track.save(progress, track.worker)
        if Bug.MOVE_FIRST in case.bugs:
            _join(track, world.generation + 1)
        track.enter("first publish")
    for track in tracks:
        if Bug.NO_PUBLISH not in case.bugs:
            track.weights = decision.step
        track.enter("reduce")
    return tracks


@lru_cache(maxsize=1 << 16)
def _look_back(
    case: Case, held: Held, generation: int, weights: int, step: int
) -> tuple[Moment, ...]:
    """What a member does with the vaults it has before it meets the others."""
    track = Track(case, held[0][0], held, weights, step)
    track.write("be told to go on from memory", track.vault)
    for worker, vault in held:
        if mend(case, vault) != vault:
            track.write("put the undo copy back", mend(case, vault), worker)
        _roll_forward(track, step, worker)
    if Bug.MOVE_FIRST not in case.bugs:
        _join(track, generation)
    track.enter("progress")
    return tuple(track.moments)


def train(case: Case, world: World, members: Sequence[int], homes: Homes) -> list[Track]:
    """Take the steps that are left, from the first collective of the first."""
    step = world.committed
    tracks = []
    for member in members:
        held = ((member, vault_of(case, world, member)),)
        tracks.append(Track(case, member, held, world.weights[member], step))
    while step < case.steps:
        step += 1
        for track in tracks:
            if track.weights != step - 1:
                raise BrokenPromiseError(
                    f"worker {track.worker} starts step {step} with weights of {track.weights}"
                )
            track.enter("reduce")
        _take_step(case, tracks, homes, step, (step, world.generation))
    for track in tracks:
        track.enter("the end")
    return tracks


def _take_step(
    case: Case, tracks: list[Track], homes: Homes, step: int, gradient: Gradient
) -> None:
    for track in tracks:
        _store(track, _homed(case, homes, track.worker)[0], gradient, "reduced")
        _forget_others(track, homes)
        track.enter("forward")
    for track in tracks:
        _prepare(track, _homed(case, homes, track.worker)[1], step, gradient)
        if Bug.NO_VOTE not in case.bugs:
            track.enter("vote")
    for track in tracks:
        _apply_first(track, homes, step)
    for track in tracks:
        track.weights = step
        _update_mirrors(track, homes, step, ())
        track.finished = step


@cache
def _homed(case: Case, homes: Homes, worker: int) -> tuple[list[int], list[int]]:
    """Primary and mirrored units, in an order that looks the same from every worker."""
    units = sorted(range(case.units), key=lambda unit: (unit - worker) % case.workers)
    primary = [unit for unit in units if homes[unit][0] == worker]
    mirrors = [unit for unit in units if worker in homes[unit][1:]]
    return primary, mirrors


def _store(track: Track, units: Sequence[int], gradient: Gradient, kind: str) -> None:
    for unit in units:
        copy = track.vault.copies[unit]._replace(gradient=gradient)
        track.write(f"store {kind} gradient {unit}", track.vault.with_copy(unit, copy))


def _prepare(track: Track, mirrors: Sequence[int], step: int, gradient: Gradient) -> None:
    if Bug.SKIP_PREPARING in track.case.bugs:
        return
    _store(track, mirrors, gradient, "forwarded")
    track.write("store counts", track.vault._replace(counts=gradient))
    track.write("say prepared", track.vault._replace(prepared=step))


def _apply_first(track: Track, homes: Homes, step: int) -> None:
    """From the vote to the sending of the new weights."""
    case, worker = track.case, track.worker
    primary, mirrors = _homed(case, homes, worker)
    track.write("pass the vote", track.vault._replace(voted=step))
    if step in case.skipped:
        track.update((*primary, *mirrors), step, (), worker)
    else:
        alone = [unit for unit in primary if len(homes[unit]) == 1]
        track.update(primary, step, alone, worker)
        if Bug.HOMES_TOGETHER in case.bugs:
            _update_mirrors(track, homes, step, ())
    track.save(_next_progress(case, track.vault, step), worker)
    if step in case.skipped:
        return
    track.enter("publish")
    if not case.leave_mirrors:
        alone_now = Track(case, worker, track.moments[-1].held, track.weights, step)
        undo = () if Bug.BARE_MIRRORS in case.bugs else mirrors
        _update_mirrors(alone_now, homes, step, undo)
        track.break_with(alone_now.moments)


def _update_mirrors(track: Track, homes: Homes, step: int, undo: Sequence[int]) -> None:
    mirrors = _homed(track.case, homes, track.worker)[1]
    behind = [unit for unit in mirrors if track.vault.copies[unit].after < step]
    track.update(behind, step, undo, track.worker)


def _next_progress(case: Case, vault: Vault, step: int) -> Slot:
    before = vault.slot(step - 1)
    assert before is not None
    return Slot(step, apply_gradient(case, before.bias, vault.counts))


def _roll_forward(track: Track, step: int, worker: int) -> None:
    """Apply what a vault is prepared for, if it leads to `step`; unit by unit, with undo."""
    case, vault = track.case, track.vaults[worker]
    if vault.prepared != step or (step == 0 and Bug.NONE_IS_ZERO not in case.bugs):
        return
    units = sorted(range(case.units), key=lambda unit: (unit - worker) % case.workers)
    behind = [unit for unit in units if whole_step(case, vault, unit) == step - 1]
    if Bug.ROLL_TWICE in case.bugs:
        behind = [unit for unit in units if whole_step(case, vault, unit) >= 0]
    track.update(behind, step, behind, worker)
    before = vault.slot(step - 1)
    if vault.slot(step) is None and before is not None:
        if Bug.FORGET_BIAS in case.bugs:
            track.save(Slot(step, before.bias), worker)
        else:
            track.save(_next_progress(case, vault, step), worker)


def _join(track: Track, generation: int) -> None:
    vault = track.vault._replace(voted=0, generation=generation)
    if Bug.KEEP_PREPARED not in track.case.bugs:
        vault = vault._replace(prepared=0)
    track.write("join", vault)


def _find_progress(track: Track, step: int) -> Slot:
    found = next(filter(None, (vault.slot(step) for vault in track.vaults.values())), None)
    return found or Slot(step, ((0, -1),))


def _move(case: Case, tracks: list[Track], decision: Decision) -> None:
    """One unit per exchange, as if each were large; everybody takes part in every exchange."""
    by_worker = {track.worker: track for track in tracks}
    sent = {}
    for unit, origin, _ in decision.moves:
        vaults = by_worker[origin].vaults.values()
        at = [v for v in vaults if whole_step(case, v, unit) == decision.step]
        sent[unit, origin] = at[0].copies[unit].value if at else TORN
    for unit, origin, home in decision.moves:
        for track in tracks:
            track.enter("move")
        track = by_worker[home]
        copy = track.vault.copies[unit]
        torn = track.vault.with_copy(unit, copy._replace(before=-1, value=TORN))
        track.write(f"begin to receive unit {unit}", torn)
        step, value = decision.step, sent[unit, origin]
        whole = track.vault.with_copy(unit, Copy(step, step, value, copy.gradient))
        track.write(f"receive unit {unit}", whole)


def _forget_others(track: Track, homes: Homes) -> None:
    """Everybody is in the first step, and so has all it needs: other copies would grow old."""
    if Bug.KEEP_OLD_HOMES in track.case.bugs:
        return
    copies = tuple(
        copy if track.worker in homes[unit] else Copy()
        for unit, copy in enumerate(track.vault.copies)
    )
    if copies != track.vault.copies:
        track.write("forget units homed elsewhere", track.vault._replace(copies=copies))


def _step_of(slot: Slot | None) -> int:
    return slot.step if slot else -1

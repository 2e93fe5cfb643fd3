"""What a vault holds, and what is done to it, as plain values.

A unit's value is the tuple of gradients applied to it, in order; so is the routing bias. A
gradient is (step, attempt): a step that is redone has another attempt, and no two attempts may
ever be mixed. Words, order of writes and their meaning are those of `elasticmoe.vault`,
`elasticmoe.runtime.step` and `elasticmoe.runtime.recall`.

Named tuples, not dataclasses: the search makes millions of them.
"""

from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from elasticmoe.messages.worker import Copies

Gradient = tuple[int, int]
"""(step, attempt)."""
History = tuple[Gradient, ...]
"""What was applied, in order."""
TORN: History = ((-1, -1),)
"""A value in the middle of being written."""


class Bug(Enum):
    """Mistakes to plant; each must be caught."""

    SKIP_PREPARING = "enter the vote without having prepared anything"
    NO_VOTE = "apply as soon as this worker itself is prepared"
    FORGET_BIAS = "roll units forward, but not the bias"
    ASK_SURVIVORS = "settle the step over living workers only"
    HOMES_TOGETHER = "all homes of a unit apply at the same moment"
    BARE_MIRRORS = "update mirrors without undo copies when the weights could not be sent"
    ROLL_TWICE = "roll forward what has been rolled forward"
    TORN_IS_WHOLE = "take a torn unit for whole"
    KEEP_PREPARED = "leave the prepared flag set after a dropped step"
    MOVE_FIRST = "clear the prepared flag only after units have moved in"
    STALE_UNDO = "leave an old undo copy in place while its unit is updated without one"
    KEEP_OLD_HOMES = "leave copies in the vault of a worker that is home no more"
    KEEP_THE_DEAD = "count the vaults of the dead after the next generation has trained"
    REWRITE_PROGRESS = "write a step's progress again where it is already whole"
    TORN_BY_SKIP = "take a unit for torn whose step changed nothing"
    NONE_IS_ZERO = "take 'nothing is prepared' for 'step 0 is prepared'"
    NO_PUBLISH = "start a generation with the compute weights that are there"


class Case(NamedTuple):
    """One gang to check."""

    workers: int
    redundancy: int
    steps: int = 2
    nodes: tuple[int, ...] = ()
    """Node of each worker; empty: one each."""
    units_per_worker: int = 1
    skipped: frozenset[int] = frozenset()
    """Steps that the numerical guard makes no-ops."""
    decide_once: bool = True
    """Keep to the step that was decided until the gang trains, as the controller does."""
    leave_mirrors: bool = False
    """When weights cannot be sent, leave mirrors prepared instead of updating them with undo."""
    is_mortal: bool = False
    """Units' state dies with the process, as on an accelerator."""
    bugs: frozenset[Bug] = frozenset()

    def node(self, worker: int) -> int:
        """Where a worker runs."""
        return self.nodes[worker] if self.nodes else worker

    @property
    def units(self) -> int:
        """Units of the model."""
        return self.workers * self.units_per_worker


class Copy(NamedTuple):
    """One unit's place in one vault."""

    before: int = -1
    """Step stamp that is written before the update; -1: nothing here."""
    after: int = -1
    """Step stamp that is written after it."""
    value: History = ()
    gradient: Gradient | None = None
    """In the buffer for prepared gradients."""


class Slot(NamedTuple):
    """Progress of one step."""

    step: int
    bias: History


class Vault(NamedTuple):
    """One worker's vault."""

    copies: tuple[Copy, ...]
    slots: tuple[Slot | None, Slot | None]
    """None: empty, or being written."""
    prepared: int = 0
    counts: Gradient | None = None
    """Stands for the step's scalars and token counts, which move the bias."""
    voted: int = 0
    undo: tuple[int, History] | None = None
    """(unit, its value before the update)."""
    generation: int = 0

    @property
    def step(self) -> int:
        """Committed steps of the newest progress; -1: none."""
        return max(slot.step if slot else -1 for slot in self.slots)

    def slot(self, step: int) -> Slot | None:
        """The progress of a step."""
        return next((slot for slot in self.slots if slot and slot.step == step), None)

    def with_copy(self, unit: int, copy: Copy) -> "Vault":
        """Write one unit's place."""
        copies = self.copies
        return self._replace(copies=(*copies[:unit], copy, *copies[unit + 1 :]))


def empty_vault(case: Case) -> Vault:
    """A fresh file."""
    return Vault((Copy(),) * case.units, (None, None))


def apply_gradient(case: Case, value: History, gradient: Gradient | None) -> History:
    """One update; no gradient at all is as wrong as another step's."""
    if gradient is not None and gradient[0] in case.skipped:
        return value
    return (*value, gradient or (0, -1))


def whole_step(case: Case, vault: Vault, unit: int) -> int:
    """The step that a unit's copy is whole at; -1: not here, -2: torn."""
    copy = vault.copies[unit]
    if copy.before == copy.after:
        return copy.after
    if vault.undo is not None and vault.undo[0] == unit:
        return copy.after
    if Bug.TORN_IS_WHOLE in case.bugs:
        return copy.after
    if _is_skip(case, vault, copy) and Bug.TORN_BY_SKIP not in case.bugs:
        return copy.after
    return -2


@lru_cache(maxsize=1 << 16)
def read_copies(case: Case, vault: Vault, worker: int) -> Copies:
    """List what a vault holds, as `elasticmoe.vault.read_copies` does."""
    steps = [whole_step(case, vault, unit) for unit in range(case.units)]
    whole = tuple(
        (step, tuple(unit for unit, at in enumerate(steps) if at == step))
        for step in sorted({step for step in steps if step >= 0})
    )
    return Copies(
        worker=worker,
        generation=vault.generation,
        step=vault.step,
        prepared=vault.prepared,
        voted=vault.voted,
        whole=whole,
        torn=tuple(unit for unit, at in enumerate(steps) if at == -2),
    )


def mend(case: Case, vault: Vault) -> Vault:
    """Put back the unit whose update was cut off, where its earlier state was kept."""
    for unit, copy in enumerate(vault.copies):
        if copy.before == copy.after or whole_step(case, vault, unit) < 0:
            continue
        value = copy.value
        if vault.undo is not None and vault.undo[0] == unit:
            value = vault.undo[1]
        vault = vault.with_copy(unit, copy._replace(before=copy.after, value=value))
    return vault._replace(undo=None)


@lru_cache(maxsize=1 << 16)
def drop_garbage(vault: Vault) -> Vault:
    """Forget what no flag and no stamp vouches for: nobody may ever read it again."""
    copies = tuple(
        copy
        if copy.gradient is None or vault.prepared == copy.after + 1
        else copy._replace(gradient=None)
        for copy in vault.copies
    )
    step = vault.step
    slots = vault.slots
    if None not in slots:
        slots = (vault.slot(step), None)
    counts = vault.counts if vault.prepared == step + 1 else None
    return vault._replace(copies=copies, slots=slots, counts=counts)


def _is_skip(case: Case, vault: Vault, copy: Copy) -> bool:
    is_open = copy.before == vault.prepared == copy.after + 1
    return is_open and vault.prepared in case.skipped

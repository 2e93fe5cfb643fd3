"""One of the two snapshots that a vault has room for: units as they were after some step.

It holds whole copies of units and, where snapshots are protected by parity, the XOR of the copies
that other workers have. What is written last makes it valid, so one that was cut off in the
middle counts for nothing, and the snapshot before is still there.

Shapes: U = units, L = MoE layers, E = routed experts per layer.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from elasticmoe.messages.worker import SnapshotCopies
from elasticmoe.vault.layout import NUM_SNAPSHOT_WORDS
from elasticmoe.vault.vault import Vault

_STEP, _UPDATES, _EXTRAS = 0, 1, 2
NUM_SNAPSHOTS: Final = 2


class Snapshot:
    """A view of one of them."""

    def __init__(self, vault: Vault, number: int) -> None:
        layout = vault.layout
        places = layout.snapshot(number)
        self._words = vault.array(np.int64, (NUM_SNAPSHOT_WORDS,), places.words)
        self._next_U = vault.array(np.int64, (layout.num_units,), places.chain)
        """1 + the next unit of a parity; of its last unit, and of a copy, 1 + itself; 0: nothing
        is here."""
        self.hashes_U = vault.array(np.int64, (layout.num_units,), places.hashes)
        """Of the copy or parity that begins here."""
        shape = (2, layout.num_layers, layout.num_experts)
        self.progress = vault.array(np.float64, shape, places.progress)
        """Selection bias and running load."""
        self.tensors = places.tensors

    @property
    def step(self) -> int:
        """Committed steps of the snapshot; -1: there is none."""
        return int(self._words[_STEP]) - 1

    def clear(self) -> None:
        """There is no snapshot here any more."""
        self._words[_STEP] = 0
        self._next_U[:] = 0

    def finish(
        self,
        step: int,
        updates: int,
        bias_LE: NDArray[np.float64],
        running_LE: NDArray[np.float64],
        running_loss: float,
    ) -> None:
        """All units are here: note the progress, and last of all the step."""
        self.progress[0], self.progress[1] = bias_LE, running_LE
        self._words[_UPDATES] = updates
        self._words.view(np.float64)[_EXTRAS] = running_loss
        self._words[_STEP] = step + 1

    def read_progress(self) -> tuple[int, NDArray[np.float64], NDArray[np.float64], float]:
        """Updates, bias, running load and running loss."""
        loss = float(self._words.view(np.float64)[_EXTRAS])
        return int(self._words[_UPDATES]), self.progress[0].copy(), self.progress[1].copy(), loss

    def note(self, group: Sequence[int], hashed: int) -> None:
        """Say that the XOR of these units' copies (of one unit: its copy) is in the first's
        place; no unit is in two groups."""
        for unit, behind in zip(group, (*group[1:], group[-1]), strict=True):
            self._next_U[unit] = behind + 1
        self.hashes_U[group[0]] = hashed

    def drop(self, group: Sequence[int]) -> None:
        """The copy of a unit, or the parity of several, is not here any more."""
        self._next_U[list(group)] = 0

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """What is here, ascending: a copy is a group of one unit, a parity one of several."""
        here = np.flatnonzero(self._next_U)
        behind = self._next_U[here] - 1
        inner = set(behind[behind != here].tolist())
        found = []
        for head in here.tolist():
            if head not in inner:
                group = [head]
                while (after := int(self._next_U[group[-1]]) - 1) != group[-1]:
                    group.append(after)
                found.append(tuple(group))
        return tuple(found)


def read_snapshots(vault: Vault) -> tuple[SnapshotCopies, ...]:
    """List the snapshots in a vault, oldest first."""
    found = []
    for snapshot in (Snapshot(vault, number) for number in range(NUM_SNAPSHOTS)):
        if snapshot.step >= 0:
            groups = snapshot.groups()
            found.append(
                SnapshotCopies(
                    step=snapshot.step,
                    whole=tuple(group[0] for group in groups if len(group) == 1),
                    parities=tuple(group for group in groups if len(group) > 1),
                )
            )
    return tuple(sorted(found, key=lambda copies: copies.step))

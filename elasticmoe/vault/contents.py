"""What a vault holds, in a message's words."""

import numpy as np

from elasticmoe.messages.worker import Copies
from elasticmoe.vault.snapshot import read_snapshots
from elasticmoe.vault.vault import Vault


def read_copies(
    vault: Vault, worker: int, *, is_alive: bool, phase: str = "", collective: int = 0
) -> Copies:
    """List what a vault holds.

    Args:
        worker: whose it is.
        is_alive: whether its process is; on an accelerator the state dies with it.
        phase: what the worker did last.
        collective: the collective that it entered last.
    """
    steps_U = vault.steps_U()
    if vault.is_mortal and not is_alive:
        steps_U[:] = -1
    if vault.undo_unit >= 0 and steps_U[vault.undo_unit] == -2:  # as good as whole
        steps_U[vault.undo_unit] = vault.stamps_U2[vault.undo_unit, 1] - 1
    whole = tuple(
        (int(step), tuple(int(unit) for unit in np.flatnonzero(steps_U == step)))
        for step in np.unique(steps_U)
        if step >= 0
    )
    return Copies(
        worker=worker,
        generation=vault.generation,
        step=vault.step,
        prepared=vault.prepared,
        voted=vault.voted,
        whole=whole,
        torn=tuple(int(unit) for unit in np.flatnonzero(steps_U == -2)),
        phase=phase,
        collective=collective,
        snapshots=read_snapshots(vault),
    )

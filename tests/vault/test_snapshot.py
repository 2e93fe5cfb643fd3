"""Two snapshots in a vault: what is said of them, and what a crash leaves."""

import numpy as np
import pytest

from elasticmoe.messages.worker import SnapshotCopies
from elasticmoe.vault.layout import VaultLayout
from elasticmoe.vault.snapshot import Snapshot, read_snapshots
from elasticmoe.vault.vault import Vault, create_vault

LAYOUT = VaultLayout(
    num_units=6, num_layers=2, num_experts=4, numel=600, largest_unit=100, itemsize=4
)


@pytest.fixture
def vault() -> Vault:
    return Vault(create_vault("test"), LAYOUT)


def finish(snapshot: Snapshot, step: int) -> None:
    snapshot.finish(step, step - 1, np.full((2, 4), 0.5), np.full((2, 4), 7.0), 1.25)


def test_an_empty_vault_has_no_snapshot(vault: Vault) -> None:
    assert read_snapshots(vault) == ()


def test_copies_and_parities_are_listed_as_they_were_noted(vault: Vault) -> None:
    snapshot = Snapshot(vault, 0)
    snapshot.note((1,), 11)
    snapshot.note((4, 0, 5), 44)
    snapshot.note((2,), 22)
    finish(snapshot, 9)

    assert read_snapshots(vault) == (SnapshotCopies(9, (1, 2), ((4, 0, 5),)),)
    assert [int(snapshot.hashes_U[head]) for head in (1, 4, 2)] == [11, 44, 22]
    updates, bias_LE, running_LE, loss = Snapshot(vault, 0).read_progress()
    assert (updates, loss) == (8, 1.25)
    assert (bias_LE == 0.5).all()
    assert (running_LE == 7.0).all()


def test_one_that_was_cut_off_counts_for_nothing_and_the_one_before_is_there(
    vault: Vault,
) -> None:
    older, newer = Snapshot(vault, 0), Snapshot(vault, 1)
    older.note((3,), 1)
    finish(older, 5)
    newer.note((3,), 2)
    finish(newer, 6)
    assert [found.step for found in read_snapshots(vault)] == [5, 6]

    older.clear()
    older.note((3,), 3)  # and here it ends

    assert read_snapshots(vault) == (SnapshotCopies(6, (3,)),)


def test_nothing_of_a_snapshot_overlaps_anything_else() -> None:
    first, second = LAYOUT.snapshot(0), LAYOUT.snapshot(1)
    begins = [LAYOUT.undo + 3 * 400]
    for places in (first, second):
        begins += [places.words, places.chain, places.hashes, places.progress, *places.tensors]
    sizes = [64, 48, 48, 2 * 2 * 4 * 8, 2400, 2400, 2400] * 2

    ends = [begin + size for begin, size in zip(begins[1:], sizes, strict=True)]
    assert begins[0] <= begins[1]
    assert all(end <= begin for end, begin in zip(ends, begins[2:], strict=False))
    assert ends[-1] <= LAYOUT.size

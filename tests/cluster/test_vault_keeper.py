"""Who has which vault, and until when."""

import json
import os
from collections.abc import Iterator

import numpy as np
import pytest

from elasticmoe.cluster.vault_keeper import VaultKeeper
from elasticmoe.errors import ClusterError
from elasticmoe.messages.codec import to_line
from elasticmoe.messages.worker import FormGang, FromMemory
from elasticmoe.vault.layout import VaultLayout
from elasticmoe.vault.vault import Vault

LAYOUT = VaultLayout(num_units=3, num_layers=1, num_experts=2, numel=6, largest_unit=2, itemsize=4)


@pytest.fixture
def keeper() -> Iterator[VaultKeeper]:
    keeper = VaultKeeper()
    yield keeper
    keeper.close()


def order(memory: FromMemory | None = None) -> bytes:
    return to_line(FormGang(7, 0, {"members": []}, "127.0.0.1", 1, None, memory=memory))


def memory(
    heirs: tuple[tuple[int, int], ...] = (), adopted: tuple[tuple[int, int], ...] = ()
) -> FromMemory:
    return FromMemory(step=4, moves=(), progress_from=0, heirs=heirs, adopted=adopted)


def completed(keeper: VaultKeeper, orders: dict[int, bytes], living: set[int]) -> dict[int, dict]:
    """Vault and adopted files by worker."""
    lines = keeper.complete(orders, living)
    return {worker: json.loads(line) for worker, line in lines.items()}


def fill(path: str, steps: tuple[int, ...]) -> None:
    """Put units into a vault, one per step."""
    fd = os.open(path, os.O_RDWR)
    vault = Vault(fd, LAYOUT)
    os.close(fd)
    vault.join(2)
    for unit, step in enumerate(steps):
        vault.stamps_U2[unit] = step + 1
    nothing_LE = np.zeros((1, 2))
    vault.write_progress(max(steps), 0, nothing_LE, nothing_LE)


def file_of(path: str) -> int:
    return os.stat(path).st_ino


def test_a_worker_gets_a_vault_of_its_own_and_is_told_where_until_it_has_state(
    keeper: VaultKeeper,
) -> None:
    first = completed(keeper, {1: order(), 2: order()}, {1, 2})
    again = completed(keeper, {1: order()}, {1, 2})
    keeper.opened(1)
    last = completed(keeper, {1: order()}, {1, 2})

    assert file_of(first[1]["vault"]) != file_of(first[2]["vault"])
    assert again[1]["vault"] == first[1]["vault"]
    assert last[1]["vault"] == ""
    assert first[1]["adopted"] == []


def test_a_completed_order_is_the_order_but_for_the_files(keeper: VaultKeeper) -> None:
    line = order(memory())

    completed_line = completed(keeper, {1: line}, {1})[1]

    assert completed_line.pop("vault")
    plain = json.loads(line)
    assert plain.pop("vault") == ""
    assert completed_line == plain


def test_an_heir_gets_the_dead_workers_file_exactly_once(keeper: VaultKeeper) -> None:
    keeper.begin(1)
    file = file_of(completed(keeper, {1: order()}, {1})[1]["vault"])
    keeper.end(1)

    once = completed(keeper, {3: order(memory(heirs=((3, 1),)))}, {3})
    twice = completed(keeper, {3: order(memory(heirs=((3, 1),)))}, {3})
    keeper.forget([1])
    keeper.opened(3)

    assert file_of(once[3]["vault"]) == file_of(twice[3]["vault"]) == file
    assert file_of(keeper.path(3)) == file
    assert completed(keeper, {3: order()}, {3})[3]["vault"] == ""


def test_a_vault_can_be_adopted_by_several_and_inherited_at_the_same_time(
    keeper: VaultKeeper,
) -> None:
    file = file_of(completed(keeper, {1: order()}, {1})[1]["vault"])
    completed(keeper, {2: order(), 4: order()}, {2, 4})
    will = memory(heirs=((3, 1),), adopted=((2, 1), (4, 1)))

    found = completed(keeper, {n: order(will) for n in (2, 3, 4)}, {2, 3, 4})

    assert file_of(found[3]["vault"]) == file
    assert found[3]["adopted"] == []
    for worker in (2, 4):
        ((dead, path),) = found[worker]["adopted"]
        assert (dead, file_of(path)) == (1, file)


def test_the_heir_of_an_heir_gets_the_same_file_whichever_of_the_dead_is_named(
    keeper: VaultKeeper,
) -> None:
    file = file_of(completed(keeper, {1: order()}, {1})[1]["vault"])
    completed(keeper, {2: order(memory(heirs=((2, 1),)))}, {2})

    found = completed(keeper, {3: order(memory(heirs=((3, 1),)))}, {3})

    assert file_of(found[3]["vault"]) == file
    assert file_of(keeper.path(2)) == file


def test_an_heir_gives_up_the_vault_it_had(keeper: VaultKeeper) -> None:
    completed(keeper, {1: order(), 3: order()}, {1, 3})
    before = keeper.path(3)
    keeper.opened(3)

    found = completed(keeper, {3: order(memory(heirs=((3, 1),)))}, {3})

    assert found[3]["vault"] == keeper.path(1)
    assert not os.path.exists(before)


def test_an_order_that_counts_on_a_vault_that_is_not_here_changes_nothing(
    keeper: VaultKeeper,
) -> None:
    completed(keeper, {1: order()}, {1})
    before = keeper.path(1)
    will = memory(heirs=((3, 1), (4, 2)))

    with pytest.raises(ClusterError, match="vault of worker 2, for worker 4, is not here"):
        keeper.complete({3: order(will), 4: order(will)}, {3, 4})

    assert keeper.path(1) == before
    assert keeper.path(3) == keeper.path(4) == ""


def test_nobody_inherits_from_the_living(keeper: VaultKeeper) -> None:
    completed(keeper, {1: order()}, {1})
    completed(keeper, {2: order(memory(heirs=((2, 1),)))}, {2})

    with pytest.raises(ClusterError, match="worker 2 lives and works in the vault of worker 1"):
        keeper.complete({3: order(memory(heirs=((3, 1),)))}, {2, 3})


def test_a_forgotten_vault_is_gone_but_not_what_its_heir_has(keeper: VaultKeeper) -> None:
    completed(keeper, {1: order(), 2: order()}, {1, 2})
    gone = keeper.path(2)
    completed(keeper, {3: order(memory(heirs=((3, 1),)))}, {3})

    keeper.forget([1, 2, 99])

    assert not os.path.exists(gone)
    assert keeper.path(1) == keeper.path(2) == ""
    assert os.path.exists(keeper.path(3))


def test_copies_tell_what_a_dead_worker_left_and_did_last(keeper: VaultKeeper) -> None:
    keeper.begin(1)
    fill(completed(keeper, {1: order()}, {1})[1]["vault"], steps=(4, 5, 5))
    keeper.pulse(1).enter("apply", 5)
    keeper.pulse(1).count_collective()

    copies = keeper.copies(1)

    assert copies is not None
    assert (copies.worker, copies.generation, copies.step) == (1, 2, 5)
    assert copies.whole == ((4, (0,)), (5, (1, 2)))
    assert (copies.phase, copies.collective) == ("apply", 1)


@pytest.mark.parametrize("content", [b"", b"x", bytes(8192)])
def test_a_vault_that_is_empty_or_unreadable_has_no_copies(
    keeper: VaultKeeper, content: bytes
) -> None:
    keeper.begin(1)
    path = completed(keeper, {1: order()}, {1})[1]["vault"]
    with open(path, "wb") as file:
        file.write(content)

    assert keeper.copies(1) is None


def test_a_worker_that_was_never_told_to_form_has_no_copies(keeper: VaultKeeper) -> None:
    keeper.begin(1)

    assert keeper.copies(1) is None


def test_nothing_stays_open_behind_a_keeper_and_nothing_is_inherited() -> None:
    before = _open_files()
    keeper = VaultKeeper()
    for worker in range(3):
        keeper.begin(worker)
    completed(keeper, {n: order() for n in range(3)}, {0, 1, 2})
    fill(keeper.path(0), steps=(1,))
    assert keeper.copies(0) is not None
    keeper.end(0)
    keeper.forget([0])

    opened = _open_files() - before
    assert len(opened) >= 4
    assert not any(os.get_inheritable(fd) for fd in opened)
    keeper.close()
    assert _open_files() == before


def _open_files() -> set[int]:
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}

"""The commit rule, case by case."""

import pytest

from elasticmoe.controller.casualties import worker_parked
from elasticmoe.controller.copies import count_missing, find_sources, has_progress, settle_step
from elasticmoe.controller.number_map import NumberMap
from elasticmoe.controller.roster import Worker
from elasticmoe.controller.state import JobState, KnownVault, Roster, WorkerStatus
from elasticmoe.messages.worker import Copies, WorkerParked


def vault(
    worker: int,
    whole: dict[int, tuple[int, ...]],
    *,
    prepared: int = 0,
    voted: int = 0,
    step: int | None = None,
    torn: tuple[int, ...] = (),
) -> Copies:
    known = min(whole, default=-1) if step is None else step
    return Copies(worker, 1, known, prepared, voted, tuple(sorted(whole.items())), torn)


OLD = vault(0, {7: (0, 1)})
PREPARED = vault(1, {7: (2, 3)}, prepared=8)
VOTED = vault(2, {7: (4, 5)}, prepared=8, voted=8)
HALF = vault(3, {7: (6,), 8: (7,)}, prepared=8, voted=8)
NEW = vault(4, {8: (8, 9)}, prepared=8, voted=8)
TORN = vault(5, {8: (10,)}, prepared=8, voted=8, step=7, torn=(11,))


@pytest.mark.parametrize(
    "copies, committed, expected",
    [
        ([OLD], 7, (7, False)),
        ([OLD, PREPARED], 7, (7, False)),
        ([PREPARED], 7, (8, True)),
        ([PREPARED, VOTED], 7, (8, True)),
        ([PREPARED, HALF], 7, (8, True)),
        ([PREPARED, NEW], 7, (8, True)),
        ([NEW], 7, (8, False)),
        ([NEW, TORN], 7, (8, True)),
        ([PREPARED], 8, (8, True)),
        ([NEW], 8, (8, False)),
    ],
)
def test_a_step_is_committed_if_anybody_may_know_that_it_is(
    copies: list[Copies], committed: int, expected: tuple[int, bool]
) -> None:
    settled = settle_step(copies, committed)

    assert settled is not None
    assert (settled.step, settled.commits_open_step) == expected


@pytest.mark.parametrize(
    "copies, committed, proven",
    [
        ([PREPARED], 7, 7),  # all are prepared: nobody may have voted
        ([PREPARED], 8, 8),
        ([PREPARED, VOTED], 7, 8),
        ([OLD], 7, 7),
        ([NEW], 7, 8),
    ],
)
def test_only_a_vote_or_what_follows_one_proves_a_step_committed(
    copies: list[Copies], committed: int, proven: int
) -> None:
    settled = settle_step(copies, committed)

    assert settled is not None
    assert settled.proven == proven


def test_without_a_whole_copy_nothing_can_be_settled() -> None:
    assert settle_step([], 7) is None
    assert settle_step([vault(0, {}, torn=(1,))], 7) is None


def test_units_that_were_left_over_from_an_earlier_layout_say_nothing() -> None:
    leftover = vault(0, {3: (9,), 7: (0, 1)}, prepared=8, step=7)

    settled = settle_step([leftover], 7)

    assert settled is not None
    assert settled.step == 8


def test_sources_are_whole_copies_and_those_that_can_be_rolled_forward() -> None:
    copies = [OLD, PREPARED, HALF, NEW, TORN]

    assert find_sources(copies, 8) == {
        2: (1,), 3: (1,), 6: (3,), 7: (3,), 8: (4,), 9: (4,), 10: (5,)
    }  # fmt: skip
    assert count_missing(copies, 8, 11) == (0, 4)
    assert count_missing([NEW], 8, 10)[0] == 0
    assert count_missing([vault(0, {8: (0, 1)})], 8, 2) == (-1, 0)


def test_progress_can_be_rolled_forward_too() -> None:
    assert has_progress(PREPARED, 8)
    assert has_progress(NEW, 8)
    assert not has_progress(OLD, 8)


def test_a_dead_workers_vault_that_was_found_corrupted_is_known_to_be_torn() -> None:
    def copies(worker: int, *torn: int) -> Copies:
        left = tuple(unit for unit in range(4) if unit not in torn)
        return Copies(worker, 1, 7, 7, 7, whole=((7, left),), torn=torn)

    reader = Worker(2, "a", WorkerStatus.BUSY, 0.0)
    state = JobState(
        generation=2,
        workers=Roster().with_workers([reader]),
        vaults=NumberMap({1: KnownVault("a", copies(1))}),
    )
    given_up = copies(0, 3)  # its vault was closed meanwhile
    report = WorkerParked(
        2, 2, 7, "unit 3 did not match", copies(2), "corrupted", (copies(1, 3), given_up)
    )

    after, _ = worker_parked(state, report)

    known = {owner: vault.copies for owner, vault in after.vaults.items()}
    assert known == {1: copies(1, 3), 2: copies(2)}

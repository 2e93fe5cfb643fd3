"""Whatever fails wherever in a step or a recovery: no step is lost, halved or mixed."""

import pytest
from protocol_faults import endings, fall
from protocol_run import Track, recover, train
from protocol_search import Search
from protocol_vault import Case
from protocol_walk import walk
from protocol_world import Decision, World, begin, decide, plan_homes, settle

SMALL = [(workers, redundancy) for workers in (1, 2, 3) for redundancy in range(1, workers + 1)]
OTHERS = {
    "skip-1-alone": Case(2, 1, skipped=frozenset({1})),
    "skip-2": Case(2, 2, skipped=frozenset({2})),
    "skip-1": Case(3, 2, skipped=frozenset({1})),
    "one-node": Case(2, 1, nodes=(0, 0)),
    "one-node-mirrored": Case(2, 2, nodes=(0, 0)),
    "two-nodes": Case(3, 2, nodes=(0, 1, 0), decide_once=False),
    "two-units-alone": Case(2, 1, units_per_worker=2),
    "two-units": Case(2, 2, units_per_worker=2, decide_once=False),
    "mirrors-wait": Case(3, 2, leave_mirrors=True),
    "mortal": Case(2, 2, is_mortal=True),
    "mortal-three-homes": Case(3, 3, is_mortal=True, decide_once=False),
}


def search(case: Case, max_faults: int) -> None:
    found = Search(case, max_faults).run()

    assert found.violation == "", found.violation
    assert found.broken > 90, "faults did fire"
    assert found.trained > case.steps, "gangs of every step trained"
    if case.redundancy > max_faults and not case.nodes:
        assert found.unrecoverable == 0


@pytest.mark.parametrize("workers, redundancy", SMALL)
def test_two_faults_anywhere_in_two_steps(workers: int, redundancy: int) -> None:
    search(Case(workers, redundancy), max_faults=2)


@pytest.mark.slow
@pytest.mark.parametrize("redundancy", [1, 2, 3])
def test_two_faults_anywhere_in_two_steps_of_four_workers(redundancy: int) -> None:
    search(Case(workers=4, redundancy=redundancy), max_faults=2)


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_two_faults_in_other_gangs(case: Case) -> None:
    search(case, max_faults=2)


@pytest.mark.parametrize("workers, redundancy", [(1, 1), (2, 1), (2, 2)])
def test_three_faults_where_the_step_is_decided_again(workers: int, redundancy: int) -> None:
    search(Case(workers, redundancy, decide_once=False), max_faults=3)


def first_step(case: Case) -> tuple[World, list[Track]]:
    world = begin(case)
    members = tuple(range(case.workers))
    return world, train(case, world, members, plan_homes(case, members))


def worlds_at_once(case: Case, world: World, tracks: list[Track], max_faults: int) -> set[World]:
    return {fall(case, world, ending) for ending in endings(case, world, tracks, max_faults)}


def unreported(worlds: set[World]) -> set[World]:
    return {world._replace(reported=0, faults=0, lost=0) for world in worlds}


@pytest.mark.parametrize("workers, redundancy, max_faults", [(2, 1, 2), (2, 2, 2), (3, 2, 1)])
def test_no_interleaving_of_a_step_is_left_out(
    workers: int, redundancy: int, max_faults: int
) -> None:
    case = Case(workers, redundancy, steps=1)
    world, tracks = first_step(case)

    walked = walk(case, world, tracks, max_faults)

    at_once = worlds_at_once(case, world, tracks, max_faults)
    assert len(at_once) > 50
    assert unreported(walked) == unreported(at_once)
    assert {world.reported for world in walked} == {world.reported for world in at_once}


@pytest.mark.parametrize("replace", [True, False])
def test_no_interleaving_of_a_recovery_is_left_out(replace: bool) -> None:
    case = Case(2, 2, steps=1, nodes=(0, 0))
    world, tracks = first_step(case)
    checked = 0
    for broken in worlds_at_once(case, world, tracks, 1):
        decision = decide(case, broken, settle(case, broken, 0), replace=replace)
        if isinstance(decision, Decision) and decision.members:
            forming = recover(case, broken, decision)

            walked = walk(case, broken, forming, 2)

            assert unreported(walked) == unreported(worlds_at_once(case, broken, forming, 2))
            checked += len(walked)
    assert checked > 1000

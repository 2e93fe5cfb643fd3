"""Snapshots: when they are taken, and the rung that goes back to them."""

import itertools
from math import sqrt

import pytest
from fake_gang import Gang
from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import last_sentence, rungs

from elasticmoe.controller.decisions import Form, Recover, TakeSnapshot, Wait
from elasticmoe.controller.machine import outstanding
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.snapshots import interval_s, is_whole, unrecoverable_rate
from elasticmoe.controller.state import JobState
from elasticmoe.messages.commands import InstructGang
from elasticmoe.messages.worker import Copies, SnapshotCopies

FOUR_NODES = {"a": 1, "b": 1, "c": 1, "d": 1}


def world_with(kind: str, redundancy: int = 1, **workers: float) -> World:
    protection = {
        "redundancy": redundancy, "snapshots": kind, "snapshot_interval_s": 0.4,
    }  # fmt: skip
    job = small_job(
        protection=protection,
        workers={"settle_s": 60.0, **workers},
        checkpoint={"interval_steps": 25},
    )
    return World(nodes=dict(FOUR_NODES), job=job)


@pytest.mark.parametrize("kind", ["copy", "parity"])
def test_a_lost_node_with_redundancy_1_goes_back_to_the_newest_snapshot(kind: str) -> None:
    world = world_with(kind)
    world.at_point("begun", 20, lambda _: world.lose_node("b"))
    world.submit()
    world.run()

    assert world.fired
    (recover,) = decisions(world, Recover)
    assert recover.rung == "snapshot"
    assert 0 < recover.redo_steps <= 5
    assert recover.open_step == 20
    assert world.state.phase is Phase.DONE
    assert world.state.timeline == 1
    tally = world.state.tally
    assert (tally.steps_rolled_back, tally.recoveries_snapshot) == (recover.redo_steps, 1)
    form = decisions(world, Form)[-1]
    assert form.memory is not None
    assert form.memory.is_snapshot
    assert bool(form.memory.rebuilt) == (kind == "parity")
    assert f"all went back to the snapshot of step {recover.step} in memory and 3 workers" in (
        last_sentence(world)
    )
    assert_sound(world)


@pytest.mark.parametrize("kind", ["copy", "parity"])
def test_a_second_node_that_is_lost_while_the_first_is_restored_is_answered(kind: str) -> None:
    world = world_with(kind)
    world.at_point("begun", 20, lambda _: world.lose_node("b"))
    world.submit()
    world.run(until=lambda: world.state.generation == 2)
    assert world.state.phase is Phase.FORMING

    world.lose_node("c")
    world.run()

    assert len(world.fired) == 2
    assert rungs(world)[0] == "snapshot"
    # The copies of two lost nodes may be gone with both: then only the checkpoint is left.
    assert rungs(world)[1] in ("snapshot", "failover", "checkpoint")
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_with_redundancy_2_a_double_loss_is_survived_by_the_snapshot() -> None:
    world = world_with("copy", redundancy=2)
    pair = ("a", "b")
    world.at_point("begun", 20, lambda _: [world.lose_node(node) for node in pair])
    world.submit()
    world.run()

    assert len(world.fired) == 2
    assert world.state.plan is not None
    assert rungs(world) in (["snapshot"], ["failover"])
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_too_few_survivors_wait_and_then_go_on_from_the_snapshot() -> None:
    world = world_with("copy", replicas=4, min=4)
    world.at_point("begun", 20, lambda _: world.lose_node("b"))
    world.submit()
    world.run()
    assert world.state.phase is Phase.WAITING
    (wait,) = decisions(world, Wait)

    world.add_node("e", 1)
    world.run()

    assert wait.from_memory
    assert world.state.phase is Phase.DONE
    assert world.state.tally.steps_rolled_back == wait.redo_steps > 0
    assert decisions(world, Form)[-1].memory is not None
    assert_sound(world)


def test_a_gang_takes_one_at_once_and_then_at_every_interval() -> None:
    world = world_with("copy")
    world.submit()
    world.run()

    taken = decisions(world, TakeSnapshot)
    assert [taken[0].reason, taken[1].reason] == [
        "the gang has no snapshot yet",
        "one is due every 0.4 s",
    ]
    apart = [b.at_s - a.at_s for a, b in itertools.pairwise(taken)]
    assert all(0.4 <= gap < 0.75 for gap in apart)
    assert len(taken) >= 5


@pytest.mark.parametrize(
    "kind,redundancy,nodes",
    [("off", 1, FOUR_NODES), ("auto", 2, FOUR_NODES), ("copy", 1, {"a": 4})],
)
def test_none_is_taken_where_none_is_wanted_or_none_would_help(
    kind: str, redundancy: int, nodes: dict[str, int]
) -> None:
    job = small_job(protection={"redundancy": redundancy, "snapshots": kind})
    world = World(nodes=dict(nodes), job=job)
    world.submit()
    world.run()

    assert world.state.phase is Phase.DONE
    assert decisions(world, TakeSnapshot) == []


def test_the_instruction_is_repeated_by_the_next_controller_until_it_was_carried_out() -> None:
    world = world_with("copy")
    world.submit()
    world.run(until=lambda: world.state.snapshots.asked is not None)

    repeated = [c.action for c in outstanding(world.state) if isinstance(c, InstructGang)]
    world.run(until=lambda: world.state.snapshots.asked is None)

    assert repeated == ["snapshot"]
    assert outstanding(world.state) == ()
    world.run()
    assert_sound(world)


def test_the_interval_is_youngs_with_the_rate_of_losses_that_no_home_survives() -> None:
    world = World(nodes=dict(FOUR_NODES), job=small_job(protection={"redundancy": 1}))
    world.submit()
    world.run(until=lambda: world.state.committed_step == 5)
    state: JobState = world.state
    hour = 3600.0

    rate = unrecoverable_rate(state)

    assert rate == pytest.approx(4 / (1000 * hour), rel=1e-4)
    assert interval_s(state) == pytest.approx(min(sqrt(2 * 1.0 / rate), 3600.0))


def test_with_two_homes_the_interval_follows_the_measured_cost_the_losses_and_the_exposure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By hand: losses per node and second; that another one comes while a home is missing."""
    cost_s, mtbf_s = 2e-5, 360.0
    monkeypatch.setattr(Gang, "snapshot_cost_s", cost_s)
    protection = {"redundancy": 2, "snapshots": "copy", "node_mtbf_h": mtbf_s / 3600}
    job = small_job(
        protection=protection,
        workers={"settle_s": 60.0},
        schedule={"steps": 60},
        checkpoint={"interval_steps": 50},
    )
    world = World(nodes=dict(FOUR_NODES), job=job)
    world.submit()
    world.run(until=lambda: world.state.committed_step == 20)
    calm: JobState = world.state
    age_s = calm.now_s - calm.submitted_s
    rate = 1 / (mtbf_s + 4 * age_s)

    assert calm.snapshots.cost_s == cost_s
    assert unrecoverable_rate(calm) == pytest.approx(4 * rate * (rate * 60.0))
    often_s = sqrt(2 * cost_s / (4 * rate * rate * 60.0))
    assert interval_s(calm) == pytest.approx(often_s)

    world.lose_node("b")
    world.run(until=lambda: world.state.tally.exposed_s > 0 and world.state.committed_step > 25)
    struck: JobState = world.state
    age_s, exposed_s = struck.now_s - struck.submitted_s, struck.tally.exposed_s
    rate = 2 / (mtbf_s + 3 * age_s)

    assert (struck.tally.nodes_lost, len(struck.nodes)) == (1, 3)
    assert 0 < exposed_s < 1.0
    assert unrecoverable_rate(struck) == pytest.approx(3 * rate * (rate * exposed_s))
    seldom_s = sqrt(2 * cost_s / (3 * rate * rate * exposed_s))
    assert interval_s(struck) == pytest.approx(seldom_s)
    assert seldom_s > 3 * often_s  # losses were expected to expose it for longer than they do

    world.run()
    lost_s = decisions(world, Recover)[0].at_s
    taken = [decision.at_s for decision in decisions(world, TakeSnapshot)]
    before = [b - a for a, b in itertools.pairwise(taken) if b < lost_s]
    after = [b - a for a, b in itertools.pairwise(taken) if a > lost_s]
    assert before
    assert after
    assert all(often_s <= gap < often_s + 0.3 for gap in before)  # steps take 0.1 s
    assert all(seldom_s <= gap < 1.2 * seldom_s + 0.3 for gap in after)
    assert_sound(world)


def test_a_parity_stands_for_one_unit_that_is_missing_and_no_more() -> None:
    def holding(worker: int, whole: tuple[int, ...], *parities: tuple[int, ...]) -> Copies:
        return Copies(worker, 1, 9, 9, 9, (), snapshots=(SnapshotCopies(7, whole, parities),))

    there = [holding(0, (0, 1)), holding(1, (), (2, 0)), holding(2, (3,))]

    assert is_whole(there, 7, 4)
    assert not is_whole(there, 8, 4)
    assert not is_whole([holding(0, (1,)), *there[1:]], 7, 4)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("lost", ["a", "b"])
@pytest.mark.parametrize("kind", ["copy", "parity"])
@pytest.mark.parametrize("point", ["told", "opened", "moved"])
def test_a_member_that_dies_while_the_snapshot_is_put_back_costs_no_further_step(
    point: str, kind: str, lost: str, place: int
) -> None:
    world = world_with(kind)
    world.at_point("begun", 20, lambda _: world.lose_node(lost))
    killed: list[int] = []

    def kill(name: str, step: int, worker: int) -> None:
        if name == point and world.gang is not None and world.gang.generation == 2 and not killed:
            killed.append(world.gang.members[place])
            world.kill(killed[0])

    before = world.on_point
    world.on_point = lambda *reached: (before(*reached), kill(*reached))[0]
    world.submit()
    world.run()

    assert killed
    first, *others = decisions(world, Recover)  # what only the dead left is read on its node
    assert first.rung == "snapshot"
    assert others
    assert {one.step for one in others} == {first.step}
    assert world.state.tally.steps_rolled_back == first.redo_steps
    assert world.state.phase is Phase.DONE
    assert_sound(world)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_snapshot_that_only_a_dead_process_left_is_read_on_its_node(place: int) -> None:
    world = world_with("copy")

    def strike(_: int) -> None:
        assert world.gang is not None
        world.kill(world.gang.members[place])
        world.lose_node("a")

    world.at_point("begun", 20, strike)
    world.submit()
    world.run()

    assert len(world.fired) == 2
    assert rungs(world) == ["snapshot"]
    assert world.state.phase is Phase.DONE
    assert_sound(world)


@pytest.mark.parametrize("kind", ["copy", "parity"])
def test_steps_that_only_the_end_of_the_gang_tells_of_are_given_up_too(kind: str) -> None:
    world = world_with(kind, replicas=5, settle_s=0.1)
    world.on_step[12] = lambda: world.add_node("e", 1)
    world.submit()
    world.run(until=lambda: world.state.drain is not None)
    drain = world.state.drain
    assert drain is not None
    assert drain.purpose == "grow"
    world.run(until=lambda: world.state.instructed == drain.number)
    last = world.state.committed_step
    world.restart_controller(forgets=True)
    assert world.state.committed_step < last
    world.run(until=lambda: len(world.state.ended) == 1)

    world.lose_node("b")
    world.run()

    assert world.fired == ["add e", "restart", "lose b"]
    (recover,) = decisions(world, Recover)
    assert recover.rung == "snapshot"
    assert recover.redo_steps == last - recover.step > 0
    assert world.state.timeline == 1
    assert world.state.tally.steps_rolled_back == recover.redo_steps
    assert world.state.phase is Phase.DONE
    assert_sound(world)

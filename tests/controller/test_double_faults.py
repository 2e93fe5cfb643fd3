"""A second fault while the first is answered."""

import pytest
from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import done, rungs

from elasticmoe.controller.decisions import Break, Form, Gather, Recover, Train
from elasticmoe.controller.machine import outstanding
from elasticmoe.controller.phases import Phase
from elasticmoe.messages.commands import FormGeneration


def test_a_second_death_before_the_decision_is_part_of_the_same_fault() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.kill(1))
    world.submit()
    world.run(until=lambda: world.state.phase is Phase.BREAKING)

    world.kill(2)
    world.run()

    assert world.fired == ["kill 1", "kill 2"]
    assert rungs(world) == ["replace"]
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_a_second_death_after_the_decision_is_journalled_and_before_it_is_delivered() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.kill(1))

    def strike(_: int) -> None:
        assert decisions(world, Form)[-1].generation == 2  # it is journalled
        assert world.gang is not None
        assert not world.gang.told  # nobody has heard of it
        world.kill(2)

    world.at_point("told", 12, strike)

    done(world)

    assert world.fired == ["kill 1", "kill 2"]
    assert rungs(world) == ["replace", "replace"]
    assert [recover.step for recover in decisions(world, Recover)] == [12, 12]


@pytest.mark.parametrize("crash", ["undecided", "undone"])
@pytest.mark.parametrize("kind", [Break, Gather, Recover, Form, Train])
def test_a_controller_that_dies_around_a_decision_is_followed_by_one_that_goes_on(
    kind: type, crash: str
) -> None:
    world = World()
    world.at_point("half", 13, lambda _: world.kill(1))
    world.submit()
    world.run(until=lambda: world.state.phase is Phase.BREAKING)
    world.run(until=lambda: len(decisions(world, kind)) > (kind not in (Break, Recover)))

    world.crash = crash
    world.run()

    assert world.fired == ["kill 1", "restart"]
    assert world.state.phase is Phase.DONE
    assert rungs(world) == ["replace"]
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_a_restarted_controller_repeats_the_same_start_from_memory() -> None:
    world = World()
    world.at_point("half", 13, lambda _: world.kill(1))
    world.submit()
    world.run(until=lambda: world.state.generation == 2)

    (again,) = [c for c in outstanding(world.state) if isinstance(c, FormGeneration)]

    assert again == [c for c in world.commands if isinstance(c, FormGeneration)][-1]
    assert again.memory is not None


@pytest.mark.parametrize("point", ["told", "opened", "moved", "joined"])
@pytest.mark.parametrize("second", [0, 1, 2, 4])
def test_a_death_at_any_point_of_the_new_generation_keeps_the_step(point: str, second: int) -> None:
    world = World()
    world.at_point("half", 13, lambda _: world.kill(3))
    world.submit()
    world.run(until=lambda: world.state.generation == 2)
    world.at_point(point, 13, lambda _: world.kill(second))

    world.run()

    assert world.fired == ["kill 3", f"kill {second}"]
    assert rungs(world) == ["replace", "replace"]
    assert [recover.step for recover in decisions(world, Recover)] == [13, 13]
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_a_node_lost_while_a_replacement_joins_ends_in_a_failover_at_the_same_step() -> None:
    world = World(nodes={"a": 2, "b": 2, "c": 2}, job=small_job(workers={"replicas": 6}))
    world.at_point("begun", 13, lambda _: world.kill(0))
    world.at_point("opened", 12, lambda _: world.lose_node("c"))

    done(world)

    assert world.fired == ["kill 0", "lose c"]
    assert rungs(world) == ["replace", "failover"]
    assert [recover.step for recover in decisions(world, Recover)] == [12, 12]


def test_when_a_second_fault_takes_the_last_copies_all_go_back_to_the_checkpoint() -> None:
    world = World(nodes={"a": 2, "b": 2})
    world.at_point("half", 13, lambda _: world.kill(0))
    world.submit()
    world.run(until=lambda: world.state.generation == 2)

    world.at_point("told", 13, lambda _: (world.lose_node("a"), world.lose_node("b")))
    world.run()
    world.add_node("c", 4)
    world.run()

    assert world.fired == ["kill 0", "lose a", "lose b", "add c"]
    assert world.state.phase is Phase.DONE
    assert world.state.timeline == 1
    assert world.state.tally.steps_rolled_back == 3
    assert_sound(world)


@pytest.mark.parametrize("point", ["prepared", "voted", "half", "applied"])
@pytest.mark.parametrize("victim", [0, 1, 2, 4])
def test_a_gang_that_trained_before_all_were_heard_keeps_what_it_did(
    point: str, victim: int
) -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.kill(3))
    world.formed_late_s = {2: 0.5}
    world.at_point(point, 14, lambda _: (world.kill(victim), world.formed_late_s.clear()))

    done(world)

    assert world.fired == ["kill 3", f"kill {victim}"]
    steps = [recover.step for recover in decisions(world, Recover)]
    assert steps == [12, 13 if point == "prepared" else 14]

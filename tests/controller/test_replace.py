"""A dead worker is replaced from memory on its node: nothing moves, nothing is lost."""

import pytest
from fake_job import small_job
from fake_world import World, decisions
from survival import done, last_sentence, plans, rungs

from elasticmoe.controller.decisions import Break, Form, Gather, Recover
from elasticmoe.messages.commands import ForgetVaults

POINTS = [
    ("begun", 0, False),
    *[("prepared", nth, nth == 3) for nth in range(4)],
    *[("voted", nth, True) for nth in range(4)],
    *[("half", nth, True) for nth in range(4)],
    *[("applied", nth, True) for nth in range(3)],
]
"""Point, which worker by order of arrival, and whether step 13 is committed then."""


@pytest.mark.parametrize("point, nth, kept", POINTS)
def test_a_worker_killed_anywhere_in_a_step_is_replaced_and_nothing_is_lost(
    point: str, nth: int, kept: bool
) -> None:
    world = World()
    world.at_point(point, 13, world.kill, nth)

    done(world)

    assert len(world.fired) == 1
    assert rungs(world) == ["replace"]
    (recovery,) = decisions(world, Recover)
    assert recovery.step == (13 if kept else 12)
    if point != "applied":  # then it cannot be told whether the next step had begun
        assert recovery.open_step == (0 if kept else 13)
    before, after = plans(world)
    assert (before.stages, before.slots, before.homes) == (after.stages, after.slots, after.homes)
    assert [m.node for m in before.members] == [m.node for m in after.members]


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_without_mirrors_a_worker_that_was_not_prepared_drops_the_step(nth: int) -> None:
    """Asking the survivors alone would commit a step that the dead worker's units never reach."""
    world = World(job=small_job(protection={"redundancy": 1}))
    world.at_point("prepared", 13, lambda _: world.kill(world.state.members[-1]), nth)

    done(world)

    assert rungs(world) == ["replace"]
    assert [recover.step for recover in decisions(world, Recover)] == [12]


def test_a_replaced_worker_is_one_plain_line() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.kill(3))

    done(world)

    assert last_sentence(world) == (
        "worker 3 was killed (signal 9); replaced from its node's memory in 0.03 s; "
        "step 13 redone; nothing lost"
    )
    assert world.state.tally.open_steps_redone == 1


def test_a_step_that_everybody_was_prepared_for_is_kept() -> None:
    world = World()
    world.at_point("voted", 13, lambda _: world.kill(3))

    done(world)

    assert last_sentence(world).endswith("; step 13 kept; nothing lost")
    assert world.state.tally.open_steps_redone == 0


def test_the_replacement_starts_before_the_survivors_have_parked() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.kill(3))

    done(world)

    hired = [one for one in decisions(world, Gather) if one.hires == ((4, "b"),)]
    assert len(hired) == 1
    assert hired[0].at_s == decisions(world, Break)[0].at_s < decisions(world, Recover)[0].at_s


def test_the_heir_takes_over_the_vault_and_nothing_moves() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.kill(3))

    done(world)

    memory = decisions(world, Form)[-1].memory
    assert (memory.step, memory.heirs, memory.moves, memory.adopted) == (12, ((4, 3),), (), ())


def test_a_torn_unit_comes_from_its_other_home() -> None:
    world = World()
    world.at_point("half", 13, world.kill)

    done(world)

    memory = decisions(world, Form)[-1].memory
    assert memory.step == 13
    assert len(memory.moves) == 1


def test_two_workers_of_one_node_are_replaced_from_its_memory() -> None:
    world = World()

    def both(_: int) -> None:
        world.kill(1)
        world.kill(3)

    world.at_point("half", 13, both)

    done(world)

    assert rungs(world) == ["replace"]
    assert "workers 1 and 3 were killed (signal 9); replaced from their node's memory" in (
        last_sentence(world)
    )


def test_all_processes_of_a_gang_may_die_while_their_nodes_live() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: [world.kill(worker) for worker in range(4)])

    done(world)

    assert rungs(world) == ["replace"]
    assert "replaced from their nodes' memory" in last_sentence(world)


def test_a_vault_whose_heir_was_never_told_goes_to_the_next_one() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.kill(3))
    world.at_point("told", 12, lambda _: world.kill(4))

    done(world)

    assert world.fired == ["kill 3", "kill 4"]
    assert [form.memory.heirs for form in decisions(world, Form)[1:]] == [((4, 3),), ((5, 3),)]


def test_a_vault_whose_heir_died_in_it_goes_on_to_the_next_one() -> None:
    world = World()
    world.at_point("half", 13, lambda _: world.kill(3))
    world.at_point("moved", 13, lambda _: world.kill(4))

    done(world)

    assert world.fired == ["kill 3", "kill 4"]
    assert [form.memory.heirs for form in decisions(world, Form)[1:]] == [((4, 3),), ((5, 4),)]


def test_vaults_of_the_dead_are_given_up_when_the_gang_trains() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.kill(3))

    done(world)

    assert [c for c in world.commands if isinstance(c, ForgetVaults)] == [ForgetVaults("b", (3,))]
    assert len(world.state.vaults) == 0

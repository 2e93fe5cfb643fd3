"""A layout that does not fit the nodes' memory is not taken: fewer homes or workers, or wait."""

import pytest
from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import NO_REPLACE, done, last_sentence, plans, rungs

from elasticmoe.controller.decisions import Drain, Form, Gather, GiveUp, Protect, Wait
from elasticmoe.controller.phases import Phase

ACTIVE = small_job(data={"seq_len": 1024})
"""On half the workers each keeps twice the activations, and they are most of what it keeps."""
HALF_IS_TOO_FEW = 24_000
"""Bytes per node; on two nodes of two workers 19 kB are needed, on one 31 kB."""


def lose_b(world: World) -> World:
    world.at_point("begun", 13, lambda _: world.lose_node("b"))
    return world


def test_a_node_that_cannot_hold_the_model_alone_waits_and_nothing_is_lost() -> None:
    world = lose_b(World(job=ACTIVE, memory_bytes=HALF_IS_TOO_FEW))
    world.submit()
    world.run(limit_s=60.0)

    assert world.fired == ["lose b"]
    assert rungs(world) == ["failover"]
    (wait,) = decisions(world, Wait)
    assert wait.reason.startswith("what is left cannot hold the model; 2 workers can run, but ")
    assert "but node a would need 0.000 GiB of memory and has 0.000 GiB" in wait.reason
    assert wait.reason.endswith("waiting for nodes, to go on from memory at step 12")
    assert (wait.from_memory, wait.step, wait.redo_steps) == (True, 12, 0)
    assert world.state.phase is Phase.WAITING
    assert len(decisions(world, Form)) == 1
    assert len(world.alive) == 2  # they keep what is in memory

    world.restart_controller()
    world.add_node("c", 2)
    world.run()

    assert world.state.phase is Phase.DONE
    assert len(decisions(world, Wait)) == 1
    assert decisions(world, Form)[1].memory is not None
    assert world.state.tally.steps_rolled_back == 0
    assert "4 workers" in last_sentence(world)
    assert_sound(world)


def test_a_node_that_does_not_say_how_much_memory_it_has_is_never_too_small() -> None:
    world = done(lose_b(World(job=ACTIVE, memory_bytes=0)))

    assert rungs(world) == ["failover"]
    assert decisions(world, Wait) == []


@pytest.mark.parametrize("memory_bytes,fits", [(6700, False), (7800, True), (2**30, True)])
def test_without_room_for_the_homes_that_are_missing_the_job_goes_on_without_them(
    memory_bytes: int, fits: bool
) -> None:
    world = done(lose_b(World(memory_bytes=memory_bytes)))

    form = decisions(world, Form)[1]
    assert world.fired == ["lose b"]
    assert (not form.unprotected) == fits
    assert len(decisions(world, Protect)) == fits
    assert ("units that lack homes get none: node a would need" in form.reason) == (not fits)


def test_a_node_too_small_for_a_worker_is_not_grown_into() -> None:
    job = small_job(workers={"replicas": 5, "settle_s": 0.2}, schedule={"steps": 60})
    world = World(job=job, small_nodes={"c": 1000})
    world.on_step[5] = lambda: world.add_node("c", 1)
    world.on_step[40] = lambda: world.add_node("d", 1)
    world.submit()
    world.run()

    assert world.fired == ["add c", "add d"]
    assert [drain.purpose for drain in decisions(world, Drain)] == ["grow", "finish"]
    _, refused, more = decisions(world, Gather)
    assert (refused.hires, refused.limits) == ((), (("c", 0),))
    assert refused.reason == "there is memory for no more workers"
    assert [node for _, node in more.hires] == ["d"]
    assert [len(form.workers) for form in decisions(world, Form)] == [4, 5]
    assert "c" not in {world.state.plan.members[place].node for place in range(5)}
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_more_workers_are_started_where_there_is_room_before_anybody_waits() -> None:
    job = small_job(data={"seq_len": 1024}, protection=NO_REPLACE)
    world = World(job=job, nodes={"a": 2, "b": 2}, memory_bytes=2**30, small_nodes={"a": 20_000})
    world.at_point("begun", 13, lambda _: world.kill(1))
    world.at_point("begun", 13, lambda _: world.kill(3))

    done(world)

    assert {fired.split()[0] for fired in world.fired} == {"kill"}
    assert decisions(world, Wait) == []
    (plan,) = plans(world)[1:2]
    assert {member.node for member in plan.members} == {"a", "b"}
    assert "missing of 4" in decisions(world, Gather)[1].reason
    assert set(rungs(world)) == {"failover"}


def test_a_job_that_fits_nowhere_waits_for_nodes_from_the_beginning() -> None:
    world = World(memory_bytes=1000)
    world.submit()
    world.run(limit_s=60.0)

    (wait,) = decisions(world, Wait)
    assert "but node a would need" in wait.reason
    assert wait.reason.endswith("to go on from the beginning (0 steps to redo)")
    assert decisions(world, Form) == decisions(world, GiveUp) == []

    world.memory_bytes = 2**30
    for name in ("c", "d"):
        world.add_node(name, 2)
    world.run()

    assert world.state.phase is Phase.DONE
    assert {member.node for member in world.state.plan.members} == {"c", "d"}
    assert_sound(world)

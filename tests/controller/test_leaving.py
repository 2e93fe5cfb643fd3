"""Nodes and workers that go away soon: the gang moves off before they do, and redoes no step."""

import pytest
from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import done, last_sentence, plans, rungs

from elasticmoe.controller.decisions import (
    Break,
    Drain,
    Protect,
    Regroup,
    Stay,
    Stop,
    TakeCheckpoint,
)
from elasticmoe.controller.phases import Phase
from elasticmoe.messages.commands import KillWorkers
from elasticmoe.messages.events import NodeLeaving, Reported, StopAsked
from elasticmoe.messages.worker import WorkerLeaving


def announce(world: World, node: str, *, left_s: float = 30.0) -> None:
    """A node's end is announced; it lives until then."""
    world.fired.append(f"announce {node}")
    world.at(0, NodeLeaving(0, node, world.now_s + left_s, "Ray drains it"))


def terminate(world: World, worker: int) -> None:
    """A worker gets a SIGTERM of its own."""
    world.fired.append(f"terminate {worker}")
    world.at(0, Reported(0, world.alive[worker], WorkerLeaving(worker, 30.0, "SIGTERM")))


def lost_nothing(world: World) -> None:
    """What distinguishes a move from a recovery."""
    assert decisions(world, Break) == []
    assert rungs(world) == []
    assert world.state.tally.open_steps_redone == 0
    assert world.state.tally.steps_rolled_back == 0
    assert world.state.tally.faults == 0


def test_the_gang_moves_off_a_node_that_goes_away_and_redoes_no_step() -> None:
    world = World()
    world.on_step[12] = lambda: announce(world, "b")

    done(world)

    assert world.fired == ["announce b"]
    lost_nothing(world)
    assert [drain.purpose for drain in decisions(world, Drain)] == ["leave", "finish"]
    (regroup,) = decisions(world, Regroup)
    assert regroup.rung == "failover"
    assert {member.node for member in plans(world)[-1].members} == {"a"}
    assert world.state.form is not None
    assert world.state.form.memory is not None
    sentence = last_sentence(world)
    assert sentence.startswith("node b goes away (Ray drains it); 2 workers went on without them")
    assert "; no step redone; nothing lost" in sentence
    assert [node for node in world.alive.values() if node == "b"] == []  # they were let go


def test_the_loss_of_a_node_that_the_gang_has_left_costs_nothing() -> None:
    world = World()
    world.on_step[12] = lambda: announce(world, "b")
    world.on_step[20] = lambda: world.lose_node("b")

    done(world)

    assert world.fired == ["announce b", "lose b"]
    lost_nothing(world)
    assert world.state.tally.nodes_lost == 1


def test_workers_for_the_place_of_those_who_leave_are_started_first() -> None:
    world = World(nodes={"a": 2, "b": 2, "c": 2})
    world.on_step[12] = lambda: announce(world, "b" if "b" in world.alive.values() else "a")

    done(world)

    lost_nothing(world)
    nodes = [{member.node for member in plan.members} for plan in plans(world)]
    assert len(nodes) == 2
    assert [len(plan.members) for plan in plans(world)] == [4, 4]
    assert world.fired[0].removeprefix("announce ") not in nodes[-1]


def test_units_that_only_leaving_members_keep_get_another_home_first() -> None:
    world = World(job=small_job(protection={"redundancy": 1}))
    world.on_step[12] = lambda: announce(world, "b")

    done(world)

    lost_nothing(world)
    (protect,) = decisions(world, Protect)
    assert "get a home elsewhere: node b goes away" in protect.reason
    assert {member.node for member in plans(world)[-1].members} == {"a"}


def test_a_gang_that_needs_the_node_trains_on_and_says_so_once() -> None:
    world = World(nodes={"a": 1, "b": 3})
    world.on_step[12] = lambda: announce(world, "b")

    done(world)

    lost_nothing(world)
    (stay,) = decisions(world, Stay)
    assert len(stay.workers) == 3
    assert stay.reason.endswith("1 worker can run without and workers.min is 2")
    assert len(world.state.members) == 4
    (ready,) = decisions(world, TakeCheckpoint)
    assert ready.reason == "members may be gone soon"


def test_new_room_lets_the_gang_leave_after_all() -> None:
    world = World(nodes={"a": 1, "b": 3})
    world.on_step[5] = lambda: announce(world, "b")
    world.on_step[8] = lambda: world.add_node("c", 3)

    done(world)

    lost_nothing(world)
    assert len(decisions(world, Stay)) == 1
    assert {member.node for member in plans(world)[-1].members} == {"a", "c"}


def test_without_time_for_a_step_the_gang_stays_and_recovers_afterwards() -> None:
    world = World()
    world.on_step[12] = lambda: announce(world, "b", left_s=0.05)
    world.on_step[13] = lambda: world.lose_node("b")

    done(world)

    assert world.fired == ["announce b", "lose b"]
    assert "s are left and a step takes" in decisions(world, Stay)[0].reason
    assert rungs(world) == ["failover"]
    assert world.state.tally.open_steps_redone <= 1


def test_a_terminated_worker_is_replaced_in_its_memory_and_no_step_is_redone() -> None:
    world = World()
    world.on_step[12] = lambda: terminate(world, 1)

    done(world)

    assert world.fired == ["terminate 1"]
    lost_nothing(world)
    (regroup,) = decisions(world, Regroup)
    assert (regroup.rung, regroup.leavers) == ("replace", (1,))
    assert [one.workers for one in world.commands if isinstance(one, KillWorkers)] == [(1,)]
    assert 1 not in world.alive
    assert len(world.state.members) == 4
    assert world.state.tally.workers_lost == 1
    sentence = last_sentence(world)
    assert sentence.startswith("worker 1 was told to end (SIGTERM); replaced from its node's")
    assert "no step redone" in sentence


def test_a_worker_that_ends_before_it_could_be_replaced_is_a_death_like_any_other() -> None:
    world = World()
    world.on_step[12] = lambda: terminate(world, 1)
    world.at_point("begun", 14, lambda worker: world.kill(1))

    done(world)

    assert rungs(world) in ([], ["replace"])
    assert world.state.tally.open_steps_redone <= 1


@pytest.mark.parametrize("dies", [0, 2])
def test_a_death_during_the_pause_is_recovered_from_in_memory(dies: int) -> None:
    world = World()
    world.on_step[12] = lambda: announce(world, "b")

    def strike(event: object) -> None:
        if world.state.phase is Phase.DRAINING and world.state.ended and dies in world.alive:
            world.kill(dies)

    world.on_event = strike
    done(world)

    assert f"kill {dies}" in world.fired
    assert world.state.tally.steps_rolled_back == 0


@pytest.mark.parametrize("count", range(45, 120, 3))
def test_a_new_controller_finishes_the_move(count: int) -> None:
    world = World()
    world.on_step[12] = lambda: announce(world, "b")
    world.submit()
    world.run(until=lambda: len(world.records) >= count or world.state.committed_step >= 29)

    world.crash = "undone"
    world.run()

    assert sorted(world.fired) == ["announce b", "restart"]
    assert world.state.phase is Phase.DONE
    assert {member.node for member in plans(world)[-1].members} == {"a"}
    lost_nothing(world)
    assert_sound(world)


def test_a_stop_in_the_pause_still_writes_a_checkpoint() -> None:
    world = World()
    world.on_step[12] = lambda: announce(world, "b")
    asked: list[int] = []

    def ask(event: object) -> None:
        outage = world.state.outage
        if outage is not None and outage.is_planned and not asked:
            asked.append(world.state.committed_step)
            world.at(0, StopAsked(0, "a user"))

    world.on_event = ask
    world.submit()
    world.run()

    assert asked
    assert world.state.phase is Phase.STOPPED
    (stop,) = decisions(world, Stop)
    assert "not kept" not in stop.reason
    assert world.state.committed_step >= asked[0]
    assert_sound(world)

"""The brain in a pretend world: one situation, one outcome."""

import pytest
from fake_job import ROLLBACK, small_job
from fake_world import World, assert_sound, decisions

from elasticmoe.controller.decisions import Drain, Form, Recover, Train, Wait
from elasticmoe.controller.machine import replay
from elasticmoe.controller.phases import Phase
from elasticmoe.messages.commands import DeleteCheckpoint, EndJob, KillWorkers
from elasticmoe.messages.events import CheckpointAsked
from elasticmoe.plan.types import Plan


def test_an_undisturbed_job_trains_all_steps_and_ends() -> None:
    world = World()
    world.submit()

    world.run()

    assert world.state.phase is Phase.DONE
    assert world.state.committed_step == 30
    assert world.state.generation == 1
    assert [command for command in world.commands if isinstance(command, EndJob)] == [
        EndJob("done", "all 30 steps are done; saved in checkpoints/30-1")
    ]
    assert_sound(world)


def test_checkpoints_beyond_keep_are_deleted() -> None:
    world = World()
    world.submit()

    world.run()

    deleted = [command for command in world.commands if isinstance(command, DeleteCheckpoint)]
    assert [command.step for command in deleted] == [10]
    assert [checkpoint.step for checkpoint in world.state.checkpoints] == [20, 30]


@pytest.mark.parametrize("step", [1, 9, 10, 11, 19, 29, 30])
def test_without_the_rungs_of_memory_all_go_back_to_the_checkpoint(step: int) -> None:
    world = World(job=small_job(protection=ROLLBACK))
    world.on_step[step] = lambda: world.kill(2)
    world.submit()

    world.run()

    assert world.fired == ["kill 2"]
    assert world.state.phase is Phase.DONE
    assert world.state.committed_step == 30
    (recovery,) = decisions(world, Recover)
    assert recovery.reason.startswith("worker 2 was killed (signal 9); all go back to ")
    assert len(world.state.members) == 4
    assert_sound(world)


def test_a_rollback_is_one_plain_line_with_its_price() -> None:
    world = World(job=small_job(protection=ROLLBACK))
    world.on_step[15] = lambda: world.kill(3)
    world.submit()

    world.run()

    assert world.fired == ["kill 3"]
    _, train = decisions(world, Train)
    assert train.reason == (
        "worker 3 was killed (signal 9); all went back to the checkpoint of step 10 and "
        "4 workers trained on after 0.04 s; 5 steps redone; nothing else lost"
    )


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20])
def test_a_worker_killed_at_any_event_of_the_start_is_replaced(delay: int) -> None:
    world = World()
    world.submit()
    seen = 0

    def kill_at_event(event: object) -> None:
        nonlocal seen
        seen += 1
        if seen >= 7 + delay and not world.fired:
            world.kill(1)

    world.on_event = kill_at_event

    world.run()

    assert world.fired == ["kill 1"]
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_two_deaths_at_once_are_one_fault() -> None:
    world = World()

    def kill_two() -> None:
        world.kill(1)
        world.kill(2)

    world.on_step[12] = kill_two
    world.submit()

    world.run()

    assert world.fired == ["kill 1", "kill 2"]
    assert world.state.tally.faults == 1
    assert decisions(world, Recover)[0].reason.startswith("workers 1 and 2 were killed")
    assert_sound(world)


def test_a_second_death_while_the_new_generation_forms_is_answered() -> None:
    world = World()
    world.on_step[12] = lambda: world.kill(1)
    world.submit()
    world.run(until=lambda: world.state.generation == 2)

    world.kill(2)
    world.run()

    assert world.fired == ["kill 1", "kill 2"]
    assert world.state.phase is Phase.DONE
    assert world.state.tally.recoveries == 2
    assert_sound(world)


def test_a_broken_connection_with_everybody_alive_starts_no_worker() -> None:
    world = World()
    world.on_step[12] = world.cut
    world.submit()

    world.run()

    assert world.fired == ["cut"]
    assert world.state.phase is Phase.DONE
    assert world.state.next_worker == 4
    assert "everybody alive" in decisions(world, Recover)[0].reason
    assert_sound(world)


def test_a_worker_that_does_not_park_is_killed_and_replaced() -> None:
    world = World(stuck={0})
    world.on_step[12] = lambda: world.kill(3)
    world.submit()

    world.run()

    kills = [command for command in world.commands if isinstance(command, KillWorkers)]
    assert [command.workers for command in kills] == [(0,)]
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_a_lost_node_leaves_the_job_on_fewer_workers() -> None:
    world = World()
    world.on_step[12] = lambda: world.lose_node("b")
    world.submit()

    world.run()

    assert world.fired == ["lose b"]
    assert world.state.phase is Phase.DONE
    assert len(world.state.members) == 2
    assert_sound(world)


def test_with_fewer_than_min_the_job_waits_and_a_new_node_brings_it_back() -> None:
    world = World(nodes={"a": 1, "b": 3}, job=small_job(protection={"redundancy": 1}))
    world.on_step[12] = lambda: world.lose_node("b")
    world.submit()
    world.run()
    assert world.state.phase is Phase.WAITING
    (waited,) = decisions(world, Wait)
    assert waited.reason == (
        "node b was lost with workers 1 to 3 (agent does not answer); 1 worker can run and "
        "workers.min is 2: waiting for nodes, to go on from the checkpoint of step 10 "
        "(2 steps to redo)"
    )

    world.add_node("c", 2)
    world.run()

    assert world.fired == ["lose b", "add c"]
    assert world.state.phase is Phase.DONE
    assert all(len(form.workers) >= 2 for form in decisions(world, Form))
    assert_sound(world)


def test_a_job_begins_with_enough_workers_after_the_settling_time() -> None:
    world = World(nodes={"a": 3})
    world.submit()

    world.run()

    assert world.state.phase is Phase.DONE
    assert decisions(world, Form)[0].at_s >= 100.0 + world.job.workers.settle_s
    assert len(decisions(world, Form)[0].workers) == 3


def test_a_new_node_makes_the_gang_grow_without_redoing_a_step() -> None:
    world = World(nodes={"a": 2}, job=small_job(workers={"settle_s": 0.2}))
    world.on_step[3] = lambda: world.add_node("b", 2)
    world.submit()

    world.run()

    assert world.fired == ["add b"]
    assert [len(form.workers) for form in decisions(world, Form)] == [2, 4]
    assert [drain.purpose for drain in decisions(world, Drain)] == ["grow", "finish"]
    grown = decisions(world, Form)[-1]
    assert grown.memory is not None
    plan = Plan.from_json(grown.plan)
    nodes = [{plan.members[home].node for home in homes} for homes in plan.homes]
    assert nodes == [{"a", "b"}] * len(nodes)
    assert {home for homes in plan.homes for home in homes} == {0, 1, 2, 3}
    assert world.state.tally.steps_rolled_back == 0
    assert world.state.timeline == 0
    assert_sound(world)


def test_a_checkpoint_that_does_not_verify_is_skipped_for_an_older_one() -> None:
    world = World(job=small_job(checkpoint={"interval_steps": 5}, protection=ROLLBACK))
    world.on_step[12] = lambda: world.kill(1)
    world.submit()
    world.run(until=lambda: world.state.generation == 2)

    world.fail(0, "bad_checkpoint", 10)
    world.run()

    assert world.fired == ["kill 1", "fail 0"]
    assert [form.step for form in decisions(world, Form)] == [0, 10, 5]
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_a_job_goes_on_from_the_checkpoints_it_finds() -> None:
    world = World(sealed={"old/20": 20})
    world.submit([{"step": 20, "uri": "old/20"}])

    world.run()

    assert world.state.phase is Phase.DONE
    assert world.state.timeline == 0
    assert world.state.tally.steps_reported == 10
    assert_sound(world)


@pytest.mark.parametrize("crash", ["undecided", "undone"])
@pytest.mark.parametrize("count", range(1, 74, 3))
def test_a_new_controller_goes_on_where_the_journal_ends(count: int, crash: str) -> None:
    world = World()
    world.on_step[12] = lambda: world.kill(1)
    world.submit()
    world.run(until=lambda: len(world.records) >= count)

    world.crash = crash
    world.run()

    assert sorted(world.fired) == ["kill 1", "restart"]
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_the_state_is_rebuilt_from_every_prefix_of_the_journal() -> None:
    world = World()
    world.on_step[12] = lambda: world.kill(1)
    world.on_step[17] = world.cut
    world.submit()
    states = {}

    def remember(event: object) -> None:
        states[len(world.records)] = world.state

    world.on_event = remember
    world.run()

    assert world.fired == ["kill 1", "cut"]
    assert len(states) > 50
    for length, state in states.items():
        assert replay(world.records[:length]) == state


def test_a_checkpoint_on_demand_is_taken_once() -> None:
    world = World()
    world.on_step[3] = lambda: world.at(0, CheckpointAsked(0))
    world.submit()

    world.run(until=lambda: world.state.committed_step == 9)

    assert [checkpoint.step for checkpoint in world.state.checkpoints] == [4]


def test_a_recovery_waits_for_a_checkpoint_that_is_being_sealed() -> None:
    world = World(seal_s=1.0, job=small_job(protection=ROLLBACK))
    world.on_step[21] = lambda: world.kill(1)
    world.submit()

    world.run()

    assert world.fired == ["kill 1"]
    (recovery,) = decisions(world, Recover)
    assert recovery.step == 20
    assert_sound(world)


def test_a_seal_that_comes_after_the_rollback_is_not_gone_on_from() -> None:
    world = World(seal_s=9.0, job=small_job(protection=ROLLBACK))
    world.on_step[21] = lambda: world.kill(1)
    world.submit()
    world.run(until=lambda: world.state.generation == 2)
    assert world.state.committed_step == 0

    world.run()

    assert world.fired == ["kill 1"]
    assert world.state.phase is Phase.DONE
    assert world.state.tally.stale == 2
    assert_sound(world)

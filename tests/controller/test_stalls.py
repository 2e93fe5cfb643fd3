"""Workers that live and do nothing: silent ones, and ones that loop."""

import pytest
from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import done, last_sentence, rungs

from elasticmoe.controller.decisions import Break, Drain, Fence, Stop
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.state import SETTLE_S, UNHEARD_PATIENCE_S
from elasticmoe.messages.commands import KillWorkers
from elasticmoe.messages.events import StopAsked, TimePassed


def test_a_stopped_worker_is_killed_at_once_and_replaced() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.stop(2))

    done(world)

    assert world.fired == ["stop 2"]
    assert [c.workers for c in world.commands if isinstance(c, KillWorkers)] == [(2,)]
    (fence,) = decisions(world, Fence)
    assert fence.at_s == decisions(world, Break)[0].at_s
    assert last_sentence(world) == (
        "worker 2 fell silent (no heartbeat for 0.2 s) and was killed; "
        "replaced from its node's memory in 0.04 s; step 13 redone; nothing lost"
    )


def test_a_silent_worker_outside_the_gang_is_killed_without_a_break() -> None:
    world = World(nodes={"a": 2, "b": 1}, job=small_job(workers={"settle_s": 0.1}))
    world.on_step[3] = lambda: world.add_node("c", 1)
    world.submit()
    world.run(until=lambda: 3 in world.alive)
    world.stop(3)

    world.run()

    assert world.fired == ["add c", "stop 3"]
    assert [fence.workers for fence in decisions(world, Fence)] == [(3,)]
    assert decisions(world, Break) == []
    assert_sound(world)


def test_a_worker_that_loops_without_progress_is_found_by_the_bound_and_replaced() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.hang(2))

    done(world)

    assert world.fired == ["hang 2"]
    assert rungs(world) == ["replace"]
    (broken,) = decisions(world, Break)
    assert broken.reason == (
        "no step for 0.35 s, the bound is 0.30 s (the slowest of the last 11 steps took 0.10 s)"
    )
    assert "worker 2 did not leave its generation in time and was killed" in last_sentence(world)
    (fence,) = decisions(world, Fence)
    assert fence.at_s - broken.at_s == pytest.approx(0.1)


def test_a_stall_with_everybody_alive_is_tried_again_and_doubles_the_bound() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: setattr(world, "pause_s", 0.5))

    done(world)

    assert rungs(world) == ["retry"]
    assert "no step for" in decisions(world, Break)[0].reason
    assert world.state.pace.doublings == 0


def test_slow_checkpoints_and_first_steps_are_no_stalls() -> None:
    world = World(save_pause_s=0.6, first_pause_s=0.8)
    world.at_point("begun", 13, lambda _: world.kill(1))

    done(world)

    assert rungs(world) == ["replace"]
    assert len(decisions(world, Break)) == 1


def test_timers_that_watch_the_pace_leave_no_record() -> None:
    world = World()

    done(world)

    timers = [one for one in world.records if isinstance(one.body, TimePassed)]
    assert timers == []


def test_a_worker_that_loops_while_the_gang_comes_to_its_end_is_found_by_the_same_bound() -> None:
    world = World(nodes={"a": 2}, job=small_job(workers={"settle_s": 0.2}))
    world.on_step[8] = lambda: world.add_node("b", 2)
    world.submit()
    world.run(until=lambda: world.state.phase is Phase.DRAINING)
    world.hang(1)

    world.run()

    assert world.fired == ["add b", "hang 1"]
    (drain, *_) = decisions(world, Drain)
    (broken,) = decisions(world, Break)
    assert drain.purpose == "grow"
    assert "no step for" in broken.reason
    assert broken.at_s - drain.at_s < 1.0
    assert world.state.phase is Phase.DONE
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_a_stop_is_not_held_up_by_a_worker_that_loops() -> None:
    world = World()
    world.on_step[12] = lambda: world.at(0, StopAsked(0, "you"))
    world.at_point("begun", 13, lambda _: world.hang(2))
    world.submit()

    world.run()

    assert world.fired == ["hang 2"]
    (drain,) = decisions(world, Drain)
    (stop,) = decisions(world, Stop)
    assert "no step for" in stop.reason
    assert stop.at_s - drain.at_s < 1.0
    assert_sound(world)


def test_a_last_checkpoint_that_takes_long_is_no_stall() -> None:
    world = World(seal_s=5.0)
    world.on_step[12] = lambda: world.at(0, StopAsked(0, "you"))
    world.submit()

    world.run()

    assert decisions(world, Break) == []
    assert world.state.newest is not None
    assert world.state.newest.step == 13
    assert_sound(world)


def test_after_a_restart_a_gang_at_its_end_is_not_taken_for_a_stalled_one() -> None:
    world = World(part_s=5.0, job=small_job(checkpoint={"interval_steps": 30}))
    world.on_step[12] = lambda: world.at(0, StopAsked(0, "you"))
    world.submit()
    world.run(until=lambda: world.state.instructed > 0)
    world.restart_controller(forgets=True)

    world.run()

    assert world.fired == ["restart"]
    assert decisions(world, Break) == []
    assert world.state.newest is not None
    assert world.state.newest.step == 13


def test_a_worker_that_loops_while_the_gang_comes_to_its_end_is_found_after_a_restart_too() -> None:
    world = World(nodes={"a": 2}, job=small_job(workers={"settle_s": 0.1}))
    world.on_step[8] = lambda: world.add_node("b", 2)
    world.at_point("begun", 9, lambda _: world.hang(1))
    world.submit()
    world.run(until=lambda: world.state.phase is Phase.DRAINING)
    world.later(0.05, world.restart_controller)
    world.run(until=lambda: "restart" in world.fired)
    restarted_s = world.now_s

    world.run()

    assert world.fired == ["add b", "hang 1", "restart"]
    (broken,) = decisions(world, Break)
    assert "no step for" in broken.reason
    assert broken.at_s - restarted_s == pytest.approx(UNHEARD_PATIENCE_S + SETTLE_S)
    assert world.state.phase is Phase.DONE
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)

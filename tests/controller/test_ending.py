"""How jobs end: given up, stopped, or unable to save."""

import pytest
from fake_job import small_job
from fake_world import World, assert_sound, decisions

from elasticmoe.controller.decisions import GiveUp, Recover
from elasticmoe.controller.phases import Phase
from elasticmoe.messages.commands import EndJob
from elasticmoe.messages.events import StopAsked


def test_workers_that_always_die_at_the_start_end_the_job_with_the_first_error() -> None:
    world = World(starts_die=True, job=small_job(protection={"max_restarts": 3}))
    world.submit()

    world.run()

    assert world.state.phase is Phase.FAILED
    (end,) = decisions(world, GiveUp)
    assert end.code == "crash_loop"
    assert end.log == "logs/0.txt"
    assert "3 restarts in a row" in end.reason
    assert "exit status 1" in end.reason
    assert_sound(world)


def test_each_further_try_waits_twice_as_long() -> None:
    protection = {"max_restarts": 4, "restart_backoff_s": 1.0}
    world = World(starts_die=True, job=small_job(protection=protection))
    world.submit()

    world.run()

    waits = [recover.retry_at_s - recover.at_s for recover in decisions(world, Recover)]
    assert waits == pytest.approx([0.0, 1.0, 2.0, 4.0])


def test_the_same_failure_twice_at_the_same_step_ends_the_job_with_its_cause() -> None:
    world = World(fails_at={13: "bad_data"})
    world.submit()

    world.run()

    assert world.fired[0] == "fail 0"
    assert len(world.fired) == 2
    assert world.state.phase is Phase.FAILED
    (end,) = decisions(world, GiveUp)
    assert end.code == "bad_data"
    assert "twice at step 13" in end.reason
    assert "logs/" in end.reason
    assert_sound(world)


@pytest.mark.parametrize(
    "number,code", [(4, "sigill"), (6, "sigabrt"), (7, "sigbus"), (8, "sigfpe"), (11, "sigsegv")]
)
def test_a_worker_that_brings_the_same_signal_upon_itself_twice_at_one_step_ends_the_job(
    number: int, code: str
) -> None:
    world = World()

    def crash(point: str, step: int, worker: int) -> None:
        if (point, step) == ("begun", 13):
            world.kill(world.state.members[-1], evidence=f"killed by signal {number}")

    world.on_point = crash
    world.submit()
    world.run()

    assert len(world.fired) == 2
    assert [recover.rung for recover in decisions(world, Recover)] == ["replace"]
    (end,) = decisions(world, GiveUp)
    assert end.code == code
    assert end.reason.startswith(
        f"the same failure twice at step 13 ({code}): killed by signal {number}. "
    )
    assert end.log == f"logs/{world.fired[1].split()[1]}.txt"
    assert_sound(world)


def test_the_same_signal_at_other_steps_is_a_fault_like_any_other() -> None:
    world = World()
    for step in (12, 13, 15):
        world.at_point(
            "begun",
            step,
            lambda _: world.kill(world.state.members[-1], evidence="killed by signal 11"),
        )
    world.submit()
    world.run()

    assert len(world.fired) == 3
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_who_aborts_because_its_peer_is_gone_is_no_cause_that_follows_the_work() -> None:
    """Its peer is killed from outside, twice in one step."""
    world = World(nodes={"a": 4, "b": 4})
    killed: list[int] = []

    def strike(point: str, step: int, worker: int) -> None:
        if (point, step) == ("begun", 13) and len(killed) < 4:
            first, second = world.state.members[1], world.state.members[3]
            if first in killed:
                return
            killed.extend((first, second))
            world.kill(first)
            world.later(0.0, lambda: world.kill(second, evidence="killed by signal 6"))

    world.on_point = strike
    world.submit()
    world.run()

    assert len(world.fired) == 4
    assert world.state.phase is Phase.DONE
    assert decisions(world, GiveUp) == []
    assert_sound(world)


def test_dying_again_and_again_at_one_step_is_a_crash_loop() -> None:
    world = World(job=small_job(protection={"max_restarts": 3, "restart_backoff_s": 0.0}))

    def crash(point: str, step: int, worker: int) -> None:
        if (point, step) == ("begun", 13):
            world.kill(world.state.members[-1], evidence="killed by signal 9")

    world.on_point = crash
    world.submit()

    world.run()

    assert len(world.fired) == 4
    assert world.state.phase is Phase.FAILED
    assert decisions(world, GiveUp)[0].code == "crash_loop"


def test_a_stop_writes_a_checkpoint_and_loses_nothing() -> None:
    world = World()
    world.on_step[13] = lambda: world.at(0, StopAsked(0, "you"))
    world.submit()

    world.run()

    assert world.state.phase is Phase.STOPPED
    assert world.state.newest is not None
    assert world.state.newest.step == world.state.committed_step == 14
    assert world.state.outcome == "stopped by you at step 14; saved in checkpoints/14-1"
    assert_sound(world)


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.GATHERING, Phase.FORMING])
def test_a_stop_before_training_ends_the_job_at_once(phase: Phase) -> None:
    world = World()
    world.submit()
    world.run(until=lambda: world.state.phase is phase)
    assert world.state.phase is phase

    world.deliver(StopAsked(world.now_s, "you"))

    assert world.state.phase is Phase.STOPPED
    assert isinstance(world.commands[-1], EndJob)


def test_a_stop_while_a_fault_is_answered_ends_at_the_newest_checkpoint() -> None:
    world = World()
    world.on_step[15] = lambda: world.kill(1)
    world.submit()
    world.run(until=lambda: world.state.phase is Phase.BREAKING)

    world.deliver(StopAsked(world.now_s, "you"))

    assert world.fired == ["kill 1"]
    assert world.state.phase is Phase.STOPPED
    assert world.state.committed_step == 10
    assert "5 later steps not kept" in world.state.outcome


def test_a_second_stop_does_not_wait_for_the_checkpoint() -> None:
    world = World()
    world.on_step[13] = lambda: world.at(0, StopAsked(0, "you"))
    world.submit()
    world.run(until=lambda: world.state.phase is Phase.DRAINING)

    world.deliver(StopAsked(world.now_s, "you"))

    assert world.state.phase is Phase.STOPPED
    assert "asked twice" in world.state.outcome


def test_a_last_checkpoint_that_cannot_be_written_fails_the_job_and_says_so() -> None:
    world = World()
    world.on_step[25] = lambda: setattr(world, "seals_work", False)
    world.submit()

    world.run()

    assert world.state.phase is Phase.FAILED
    assert world.state.outcome == (
        "all steps are done, but the checkpoint of step 30 could not be written: disk full. "
        "The newest checkpoint: step 20"
    )

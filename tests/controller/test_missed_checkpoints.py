"""A checkpoint that a fault prevents is written after the recovery, not an interval later."""

import pytest
from fake_gang import Gang
from fake_world import World, decisions
from survival import done, rungs

from elasticmoe.controller.decisions import TakeCheckpoint
from elasticmoe.messages.events import CheckpointSealed
from elasticmoe.messages.worker import CheckpointFailed, GangEnded, WorkerParked


def saved(world: World) -> list[int]:
    """Steps of all checkpoints that were sealed, in order."""
    bodies = [record.body for record in world.records]
    return [body.step for body in bodies if isinstance(body, CheckpointSealed)]


def test_a_checkpoint_that_a_death_cuts_off_is_written_soon_after() -> None:
    world = World()
    world.on_step[10] = lambda: world.kill(1)  # its part is not there yet

    done(world)

    assert world.fired == ["kill 1"]
    (asked,) = decisions(world, TakeCheckpoint)
    assert asked.reason == "that of step 10 was cut off"
    first, *others = saved(world)
    assert 10 < first <= 13
    assert others == [20, 30]


@pytest.mark.parametrize("step", [5, 15])
def test_a_death_at_another_time_asks_for_no_checkpoint(step: int) -> None:
    world = World()
    world.on_step[step] = lambda: world.kill(1)

    done(world)

    assert world.fired == ["kill 1"]
    assert decisions(world, TakeCheckpoint) == []
    assert saved(world) == [10, 20, 30]


def test_a_checkpoint_that_was_cut_off_twice_is_asked_for_twice() -> None:
    world = World(part_s=0.15)
    world.on_step[10] = lambda: world.kill(1)
    world.at_point("begun", 13, lambda _: world.kill(2))  # it is being written again

    done(world)

    assert world.fired == ["kill 1", "kill 2"]
    reasons = [asked.reason for asked in decisions(world, TakeCheckpoint)]
    assert reasons == ["that of step 10 was cut off"] * 2
    assert 10 < saved(world)[0] < 20


def test_a_copy_that_was_bad_at_the_last_step_is_made_again() -> None:
    world = World()

    def end_badly(gang: Gang) -> None:
        """One member's copy for the checkpoint is not what its memory is."""
        bad, *others = reversed(gang.members)

        def end(step: int) -> None:
            gang.ended = True
            copies = world.vaults[bad].copies(bad)
            what = "unit 3 did not match its hash"
            world.report(0, bad, CheckpointFailed(1, bad, step, what))
            world.report(0, bad, WorkerParked(1, bad, step, what, copies, "corrupted"))
            for worker in others:
                world.report(0.01, worker, GangEnded(1, worker, step))

        gang._save, gang._end = (lambda step: None), end  # type: ignore[method-assign]

    world.at_point("prepared", 30, lambda _: (world.fired.append("flip"), end_badly(world.gang)))

    done(world)

    assert world.fired == ["flip"]
    assert rungs(world) == ["retry"]
    assert saved(world) == [10, 20, 30]

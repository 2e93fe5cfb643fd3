"""A gang whose steps change nothing any more: back to before it once, and not for ever."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import last_sentence, rungs

from elasticmoe.controller.decisions import GiveUp, Recover
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Entry, Progress, Record, as_progress, fold
from elasticmoe.controller.story import story
from elasticmoe.messages.codec import by_name, decode, encode
from elasticmoe.messages.events import Reported
from elasticmoe.messages.worker import MOST_SKIPPED, STEPS_SKIPPED, StepDone, WorkerParked

LAST_UPDATE, STUCK_AT = 13, 13 + MOST_SKIPPED
FOUR_NODES = {"a": 1, "b": 1, "c": 1, "d": 1}


def skipping(world: World, ends: Callable[[int], int | None]) -> World:
    """Let the gang park because it skipped its last steps.

    Args:
        ends: the last of them, by timeline; none: no step is skipped.
    """

    def look(point: str, step: int, worker: int) -> None:
        gang = world.gang
        if gang is None or point != "applied" or step != ends(world.state.timeline):
            return
        vaults = [world.vaults[member] for member in gang.members]
        if any(vault.step != step for vault in vaults):
            return  # not the last of them
        world.fired.append(f"skipped up to {step}")
        gang.broken = True
        text = f"steps {step - MOST_SKIPPED + 1} to {step} changed nothing: not finite"
        gang._report_step(step)
        for member, vault in zip(gang.members, vaults, strict=True):
            copies = vault.copies(member)
            parked = WorkerParked(gang.generation, member, step, text, copies, STEPS_SKIPPED)
            world.report(0.01, member, parked)

    world.on_point = look
    return world


def test_the_first_time_all_go_back_to_the_checkpoint_before_the_skipped_steps() -> None:
    world = skipping(World(), lambda timeline: STUCK_AT if timeline == 0 else None)
    world.submit()
    world.run()

    assert world.fired == [f"skipped up to {STUCK_AT}"]
    (recover,) = decisions(world, Recover)
    assert (recover.rung, recover.step) == ("checkpoint", 10)  # not 20: that has the same weights
    assert recover.refused == ("checkpoints/20-1",)
    assert recover.passed_over[0] == "retry: steps 14 to 23 changed nothing: not finite"
    assert last_sentence(world).startswith("steps 14 to 23 changed nothing: not finite; ")
    assert world.state.phase is Phase.DONE
    assert world.state.committed_step == 30
    assert world.state.tally.steps_rolled_back == STUCK_AT - 10
    assert world.state.tally.workers_lost == 0
    assert_sound(world)


@pytest.mark.parametrize("later", [0, MOST_SKIPPED - 1])
def test_the_second_time_the_job_ends_and_says_what_can_be_done(later: int) -> None:
    """Also if the steps are not the very same: a redone step may differ in its rounding."""
    world = skipping(World(), lambda timeline: 15 + later * (timeline > 0))
    world.submit()
    world.run()

    assert len(world.fired) == 2
    assert rungs(world) == ["checkpoint"]
    assert world.state.phase is Phase.FAILED
    (end,) = decisions(world, GiveUp)
    assert end.code == STEPS_SKIPPED
    assert end.reason.startswith(f"the same failure twice at step {15 + later} (steps_skipped): ")
    assert "Lower optimizer.learning_rate, look at the text of these steps" in end.reason
    assert_sound(world)


def test_other_steps_that_are_skipped_later_are_another_failure() -> None:
    ends = {0: 12, 1: 12 + MOST_SKIPPED}
    world = skipping(World(), ends.get)
    world.submit()
    world.run()

    assert len(world.fired) == 2
    assert rungs(world) == ["checkpoint", "checkpoint"]
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_where_every_checkpoint_has_the_same_weights_the_newest_is_tried_once() -> None:
    world = skipping(World(), lambda _: 30 - 1)
    world.submit([{"step": 19, "uri": "checkpoints/19-0"}])
    world.sealed["checkpoints/19-0"] = 19
    world.run()

    assert len(world.fired) == 2
    assert [(one.rung, one.step) for one in decisions(world, Recover)] == [("checkpoint", 20)]
    assert world.state.phase is Phase.FAILED
    assert_sound(world)


def test_a_snapshot_from_before_the_skipped_steps_is_gone_back_to() -> None:
    job = small_job(
        protection={"redundancy": 1, "snapshots": "copy", "snapshot_interval_s": 1.2},
        checkpoint={"interval_steps": 25},
    )
    world = World(nodes=dict(FOUR_NODES), job=job)
    skipping(world, lambda timeline: 18 if timeline == 0 else None)
    world.submit()
    world.run(until=lambda: bool(world.fired))
    newest = {vault.snapshots[-1].step for vault in world.vaults.values()}
    world.run()

    assert len(world.fired) == 1
    (recover,) = decisions(world, Recover)
    assert recover.rung == "snapshot"
    assert 0 < recover.step < 18 - MOST_SKIPPED < min(newest)
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_a_step_that_changes_nothing_is_on_record_and_told() -> None:
    world = World(skipped={7, 8, 21})
    world.submit()
    world.run()

    records = world.records
    found = [r.body.skipped for r in records if isinstance(r.body, Progress) and r.body.skipped]
    assert [step for steps in found for step in steps] == [7, 8, 21]
    told = [line for line in story(records) if "changed no weights" in line]
    assert told[-1].endswith(
        "step 21 changed no weights: not finite, or the loss rose beyond its bound"
    )
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_skipped_steps_are_kept_when_progress_is_folded_and_absent_in_old_journals() -> None:
    pieces = [
        as_progress(
            Reported(
                float(step),
                "a",
                StepDone(1, step, 1.0, 1.0, {"skipped": step < 3}, (step, step + 1), 0),
            )
        )
        for step in (1, 2, 3)
    ]
    first, second, third = (piece for piece in pieces if piece is not None)
    folded = fold(fold(first, second), third)
    plain = encode(folded)

    assert folded is not None
    assert folded.skipped == (1, 2)
    assert decode(by_name(Entry), plain) == folded
    del plain["skipped"]
    assert decode(by_name(Entry), plain) == replace(folded, skipped=())
    assert story([Record(0, folded)])[0].endswith(
        "steps 1 and 2 changed no weights: not finite, or the loss rose beyond its bound"
    )

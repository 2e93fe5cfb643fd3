"""The checker finds every way in which a history can be unsound."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from fake_job import ROLLBACK, small_job
from fake_world import World

from elasticmoe.controller.decisions import Form, Recover
from elasticmoe.controller.history import check_history
from elasticmoe.controller.record import Decided, Progress, Record, as_progress, fold
from elasticmoe.messages.events import CheckpointSealed, Reported, TermBegan
from elasticmoe.messages.worker import GangFormed, StepDone


@pytest.fixture(scope="module")
def records() -> list[Record]:
    world = World(job=small_job(protection=ROLLBACK))
    world.on_step[15] = lambda: world.kill(1)
    world.submit()
    world.run()
    assert world.fired == ["kill 1"]
    return world.records


def changed(
    records: list[Record], step: int, change: Callable[[Progress], Progress | None]
) -> list:
    """The journal with the last record of a step changed, or left out."""
    places = [
        place
        for place, record in enumerate(records)
        if isinstance(record.body, Progress) and record.body.last_step == step
    ]
    new = change(records[places[-1]].body)
    found = list(records)
    if new is None:
        del found[places[-1]]
    else:
        found[places[-1]] = replace(found[places[-1]], body=new)
    return found


def test_a_history_with_a_rollback_is_sound(records: list[Record]) -> None:
    assert check_history(records) == []


def test_a_missing_step_is_found(records: list[Record]) -> None:
    problems = check_history(changed(records, 25, lambda progress: None))

    assert problems == ["generation 2: no record tells of steps 25 to 25"]


def test_a_sample_used_twice_is_found(records: list[Record]) -> None:
    problems = check_history(
        changed(
            records,
            25,
            lambda progress: replace(
                progress,
                first_sample=progress.first_sample - 1,
                end_sample=progress.end_sample - 1,
            ),
        )
    )

    assert "generation 2: step 25 begins with sample 95; the step before ended with sample 95" in (
        problems
    )


def test_a_step_with_the_wrong_number_of_samples_is_found(records: list[Record]) -> None:
    problems = check_history(
        changed(records, 25, lambda step: replace(step, end_sample=step.end_sample + 1))
    )

    assert "generation 2: steps 25 to 25 used samples 96 to 100, not 4 each" in problems


def test_other_samples_behind_a_rollback_are_found(records: list[Record]) -> None:
    def shift(step: Progress) -> Progress:
        return replace(step, first_sample=step.first_sample + 4, end_sample=step.end_sample + 4)

    problems = check_history(changed(records, 11, shift))

    assert problems[0] == (
        "generation 2: step 11 begins with sample 44; the step before ended with sample 39"
    )


def test_a_job_that_ends_early_and_calls_itself_done_is_found(records: list[Record]) -> None:
    problems = check_history(changed(records, 30, lambda progress: None))

    assert problems == ["generation 2: ends at step 29 of 30"]


def test_a_start_from_a_checkpoint_that_does_not_exist_is_found(records: list[Record]) -> None:
    without = [record for record in records if not isinstance(record.body, CheckpointSealed)]

    problems = check_history(without)

    assert problems == ["generation 2: starts from step 10, of which there is no checkpoint"]


def test_steps_that_a_crashed_controller_had_not_written_are_bridged(records: list[Record]) -> None:
    first_step_25 = next(
        record
        for record in reversed(records)
        if isinstance(record.body, Progress) and record.body.last_step == 25
    )
    lost = [
        replace(record, body=TermBegan(record.body.at_s, 2, "test"))
        if record is first_step_25
        else record
        for record in records
    ]

    assert check_history(lost) == []


@pytest.fixture(scope="module")
def survived() -> list[Record]:
    """A kill after the vote of step 13, never reported, and committed all the same."""
    world = World(report_s=0.05)
    world.at_point("voted", 13, lambda _: world.kill(1), 3)
    world.submit()
    world.run()
    assert world.fired == ["kill 1"]
    return world.records


def with_recovery(records: list[Record], settled: int, **form: object) -> list[Record]:
    """The same, as if another step had been decided upon, or another start."""
    found = []
    for record in records:
        body = record.body
        if isinstance(body, Decided) and isinstance(body.decision, Recover):
            record = replace(
                record, body=replace(body, decision=replace(body.decision, step=settled))
            )
        if isinstance(body, Decided) and isinstance(body.decision, Form) and body.decision.memory:
            changed = replace(body.decision, **form)
            record = replace(record, body=replace(body, decision=changed))
        found.append(record)
    return found


def test_a_step_that_was_committed_by_decision_needs_no_report(survived: list[Record]) -> None:
    steps = [one.body.last_step for one in survived if isinstance(one.body, Progress)]

    assert 13 not in steps
    assert check_history(survived) == []


def test_a_committed_step_that_a_decision_drops_is_found(survived: list[Record]) -> None:
    problems = check_history(with_recovery(survived, 11))

    assert "generation 1: step 12 was committed, 11 is said to be the last" in problems


def test_a_step_that_no_vault_reached_cannot_be_decided_upon(survived: list[Record]) -> None:
    problems = check_history(with_recovery(survived, 14))

    assert "generation 1: step 14 is said to be committed, and no vault was so far" in problems


def test_a_start_from_memory_at_another_step_is_found(survived: list[Record]) -> None:
    problems = check_history(with_recovery(survived, 13, step=12))

    assert (
        problems[0]
        == "generation 2: starts from step 12 with memory of step 13, and step 13 was committed"
    )


def test_a_member_that_begins_with_another_step_is_found(survived: list[Record]) -> None:
    joined = [
        place
        for place, record in enumerate(survived)
        if isinstance(record.body, Reported) and isinstance(record.body.report, GangFormed)
    ][-1]
    records = list(survived)
    body = records[joined].body
    late = replace(body, report=replace(body.report, step=15))
    records[joined] = replace(records[joined], body=late)

    assert check_history(records) == [
        f"generation 2: worker {body.report.worker} begins with step 15, not 14"
    ]


def test_folded_steps_say_the_same_as_single_ones(records: list[Record]) -> None:
    folded: list[Record] = []
    for record in records:
        both = (
            fold(folded[-1].body, record.body)
            if folded
            and isinstance(folded[-1].body, Progress)
            and isinstance(record.body, Progress)
            else None
        )
        if both is None:
            folded.append(record)
        else:
            folded[-1] = replace(folded[-1], body=both)

    assert len(folded) <= len(records) - 20
    assert check_history(folded) == []


def test_only_steps_that_follow_each_other_are_folded() -> None:
    def step(generation: int, number: int, first_sample: int) -> Progress:
        samples = (first_sample, first_sample + 4)
        done = StepDone(generation, number, 0.1, 2.0, {}, samples, 0)
        progress = as_progress(Reported(1.0, "a", done))
        assert progress is not None
        return progress

    both = replace(step(1, 6, 20), first_step=5, first_sample=16, seconds=0.2, arrivals=(1.0, 1.0))
    assert fold(step(1, 5, 16), step(1, 6, 20)) == both
    assert fold(step(1, 5, 16), replace(step(1, 6, 20), instructed=3)) is None
    assert fold(step(1, 5, 16), step(2, 6, 20)) is None
    assert fold(step(1, 5, 16), step(1, 7, 24)) is None
    assert fold(step(1, 5, 16), step(1, 6, 24)) is None


def test_an_empty_journal_is_a_problem() -> None:
    assert check_history([]) == ["the journal is empty"]
    assert check_history([Record(0, TermBegan(0.0, 1, "x"))]) == [
        "the journal does not begin with JobSubmitted"
    ]

"""The ladder, rung by rung."""

from dataclasses import replace

import pytest

from elasticmoe.controller.decisions import Casualty, GiveUp, Recover, Wait
from elasticmoe.controller.recovery import Damage, backoff_s, decide_recovery
from elasticmoe.controller.state import MAX_BACKOFF_S, Checkpoint, FirstError
from elasticmoe.controller.wording import described

KILLED = Casualty("died", 3, "a", "killed by signal 9", "logs/3.txt")
DAMAGE = Damage(
    at_s=100.0,
    casualties=(KILLED,),
    survivors=3,
    free_places=1,
    wanted=4,
    minimum=2,
    committed_step=212,
    newest=Checkpoint(200, "c/200"),
    refused=(),
    ever_saved=True,
    repeated=None,
    attempts=0,
    max_restarts=10,
    backoff_s=0.2,
    first_error=FirstError("worker 3 was killed (signal 9)", "logs/3.txt"),
)


def test_a_lost_worker_ends_in_the_rung_checkpoint_with_its_price() -> None:
    decision = decide_recovery(DAMAGE)

    assert isinstance(decision, Recover)
    assert (decision.rung, decision.step, decision.redo_steps) == ("checkpoint", 200, 12)
    assert decision.retry_at_s == DAMAGE.at_s
    assert decision.reason == (
        "worker 3 was killed (signal 9); all go back to the checkpoint of step 200 "
        "(12 steps to redo) with 4 workers"
    )


def test_without_room_for_a_replacement_the_job_goes_on_with_fewer() -> None:
    decision = decide_recovery(replace(DAMAGE, free_places=0))

    assert isinstance(decision, Recover)
    assert decision.reason.endswith("with 3 workers")


def test_with_fewer_than_min_the_job_waits() -> None:
    decision = decide_recovery(replace(DAMAGE, survivors=1, free_places=0))

    assert isinstance(decision, Wait)
    assert "1 worker can run and workers.min is 2: waiting for nodes" in decision.reason


def test_before_the_first_checkpoint_all_begin_again() -> None:
    decision = decide_recovery(replace(DAMAGE, newest=None, ever_saved=False, committed_step=7))

    assert isinstance(decision, Recover)
    assert (decision.step, decision.redo_steps) == (0, 7)
    assert "all go back to the beginning (7 steps to redo)" in decision.reason


def test_a_job_whose_checkpoints_are_all_refused_does_not_begin_from_scratch() -> None:
    decision = decide_recovery(replace(DAMAGE, newest=None, refused=("c/200",)))

    assert isinstance(decision, GiveUp)
    assert decision.code == "bad_checkpoint"


def test_the_last_try_ends_with_the_first_error_and_the_place_of_its_log() -> None:
    first = FirstError("worker 0 died (exit status 1)", "logs/0.txt")

    decision = decide_recovery(replace(DAMAGE, attempts=10, first_error=first))

    assert isinstance(decision, GiveUp)
    assert decision.log == "logs/0.txt"
    assert decision.reason == (
        "10 restarts in a row without a new step (protection.max_restarts is 10). The first error "
        "was: worker 0 died (exit status 1); the last one was: worker 3 was killed (signal 9). "
        "See logs/0.txt"
    )


def test_a_repeated_failure_outweighs_everything() -> None:
    failure = Casualty("failed", 2, "a", "no more memory", "logs/2.txt", "out_of_memory", 213)

    decision = decide_recovery(replace(DAMAGE, repeated=failure, attempts=10))

    assert isinstance(decision, GiveUp)
    assert decision.code == "out_of_memory"
    assert "no more memory" in decision.reason


def test_the_back_off_is_bounded() -> None:
    assert backoff_s(1000, 0.2) == MAX_BACKOFF_S


@pytest.mark.parametrize(
    "casualties, sentence",
    [
        ([KILLED, replace(KILLED, worker=5)], "workers 3 and 5 were killed (signal 9)"),
        ([replace(KILLED, text="exit status 1")], "worker 3 died (exit status 1)"),
        (
            [
                Casualty("node_lost", 2, "b", "no answer"),
                Casualty("node_lost", 3, "b", "no answer"),
            ],
            "node b was lost with workers 2 and 3 (no answer)",
        ),
        (
            [Casualty("failed", 1, "a", "bad id", "", "bad_data", 9), KILLED],
            "worker 1 failed at step 9: bad id, and worker 3 was killed (signal 9)",
        ),
        (
            [Casualty("parked", 0, "a", "reset")],
            "communication failed with everybody alive (worker 0: reset)",
        ),
        ([Casualty("command", -1, "", "no store")], "no store"),
    ],
)
def test_what_happened_is_told_in_a_sentence(casualties: list[Casualty], sentence: str) -> None:
    assert described(casualties) == sentence

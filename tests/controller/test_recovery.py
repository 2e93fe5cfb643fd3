"""The ladder, rung by rung."""

from dataclasses import replace
from typing import get_args

import pytest

from elasticmoe.controller.copies import Settled
from elasticmoe.controller.decisions import Casualty, GiveUp, Recover, Wait
from elasticmoe.controller.recovery import Damage, backoff_s, decide_recovery
from elasticmoe.controller.state import MAX_BACKOFF_S, Checkpoint, FirstError
from elasticmoe.controller.wording import described
from elasticmoe.plan.memory import Overfull
from elasticmoe.spec.job import Rung

KILLED = Casualty("died", 3, "a", "killed by signal 9", "logs/3.txt")
FAILED = Casualty("failed", 3, "a", "division by zero", code="error_1", step=213)
CUT = Casualty("parked", 0, "a", "reset")
DAMAGE = Damage(
    at_s=100.0,
    casualties=(KILLED,),
    members=4,
    dead=(3,),
    irreplaceable="",
    settled=Settled(212, False, "worker 0 was not prepared for step 213"),
    in_step=True,
    shortage="",
    survivors_shortage="",
    snapshot_step=None,
    distrusted="",
    refused_rungs=(),
    retries=0,
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


ALIVE = replace(DAMAGE, casualties=(CUT,), dead=(), survivors=4, free_places=0)
NO_MEMORY = replace(DAMAGE, settled=None)


def taken(damage: Damage) -> Recover:
    decision = decide_recovery(damage)
    assert isinstance(decision, Recover)
    return decision


@pytest.mark.parametrize(
    "damage,rung,where",
    [
        (ALIVE, "retry", ""),
        (DAMAGE, "replace", ""),
        (replace(DAMAGE, irreplaceable="node a is gone"), "", "memory at step 212"),
        (NO_MEMORY, "", "the checkpoint of step 200 (12 steps to redo)"),
        (replace(NO_MEMORY, snapshot_step=205), "", "the snapshot of step 205 (7 steps to redo)"),
    ],
)
def test_where_no_layout_fits_the_memory_that_is_left_only_the_old_one_is_taken(
    damage: Damage, rung: str, where: str
) -> None:
    crowded = Overfull("b", 3 * 2**30, 2**31)

    decision = decide_recovery(replace(damage, crowded=crowded))

    if rung:
        assert isinstance(decision, Recover)
        assert decision.rung == rung
        return
    assert isinstance(decision, Wait)
    assert decision.reason == (
        f"{described(damage.casualties)}; 4 workers can run, but node b would need 3.000 GiB of "
        f"memory and has 2.000 GiB: waiting for nodes, to go on from {where}"
    )


@pytest.mark.parametrize("snapshot_step", [None, 205])
def test_memory_that_cannot_leave_small_nodes_is_given_up_where_others_have_room(
    snapshot_step: int | None,
) -> None:
    crowded = Overfull("b", 3 * 2**30, 2**31)
    damage = replace(
        DAMAGE,
        irreplaceable="node a is gone",
        snapshot_step=snapshot_step,
        crowded=crowded,
        fits_afresh=True,
    )

    decision = taken(damage)

    assert (decision.rung, decision.step, decision.redo_steps) == ("checkpoint", 200, 12)
    lacks = "node b would need 3.000 GiB of memory and has 2.000 GiB"
    assert f"failover: {lacks}" in decision.passed_over
    assert (f"snapshot: {lacks}" in decision.passed_over) == (snapshot_step is not None)
    assert isinstance(decide_recovery(replace(damage, survivors=1, free_places=0)), Wait)


def test_with_everybody_alive_the_same_workers_try_again() -> None:
    decision = taken(ALIVE)

    assert (decision.rung, decision.step, decision.redo_steps) == ("retry", 212, 0)
    assert (decision.open_step, decision.passed_over) == (213, ())
    assert decision.reason == (
        "communication failed with everybody alive (worker 0: reset); "
        "the same 4 workers go on from memory at step 212"
    )


def test_a_dead_worker_is_replaced_on_its_node() -> None:
    decision = taken(DAMAGE)

    assert (decision.rung, decision.step, decision.redo_steps) == ("replace", 212, 0)
    assert decision.retry_at_s == DAMAGE.at_s
    assert decision.passed_over == ("retry: worker 3 is gone",)
    assert decision.settled == "worker 0 was not prepared for step 213"
    assert decision.reason == (
        "worker 3 was killed (signal 9); worker 3 replaced in place, "
        "4 workers go on from memory at step 212"
    )


def test_without_room_the_survivors_go_on() -> None:
    decision = taken(replace(DAMAGE, irreplaceable="node b is gone", free_places=0))

    assert decision.rung == "failover"
    assert decision.passed_over == ("retry: worker 3 is gone", "replace: node b is gone")
    assert decision.reason == (
        "worker 3 was killed (signal 9); the workers that are left go on from memory at step 212"
    )


def test_a_unit_without_a_copy_leads_to_the_checkpoint_with_its_price() -> None:
    lost = "no whole copy of unit 5 at step 212"

    decision = taken(replace(DAMAGE, shortage=lost, survivors_shortage=lost))

    assert (decision.rung, decision.step, decision.redo_steps) == ("checkpoint", 200, 12)
    assert decision.passed_over[1:] == (
        f"replace: {lost}",
        f"failover: {lost}",
        "snapshot: no snapshot is whole in memory",
    )
    assert decision.reason == (
        "worker 3 was killed (signal 9); all go back to the checkpoint of step 200 "
        "(12 steps to redo) with 4 workers"
    )


def test_a_snapshot_is_gone_back_to_if_it_is_newer_than_the_checkpoint() -> None:
    lost = "no whole copy of unit 5 at step 212"
    damage = replace(DAMAGE, shortage=lost, survivors_shortage=lost, snapshot_step=207)

    decision = taken(damage)

    assert (decision.rung, decision.step, decision.redo_steps) == ("snapshot", 207, 5)
    assert decision.open_step == 213
    assert decision.reason == (
        "worker 3 was killed (signal 9); all go back to the snapshot of step 207 (5 steps to redo)"
    )
    assert taken(replace(damage, snapshot_step=200)).rung == "checkpoint"
    assert taken(replace(damage, skip_rungs=("snapshot",))).rung == "checkpoint"
    assert taken(replace(damage, attempts=7)).rung == "snapshot"
    assert taken(replace(damage, attempts=7, casualties=(FAILED,))).rung == "checkpoint"


def test_with_too_few_workers_the_snapshot_is_waited_with() -> None:
    lost = "no whole copy of unit 5 at step 212"
    damage = replace(DAMAGE, shortage=lost, survivors_shortage=lost, snapshot_step=207, minimum=5)

    decision = decide_recovery(damage)

    assert isinstance(decision, Wait)
    assert (decision.from_memory, decision.step, decision.redo_steps) == (True, 207, 5)
    assert "to go on from the snapshot of step 207 (5 steps to redo)" in decision.reason


def test_a_step_that_some_had_begun_to_apply_is_not_redone() -> None:
    decision = taken(replace(DAMAGE, settled=Settled(213, True, "step 213 had begun")))

    assert (decision.step, decision.open_step) == (213, 0)


@pytest.mark.parametrize(
    "skipped, rung",
    [
        (("retry",), "replace"),
        (("replace",), "failover"),
        (("replace", "failover"), "checkpoint"),
        (("failover",), "replace"),
    ],
)
def test_rungs_are_left_out_on_demand(skipped: tuple[Rung, ...], rung: str) -> None:
    decision = taken(replace(DAMAGE, skip_rungs=skipped))

    assert decision.rung == rung
    said = [f"{one}: left out by protection.skip_rungs" for one in skipped if one != "failover"]
    assert set(said) - {"retry: left out by protection.skip_rungs"} <= set(decision.passed_over)


def test_with_every_rung_left_out_the_job_is_given_up_with_the_reasons() -> None:
    rungs = get_args(Rung)

    decision = decide_recovery(replace(DAMAGE, skip_rungs=rungs))

    assert isinstance(decision, GiveUp)
    assert decision.code == "no_rung_left"
    assert "checkpoint: left out by protection.skip_rungs" in decision.reason


def test_after_two_retries_without_a_step_the_next_rung_is_taken() -> None:
    decision = taken(replace(ALIVE, retries=2, attempts=2))

    assert decision.rung == "failover"
    assert decision.passed_over[0] == "retry: tried 2 times without a new step"


@pytest.mark.parametrize("cause", [FAILED, replace(KILLED, code="signal 11")])
def test_the_last_tries_start_from_the_checkpoint(cause: Casualty) -> None:
    damage = replace(DAMAGE, casualties=(KILLED, cause))

    assert taken(replace(damage, attempts=6)).rung == "replace"
    assert taken(replace(damage, attempts=7)).rung == "checkpoint"


def test_memory_is_not_suspected_where_processes_were_just_killed() -> None:
    assert taken(replace(DAMAGE, attempts=9)).rung == "replace"


def test_memory_that_was_not_what_it_should_be_is_not_used_again() -> None:
    decision = taken(replace(DAMAGE, distrusted="unit 3 is at step 211 here"))

    assert decision.rung == "checkpoint"
    assert "failover: unit 3 is at step 211 here" in decision.passed_over


def test_without_room_for_a_replacement_a_rollback_goes_on_with_fewer() -> None:
    decision = taken(replace(NO_MEMORY, free_places=0))

    assert decision.rung == "checkpoint"
    assert decision.reason.endswith("with 3 workers")


def test_with_fewer_than_min_the_job_waits_with_its_memory() -> None:
    few = replace(DAMAGE, irreplaceable="node b is gone", survivors=1, free_places=0)

    decision = decide_recovery(few)

    assert isinstance(decision, Wait)
    assert (decision.from_memory, decision.step, decision.redo_steps) == (True, 212, 0)
    assert decision.reason.endswith(
        "1 worker can run and workers.min is 2: waiting for nodes, to go on from memory at step 212"
    )


def test_with_fewer_than_min_and_no_memory_the_job_waits_with_the_checkpoint() -> None:
    decision = decide_recovery(replace(NO_MEMORY, survivors=1, free_places=0))

    assert isinstance(decision, Wait)
    assert (decision.from_memory, decision.step, decision.redo_steps) == (False, 200, 12)


def test_before_the_first_checkpoint_all_begin_again() -> None:
    decision = taken(replace(NO_MEMORY, newest=None, ever_saved=False, committed_step=7))

    assert (decision.step, decision.redo_steps) == (0, 7)
    assert "all go back to the beginning (7 steps to redo)" in decision.reason


def test_a_job_whose_checkpoints_are_all_refused_does_not_begin_from_scratch() -> None:
    decision = decide_recovery(replace(NO_MEMORY, newest=None, refused=("c/200",)))

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
        (
            [Casualty("silent", 2, "a", "no heartbeat for 0.3 s")],
            "worker 2 fell silent (no heartbeat for 0.3 s) and was killed",
        ),
    ],
)
def test_what_happened_is_told_in_a_sentence(casualties: list[Casualty], sentence: str) -> None:
    assert described(casualties) == sentence

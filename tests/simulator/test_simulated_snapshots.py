"""Snapshots in the pretend world: taken by real commands, kept by nodes, gone back to."""

import re
from dataclasses import replace
from typing import Any

import pytest
from worlds import decisions, kinds, run

from elasticmoe.controller import faults, recovery
from elasticmoe.controller.decisions import Form, Gather, Quarantine, Recover, TakeSnapshot
from elasticmoe.controller.phases import Phase
from elasticmoe.messages.commands import FormGeneration
from elasticmoe.simulator import keeper
from elasticmoe.simulator.checker import Checker
from elasticmoe.simulator.faults import Fault
from elasticmoe.simulator.gang import Gang
from elasticmoe.simulator.jobs import small_job
from elasticmoe.simulator.lineage import INITIAL, Gradient, Lineage
from elasticmoe.simulator.run import Machine, Outcome
from elasticmoe.simulator.vaults import Snapshot, Vault

FOUR_NODES = tuple(Machine(name, name, 1) for name in "abcd")
LOST = Fault("lose_node", 4.0, node="b")


def _run(*harm: Fault, kind: str = "copy", redundancy: int = 1, **protection: Any) -> Outcome:
    job = small_job(
        protection={
            "redundancy": redundancy, "snapshots": kind, "snapshot_interval_s": 0.5, **protection,
        },
        checkpoint={"interval_steps": 20},
    )  # fmt: skip
    return run(*harm, machines=FOUR_NODES, job=job)


def _rungs(outcome: Outcome) -> list[str]:
    return [one.rung for one in decisions(outcome, Recover) if isinstance(one, Recover)]


@pytest.mark.parametrize("kind", ["copy", "parity"])
def test_a_lost_node_with_redundancy_1_costs_the_steps_since_the_snapshot(kind: str) -> None:
    outcome = _run(LOST, kind=kind)

    assert kinds(outcome) == ["lose_node"]
    assert outcome.problems == ()
    assert outcome.state.phase is Phase.DONE
    assert _rungs(outcome) == ["snapshot"]
    assert 0 < outcome.account.rolled_back <= 5
    form = [one for one in decisions(outcome, Form) if isinstance(one, Form)][-1]
    assert form.memory is not None
    assert bool(form.memory.rebuilt) == (kind == "parity")


def test_snapshots_are_taken_as_often_as_asked_for_and_cost_time() -> None:
    outcome = _run()

    taken = [one.at_s for one in decisions(outcome, TakeSnapshot) if isinstance(one, TakeSnapshot)]
    assert len(taken) >= 8
    assert outcome.problems == ()
    assert 0.0 < outcome.state.snapshots.cost_s < 0.1


def test_without_snapshots_the_same_loss_costs_the_steps_since_the_checkpoint() -> None:
    outcome = _run(LOST, kind="off")

    assert kinds(outcome) == ["lose_node"]
    assert outcome.problems == ()
    assert _rungs(outcome) == ["checkpoint"]


@pytest.mark.parametrize("kind", ["copy", "parity"])
@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.17, 0.175, 0.2, 0.3])
def test_a_node_that_is_lost_around_a_snapshot_leaves_this_one_or_the_one_before(
    kind: str, delay_s: float
) -> None:
    outcome = _run(replace(LOST, after="TakeSnapshot", delay_s=delay_s), kind=kind)

    assert kinds(outcome) == ["lose_node"]
    assert outcome.problems == ()
    assert _rungs(outcome) == ["snapshot"]
    assert outcome.account.rolled_back <= 8


def test_a_second_loss_while_the_snapshot_is_restored_is_survived() -> None:
    again = Fault("crash", 4.0, pick=0.4, after="Form", delay_s=0.008)

    outcome = _run(LOST, again)

    assert kinds(outcome) == ["lose_node", "crash"]
    assert outcome.problems == ()
    assert outcome.state.phase is Phase.DONE
    assert _rungs(outcome)[0] == "snapshot"
    assert "checkpoint" not in _rungs(outcome)


def test_a_copy_on_a_node_where_nobody_is_ready_is_waited_for() -> None:
    """The keeper's process dies just before the other node is found to be gone."""
    outcome = _run(LOST, Fault("crash", 4.352, node="c"))

    assert kinds(outcome) == ["lose_node", "crash"]
    assert outcome.problems == ()
    assert _rungs(outcome) == ["snapshot"]
    form = [one for one in decisions(outcome, Form) if isinstance(one, Form)][-1]
    assert form.memory is not None
    assert [dead for _, dead in form.memory.heirs] == [2]


def test_a_copy_on_a_node_where_nobody_is_left_is_read_by_a_worker_that_is_started_there() -> None:
    outcome = _run(LOST, Fault("crash", 4.0, node="c"), skip_rungs=["replace"])

    assert kinds(outcome) == ["lose_node", "crash"]
    assert outcome.problems == ()
    assert _rungs(outcome) == ["snapshot"]
    reasons = [one.reason for one in decisions(outcome, Gather) if isinstance(one, Gather)]
    assert any("nobody is left on node c to read" in reason for reason in reasons)


def test_a_copy_on_a_node_in_quarantine_is_read_there() -> None:
    """Its worker dies beside the loss, which is one fault too many for it."""
    outcome = _run(LOST, Fault("crash", 4.352, node="c"), quarantine_faults=1)

    assert kinds(outcome) == ["lose_node", "crash"]
    assert [one.node for one in decisions(outcome, Quarantine)] == ["c"]  # type: ignore[attr-defined]
    assert outcome.problems == ()
    assert _rungs(outcome) == ["snapshot"]


def test_members_that_wait_at_the_end_of_their_gang_have_said_which_snapshots_they_hold() -> None:
    cut = Fault("partition", 6.5, node="b", lasts_s=30.0)

    outcome = _run(cut)

    assert kinds(outcome) == ["partition"]
    assert outcome.problems == ()
    assert _rungs(outcome) == ["snapshot"]
    assert outcome.account.rolled_back <= 8


def test_who_starts_from_a_checkpoint_has_no_snapshot_of_what_was_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = dict[int, set[int]]()
    """Generation -> steps of the snapshots that its members hold when it has been joined."""
    honest = Checker.joined

    def joined(checker: Checker, gang: Gang) -> None:
        world = checker.world
        assert world is not None
        vaults = [
            node.vaults.get(number) for node in world.nodes.values() for number in gang.workers
        ]
        held[gang.generation] = {
            world.lineage.step(one.version) for vault in vaults if vault for one in vault.snapshots
        }
        honest(checker, gang)

    monkeypatch.setattr(Checker, "joined", joined)

    back = _run(LOST, skip_rungs=["snapshot"])
    assert kinds(back) == ["lose_node"]
    assert _rungs(back) == ["checkpoint"]
    assert held == {1: set(), 2: set()}

    kept = _run(replace(LOST, kind="crash"))
    assert _rungs(kept) == ["replace"]
    assert held[2]


def test_forgetting_that_there_is_a_snapshot_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "find_snapshot", lambda *_: None)

    outcome = _run(LOST)

    assert _rungs(outcome) == ["checkpoint"]
    (problem,) = outcome.problems
    told = r"back to a checkpoint though the snapshot of step \d+ is in memory"
    assert re.fullmatch(told, problem.text)


@pytest.mark.parametrize("why", ["no", "node a would need 3.000 GiB of memory and has 2.000 GiB"])
def test_going_back_to_a_snapshot_though_all_is_in_memory_is_caught(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lack of memory is no excuse where no node says how much it has."""
    ladder = [(rung, lambda _: why) for rung in ("retry", "replace", "failover")]
    monkeypatch.setattr(recovery, "LADDER", (*ladder, *recovery.LADDER[3:]))

    outcome = _run(replace(LOST, kind="crash"))

    assert _rungs(outcome) == ["snapshot"]
    (problem,) = outcome.problems
    assert problem.text == "back to a snapshot though every unit is in memory"


def test_counting_on_a_snapshot_that_was_never_taken_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = keeper.advance

    def tampered(state: Any, event: Any, now_s: float) -> Any:
        after, commands = honest(state, event, now_s)
        return after, tuple(
            replace(one, memory=replace(one.memory, is_snapshot=True))
            if isinstance(one, FormGeneration) and one.memory
            else one
            for one in commands
        )

    monkeypatch.setattr(keeper, "advance", tampered)

    outcome = _run(replace(LOST, kind="crash"), kind="off", redundancy=2)

    assert _rungs(outcome)[0] == "replace"
    assert any("has no progress" in problem.text for problem in outcome.problems)


def test_a_vault_has_room_for_two_and_the_older_goes_first() -> None:
    lineage = Lineage()
    first = lineage.after(INITIAL, Gradient(1, 1))
    second = lineage.after(first, Gradient(1, 2))
    vault = Vault("a", generation=1)
    for version in (first, INITIAL, second):
        vault.make_room(lineage)
        vault.keep(Snapshot(version, ((0,), (2, 1))))

    copies = vault.copies(7, lineage)

    assert copies is not None
    assert [one.step for one in copies.snapshots] == [1, 2]
    assert copies.snapshots[0].whole == (0,)
    assert copies.snapshots[0].parities == ((2, 1),)

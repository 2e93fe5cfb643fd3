"""The checker finds what it is there for: each planted bug is caught."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from worlds import FOUR, kinds

from elasticmoe.controller import copies as commit_rule
from elasticmoe.controller import vaults as known_vaults
from elasticmoe.controller.changing import replace as with_changes
from elasticmoe.controller.copies import Settled
from elasticmoe.messages.commands import Command, FormGeneration
from elasticmoe.messages.events import (
    Event,
    NodeLost,
    Reported,
    TimePassed,
    WorkerDied,
    WorkerSilent,
)
from elasticmoe.messages.worker import StepDone
from elasticmoe.simulator import forming, keeper, training
from elasticmoe.simulator.faults import Fault
from elasticmoe.simulator.gang import Gang
from elasticmoe.simulator.jobs import plain_inventory, small_job
from elasticmoe.simulator.lineage import Gradient
from elasticmoe.simulator.nodes import Node
from elasticmoe.simulator.run import Outcome, Scenario, simulate
from elasticmoe.simulator.world import World


def texts(outcome: Outcome) -> list[str]:
    return [problem.text for problem in outcome.problems]


def _run(*faults: Fault) -> Outcome:
    job = small_job()
    return simulate(job, plain_inventory(job), Scenario(FOUR, faults, seed=1, strict=True))


CRASH_PAST_THE_VOTE = Fault("crash", 3.0, pick=0.4, phase="apply", share=0.5)


def test_the_same_crash_with_an_honest_brain_is_no_problem() -> None:
    outcome = _run(CRASH_PAST_THE_VOTE)

    assert kinds(outcome) == ["crash"]
    assert outcome.problems == ()


def test_dropping_a_step_that_somebody_voted_for_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = commit_rule.settle_step

    def forgetful(copies: Any, committed_step: int) -> Settled | None:
        found = honest(copies, committed_step)
        return found and replace(found, step=found.step - 1, commits_open_step=False)

    monkeypatch.setattr(known_vaults, "settle_step", forgetful)

    outcome = _run(CRASH_PAST_THE_VOTE)

    assert kinds(outcome) == ["crash"]
    assert outcome.problems != ()


def _tamper(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[FormGeneration], FormGeneration]
) -> None:
    honest = keeper.advance

    def changed(state: Any, event: Any, now_s: float) -> Any:
        after, commands = honest(state, event, now_s)
        tampered: list[Command] = [
            change(one) if isinstance(one, FormGeneration) and one.memory else one
            for one in commands
        ]
        return after, tuple(tampered)

    monkeypatch.setattr(keeper, "advance", changed)


def test_a_generation_that_counts_on_memory_that_is_not_there_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_heirs(command: FormGeneration) -> FormGeneration:
        assert command.memory is not None
        return replace(command, memory=replace(command.memory, heirs=(), moves=()))

    _tamper(monkeypatch, without_heirs)

    outcome = _run(CRASH_PAST_THE_VOTE)

    assert kinds(outcome) == ["crash"]
    assert any("is not whole" in problem.text for problem in outcome.problems)


def test_a_unit_without_a_home_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(command: FormGeneration) -> FormGeneration:
        homes = [list(one) for one in command.plan["homes"]]
        homes[3] = homes[3][:1]
        return replace(command, memory=None, plan={**command.plan, "homes": homes})

    _tamper(monkeypatch, homeless)

    outcome = _run(CRASH_PAST_THE_VOTE)

    assert kinds(outcome) == ["crash"]
    assert any("unit 3 has 1 homes" in problem.text for problem in outcome.problems)


@pytest.mark.parametrize(
    "kind", ["crash", "hang", "stall", "fail", "cut", "lose_node", "vanish_node", "agent"]
)
def test_a_brain_that_answers_too_late_is_caught(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = keeper.advance

    def deaf(state: Any, event: Any, now_s: float) -> Any:
        is_sign = isinstance(event, WorkerDied | WorkerSilent | NodeLost | TimePassed)
        is_sign |= "Parked" in str(event) or "WorkerFailed" in str(event)
        is_deaf = 3.0 < event.at_s < 30.0 and is_sign
        return (state, ()) if is_deaf else honest(state, event, now_s)

    monkeypatch.setattr(keeper, "advance", deaf)
    harm = Fault(kind, 4.0, pick=0.4)  # type: ignore[arg-type]

    outcome = _run(harm, Fault("node_up", 29.0, node="c", capacity=1))

    assert kinds(outcome) == [kind, "node_up"]
    whom = outcome.fired[0].whom
    assert f"{kind} of {whom} at 4.000 s was never answered" in texts(outcome)


@pytest.mark.parametrize(
    "harm, at_s",
    [
        (Fault("preempt", 4.0, node="b", lasts_s=0.05), 4.05),
        (Fault("partition", 4.0, node="b", lasts_s=60.0), 8.0),
    ],
)
def test_a_brain_that_does_not_answer_the_end_of_a_notice_or_of_a_lease_is_caught(
    harm: Fault, at_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, job = keeper.advance, small_job(schedule={"steps": 100})

    def deaf(state: Any, event: Any, now_s: float) -> Any:
        is_sign = isinstance(event, WorkerDied | NodeLost | TimePassed) or "Parked" in str(event)
        if event.at_s > 3.0 and is_sign:
            return with_changes(state, decided=()), ()
        return honest(state, event, now_s)

    def outcome(*further: Fault, limit_s: float = 300.0) -> Outcome:
        scenario = Scenario(FOUR, (harm, *further), seed=1, limit_s=limit_s, strict=True)
        return simulate(job, plain_inventory(job), scenario)

    assert outcome().problems == ()
    monkeypatch.setattr(keeper, "advance", deaf)

    found = outcome(Fault("node_up", 10.0, node="c", capacity=1), limit_s=14.0)

    assert kinds(found) == [harm.kind, "node_up"]
    assert f"{harm.kind} of node b at {at_s:.3f} s was never answered" in texts(found)


def test_a_brain_that_keeps_quiet_about_units_without_a_second_home_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = keeper.advance

    def silent(state: Any, event: Any, now_s: float) -> Any:
        after, commands = honest(state, event, now_s)
        return with_changes(after, exposed_since_s=None), commands

    lost = Fault("lose_node", 3.0, node="b")
    assert _run(lost).problems == ()
    monkeypatch.setattr(keeper, "advance", silent)

    outcome = _run(lost)

    assert kinds(outcome) == ["lose_node"]
    assert any("lack a home, and the state does not say so" in text for text in texts(outcome))


def test_a_sample_that_is_used_twice_is_caught_at_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def repeats(**fields: Any) -> StepDone:
        first, end = fields["samples"]
        back = 1 if fields["step"] == 20 else 0
        return StepDone(**{**fields, "samples": (first - back, end - back)})

    monkeypatch.setattr(training, "StepDone", repeats)

    outcome = _run()

    assert texts(outcome)[0] == "step 20 used samples 1215 to 1278"
    assert 3.0 < outcome.problems[0].at_s < outcome.state.now_s - 1.0  # at once, not at the end
    assert any(text.startswith("history: generation 1: step 20 begins") for text in texts(outcome))


def test_state_of_an_older_step_than_its_generation_says_is_caught_by_its_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The brain counts a step that nobody prepared, and the workers take its word for it."""
    settled = list[int]()

    def one_too_far(command: FormGeneration) -> FormGeneration:
        assert command.memory is not None
        settled.append(command.memory.step)
        return replace(command, memory=replace(command.memory, step=command.memory.step + 1))

    def believe(world: World, gang: Gang) -> int:
        process = training.process_of(world, gang, 0)
        assert process is not None
        assert process.vault is not None
        return process.vault.progress

    crash = Fault("crash", 3.0, pick=0.4, phase="compute", share=0.1)
    assert _run(crash).problems == ()
    _tamper(monkeypatch, one_too_far)
    monkeypatch.setattr(forming, "_shared_version", believe)

    outcome = _run(crash)

    assert kinds(outcome) == ["crash"]
    first, size = settled[0] + 2, 64
    used = f"step {first} used samples {(first - 2) * size} to {(first - 1) * size - 1}"
    assert used in texts(outcome)


def test_a_checkpoint_of_another_step_than_was_decided_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = keeper.advance

    def older(state: Any, event: Any, now_s: float) -> Any:
        after, commands = honest(state, event, now_s)
        return after, tuple(
            replace(one, checkpoint=after.checkpoints[0].uri)
            if isinstance(one, FormGeneration) and one.checkpoint
            else one
            for one in commands
        )

    job = small_job(protection={"redundancy": 1, "snapshots": "off"})
    lost = Scenario(FOUR, (Fault("lose_node", 4.5, node="b"),), seed=1, strict=True)
    assert simulate(job, plain_inventory(job), lost).problems == ()
    monkeypatch.setattr(keeper, "advance", older)

    outcome = simulate(job, plain_inventory(job), lost)

    assert kinds(outcome) == ["lose_node"]
    assert "generation 2 goes on from step 10, step 20 was decided" in texts(outcome)


def test_a_barrier_that_lets_an_old_generation_pass_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def vote(world: World, gang: Gang, step: int) -> None:
        gang.voted = True
        world.truth.voted(gang, world.lineage.after(gang.version, Gradient(gang.generation, step)))

    crash = Fault("crash", 3.0, pick=0.4, phase="compute", share=0.1)
    assert _run(crash).problems == ()
    monkeypatch.setattr(training, "_vote", vote)

    outcome = _run(crash)

    assert kinds(outcome) == ["crash"]
    assert "generation 1 commits a step though 2 was opened" in texts(outcome)


LATE_S = 1.5


def _repeat_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that delivers what members say about steps a second time, much later."""
    honest = World.say

    def say(world: World, node: Node, worker: int, event: Event) -> None:
        honest(world, node, worker, event)
        if isinstance(event, Reported) and isinstance(event.report, StepDone):
            world.at(LATE_S, lambda: world.deliver(node, event))

    monkeypatch.setattr(World, "say", say)


@pytest.mark.parametrize("takes_all", [False, True])
def test_a_brain_that_takes_messages_of_an_older_generation_is_caught(
    takes_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback: what the generation before said of its steps comes when they are taken again."""
    honest = keeper.advance

    def gullible(state: Any, event: Any, now_s: float) -> Any:
        taken = event
        if isinstance(event, Reported) and isinstance(event.report, StepDone):
            taken = replace(event, report=replace(event.report, generation=state.generation))
        return honest(state, taken, now_s)

    _repeat_late(monkeypatch)
    if takes_all:
        monkeypatch.setattr(keeper, "advance", gullible)

    job = small_job(protection={"redundancy": 1, "snapshots": "off"})
    lost = Fault("lose_node", 4.5, node="b")
    outcome = simulate(job, plain_inventory(job), Scenario(FOUR, (lost,), seed=1, strict=True))

    assert kinds(outcome) == ["lose_node"]
    assert outcome.account.rolled_back > 0
    assert outcome.state.tally.stale > 0 or takes_all  # late messages did come
    found = [text for text in texts(outcome) if "message of generation 1 had an effect" in text]
    assert bool(found) == takes_all
    assert takes_all or outcome.problems == ()

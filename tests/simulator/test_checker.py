"""The checker finds what it is there for: each planted bug is caught."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from worlds import FOUR, kinds

from elasticmoe.controller import copies as commit_rule
from elasticmoe.controller import vaults as known_vaults
from elasticmoe.controller.copies import Settled
from elasticmoe.messages.commands import Command, FormGeneration
from elasticmoe.messages.events import TimePassed, WorkerDied
from elasticmoe.simulator import keeper
from elasticmoe.simulator.faults import Fault
from elasticmoe.simulator.jobs import plain_inventory, small_job
from elasticmoe.simulator.run import Outcome, Scenario, simulate


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


def test_a_brain_that_answers_too_late_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = keeper.advance

    def deaf(state: Any, event: Any, now_s: float) -> Any:
        is_sign = isinstance(event, WorkerDied | TimePassed) or "Parked" in str(event)
        return (state, ()) if 2.0 < event.at_s < 8.0 and is_sign else honest(state, event, now_s)

    monkeypatch.setattr(keeper, "advance", deaf)

    outcome = _run(Fault("crash", 3.0, pick=0.4), Fault("node_up", 7.0, node="c", capacity=1))

    assert kinds(outcome) == ["crash", "node_up"]
    assert any("was never answered" in problem.text for problem in outcome.problems)

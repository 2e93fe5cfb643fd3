"""Somebody may set the machine's clock; a term does not notice. Failing controllers rest."""

import time

import pytest

from elasticmoe.cluster.clock import QUICK_TERMS, TermClock, rest_before_term
from elasticmoe.controller.record import Record
from elasticmoe.messages.events import TermBegan


def test_a_term_begins_at_the_wall_clock_and_never_behind_the_journal() -> None:
    assert TermClock().now_s() == pytest.approx(time.time(), abs=5)
    assert TermClock(time.time() + 3600).now_s() >= time.time() + 3590


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_jump_of_the_wall_clock_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    clock, true_time = TermClock(), time.time
    before_s = clock.now_s()

    monkeypatch.setattr(time, "time", lambda: true_time() + jump_s)

    assert abs(time.time() - before_s) > 3000  # the fault fired
    assert 0 <= clock.now_s() - before_s < 60


def test_controllers_that_fail_again_and_again_make_longer_rests() -> None:
    began = [Record(n, TermBegan(1000.0 + n, n + 1, "v")) for n in range(QUICK_TERMS + 6)]

    rests = [rest_before_term(began[:count], 1100.0, 10.0) for count in range(len(began) + 1)]

    assert rests == [0.0] * (QUICK_TERMS + 1) + [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_controllers_that_failed_over_weeks_do_not_count() -> None:
    began = [Record(n, TermBegan(86_400.0 * n, n + 1, "v")) for n in range(40)]

    assert rest_before_term(began, 40 * 86_400.0, 10.0) == 0.0

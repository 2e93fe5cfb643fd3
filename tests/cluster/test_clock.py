"""Somebody may set the machine's clock; a term does not notice."""

import time

import pytest

from elasticmoe.cluster.clock import TermClock


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

"""Every bound comes from measured times."""

from dataclasses import replace

from elasticmoe.controller.pace import NUM_INTERVALS, SHORTEST_BOUND_S, Pace


def measured(*intervals: float, first_s: float = 1.0) -> Pace:
    pace = Pace().begun(100.0).stepped(100.0 + first_s, is_saving=False)
    for interval in intervals:
        pace = pace.stepped(pace.last_s + interval, is_saving=False)
    return pace


def test_nothing_is_known_before_the_first_step() -> None:
    assert Pace().begun(100.0).bound_s(is_saving=False) is None


def test_before_five_intervals_the_first_step_counts_too_and_there_is_more_time() -> None:
    assert measured().bound_s(is_saving=False) == 10.0
    assert measured(*[0.5] * 4).bound_s(is_saving=False) == 10.0
    assert measured(*[2.0] * 4).bound_s(is_saving=False) == 20.0
    assert measured(*[0.5] * 5).bound_s(is_saving=False) == 1.5


def test_the_bound_follows_the_slowest_of_the_last_steps() -> None:
    pace = measured(9.0, *[0.5] * NUM_INTERVALS)

    assert len(pace.intervals) == NUM_INTERVALS
    assert abs(pace.bound_s(is_saving=False) - 1.5) < 1e-6


def test_quick_steps_leave_a_quarter_of_a_second() -> None:
    assert measured(*[0.01] * 9).bound_s(is_saving=False) == SHORTEST_BOUND_S


def test_the_first_step_of_a_generation_is_measured_apart_and_has_more_time() -> None:
    pace = measured(*[0.5] * 9, first_s=4.0)

    assert pace.intervals == (0.5,) * 9
    assert pace.begun(200.0).bound_s(is_saving=False) == 40.0


def test_a_step_that_saves_has_no_bound_until_one_was_measured() -> None:
    pace = measured(*[0.5] * 9)
    assert pace.bound_s(is_saving=True) is None

    pace = pace.stepped(pace.last_s + 2.0, is_saving=True)

    assert pace.bound_s(is_saving=True) == 6.0
    assert pace.bound_s(is_saving=False) == 6.0


def test_false_alarms_double_the_bound_until_the_next_step() -> None:
    pace = replace(measured(*[0.5] * 9), doublings=2)
    assert pace.bound_s(is_saving=False) == 6.0

    pace = pace.stepped(pace.last_s + 0.5, is_saving=False)

    assert pace.bound_s(is_saving=False) == 1.5


def test_steps_that_are_heard_all_at_once_do_not_shorten_the_bound() -> None:
    pace = measured(*[0.5] * 9)

    late_s = pace.last_s + 0.6
    for _ in range(NUM_INTERVALS):
        pace = pace.stepped(late_s, is_saving=False)

    assert pace.last_s == late_s
    assert abs(pace.bound_s(is_saving=False) - 1.8) < 1e-6


def test_fewer_workers_are_given_more_time() -> None:
    assert measured(*[0.5] * 9).scaled(2.0).bound_s(is_saving=False) == 3.0


def test_patience_is_a_second_at_least_and_a_slow_step_at_most() -> None:
    assert Pace().patience_s(5.0) == 5.0
    assert measured(*[0.1] * 9, first_s=0.2).patience_s(5.0) == 1.0
    assert measured(*[3.0] * 9).patience_s(5.0) == 3.0

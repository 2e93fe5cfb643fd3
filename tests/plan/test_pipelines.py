import pytest

from elasticmoe.plan.pipelines import (
    Entry,
    Timetable,
    from_ops,
    plan_dualpipe,
    plan_zb1p,
    simulate,
)
from elasticmoe.plan.schedule import (
    Durations,
    ScheduleName,
    bubble_share,
    bubble_time,
    plan_timetable,
    waves_in_flight,
)
from elasticmoe.plan.types import Op

EVEN = Durations(forward=1, backward=2, weight_grad=1, overlapped=3)


def timetables(schedule: ScheduleName, stages: int, waves: int) -> tuple[Timetable, ...]:
    if schedule == "zb1p":
        return plan_zb1p(stages, waves)
    if schedule == "dualpipe":
        return plan_dualpipe(stages, waves)
    return from_ops(
        [
            plan_timetable(schedule, stage=s, num_stages=stages, num_waves=waves)
            for s in range(stages)
        ]
    )


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb1p", "dualpipe"])
@pytest.mark.parametrize("stages", [2, 4, 8, 16])
@pytest.mark.parametrize("extra_waves", [0, 2, 20])
def test_every_worker_waits_as_long_as_the_published_formula_says(
    schedule: ScheduleName, stages: int, extra_waves: int
) -> None:
    tables = timetables(schedule, stages, 2 * stages + extra_waves)

    run = simulate(tables, [EVEN] * stages)

    assert run.end - max(run.busy) == pytest.approx(bubble_time(schedule, stages, EVEN))
    share = bubble_share(schedule, stages, 2 * stages + extra_waves, EVEN)
    assert run.waiting_share == pytest.approx(share)


def test_sixteen_stages_give_the_figures_of_the_paper() -> None:
    times = [bubble_time(name, 16, EVEN) for name in ("1f1b", "zb1p", "dualpipe")]

    assert times == [45, 15, 14]


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("stages, waves", [(1, 1), (1, 4), (2, 1), (4, 2), (4, 9)])
def test_executed_timetables_are_complete_and_do_not_wait_forever(
    schedule: ScheduleName, stages: int, waves: int
) -> None:
    tables = timetables(schedule, stages, waves)

    simulate(tables, [EVEN] * stages)

    for table in tables:
        for phase in ("forward", "backward"):
            assert sorted(e.wave for e in table if e.phase == phase) == list(range(waves))


@pytest.mark.parametrize("stages, waves", [(2, 4), (4, 8), (8, 24)])
def test_dualpipe_computes_every_wave_once_in_every_part(stages: int, waves: int) -> None:
    forwards: list[tuple[int, int]] = []
    backwards: list[tuple[int, int]] = []
    weights: list[tuple[int, int]] = []
    for entry in (entry for table in plan_dualpipe(stages, waves) for entry in table):
        if entry.phase in ("forward", "overlapped"):
            forwards.append((entry.wave, entry.part))
        if entry.phase == "overlapped":
            backwards.append((entry.backward_wave, entry.backward_part))
        if entry.phase in ("backward", "input_grad"):
            backwards.append((entry.wave, entry.part))
        if entry.phase == "weight_grad":
            weights.append((entry.wave, entry.part))

    everything = [(wave, part) for wave in range(waves) for part in range(stages)]
    assert sorted(forwards) == sorted(backwards) == everything
    assert len(weights) == len(set(weights))


def test_1f1b_keeps_fewer_waves_than_gpipe() -> None:
    tables = {
        name: [plan_timetable(name, stage=s, num_stages=4, num_waves=9) for s in range(4)]
        for name in ("1f1b", "gpipe")
    }

    assert [waves_in_flight(table) for table in tables["1f1b"]] == [4, 3, 2, 1]
    assert [waves_in_flight(table) for table in tables["gpipe"]] == [9, 9, 9, 9]


def test_timetables_that_wait_for_each_other_are_refused() -> None:
    backwards_first = from_ops([[Op("backward", 0), Op("forward", 0)]])

    with pytest.raises(ValueError, match="wait for each other forever"):
        simulate(backwards_first, [EVEN])


def test_a_slow_stage_makes_the_others_wait() -> None:
    slow = Durations(forward=2, backward=4, weight_grad=2, overlapped=6)
    tables = timetables("1f1b", 2, 8)

    run = simulate(tables, [EVEN, slow])

    assert run.end == 8 * 6 + 1 + 2
    assert run.busy == (24, 48)


def test_entries_name_both_waves_of_an_overlap() -> None:
    overlapped = [e for e in plan_dualpipe(4, 8)[0] if e.phase == "overlapped"]

    assert overlapped
    assert all(e.backward_wave >= 0 and e.backward_part >= 0 for e in overlapped)
    assert Entry("forward", 0, 0).backward_wave == -1

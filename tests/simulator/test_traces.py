"""Reading, measuring and making traces."""

import os
from pathlib import Path

import numpy as np
import pytest

from elasticmoe.errors import DataError
from elasticmoe.simulator.traces import (
    FleetProfile,
    SpotProfile,
    Trace,
    TraceEvent,
    generate_fleet,
    generate_trace,
    limit_nodes,
    measure_trace,
    read_trace,
)

SMALL = ("0,add,a", "0,add,b", "0,add,c", "4000,remove,a", "4000,remove,b", "10000,remove,c")


def test_rows_of_one_moment_and_kind_become_one_event() -> None:
    trace = read_trace(SMALL)

    assert trace.events == (
        TraceEvent(0.0, "add", ("a", "b", "c")),
        TraceEvent(4.0, "remove", ("a", "b")),
        TraceEvent(10.0, "remove", ("c",)),
    )


def test_statistics_of_a_small_trace_are_those_counted_by_hand() -> None:
    seen = measure_trace(read_trace(SMALL))

    assert seen.hours == 10 / 3600
    assert seen.mean_nodes == pytest.approx((3 * 4 + 1 * 6) / 10)
    assert (seen.max_nodes, seen.nodes_lost, seen.losses) == (3, 3, 2)
    assert (seen.multi_node_share, seen.max_lost_together) == (0.5, 2)
    assert (seen.mean_s_between_losses, seen.lost_together) == (5.0, (1, 1))


def test_an_empty_trace_has_no_losses_and_infinite_time_between_them() -> None:
    seen = measure_trace(read_trace(["", "# nothing"]))

    assert (seen.losses, seen.max_nodes, seen.mean_s_between_losses) == (0, 0, float("inf"))


def test_a_node_that_goes_and_returns_at_one_moment_stays_in_that_order() -> None:
    trace = read_trace(["0,add,a", "5,remove,a", "5,add,a", "5,add,b"])

    assert [event.kind for event in trace.events] == ["add", "remove", "add"]
    assert trace.events[-1].nodes == ("a", "b")


@pytest.mark.parametrize(
    "lines, line, field, value, remedy",
    [
        (["0,add"], 1, "row", "'0,add'", "three fields"),
        (["0,add,a", "", "x,add,b"], 3, "ms", "'x'", "whole milliseconds"),
        (["-5,add,a"], 1, "ms", "'-5'", "whole milliseconds"),
        (["0,join,a"], 1, "op", "'join'", "add or remove"),
        (["0,add,"], 1, "node", "''", "node's name"),
        (["0,add,a", "1,add,a"], 2, "node", "'a'", "add it once"),
        (["0,remove,a"], 1, "node", "'a'", "add a node before"),
        (["7,add,a", "6,add,b"], 2, "ms", "'6'", "sort the rows: 7"),
    ],
)
def test_a_bad_row_names_line_field_value_and_remedy(
    lines: list[str], line: int, field: str, value: str, remedy: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_trace(lines)

    text = str(caught.value)
    assert text.startswith(f"trace line {line}: {field} is {value}")
    assert remedy in text


def test_a_trace_written_out_is_read_back_the_same() -> None:
    trace = generate_trace(np.random.default_rng(3))

    assert read_trace(trace.lines()) == trace


def test_limiting_nodes_keeps_the_losses_of_those_that_stay() -> None:
    trace = limit_nodes(read_trace(SMALL), 2)

    assert trace.events == (
        TraceEvent(0.0, "add", ("a", "b")),
        TraceEvent(4.0, "remove", ("a", "b")),
    )


# ---------------------------------------------------------------- the published traces


def _published(name: str) -> Trace:
    folder = os.environ.get("ELASTICMOE_TRACES")
    if not folder:
        pytest.skip("ELASTICMOE_TRACES is not set: the folder with bamboo/ and oobleck/")
    with (Path(folder) / name).open() as lines:
        return read_trace(lines)


def test_the_p3_trace_has_its_published_statistics() -> None:
    trace = _published("bamboo/p3-trace.csv")
    seen = measure_trace(trace)

    assert len(list(trace.lines())) == 344
    assert (round(seen.hours, 2), round(seen.mean_nodes, 1), seen.max_nodes) == (11.37, 24.0, 32)
    assert (seen.nodes_lost, seen.losses, seen.max_lost_together) == (167, 79, 6)
    assert round(seen.multi_node_share, 2) == 0.51
    assert round(seen.mean_s_between_losses / 60, 1) == 8.6


def test_the_g4dn_trace_has_its_published_statistics() -> None:
    trace = _published("bamboo/g4dn-trace.csv")
    seen = measure_trace(trace)

    assert len(list(trace.lines())) == 153
    assert (round(seen.hours, 2), round(seen.mean_nodes, 1), seen.max_nodes) == (10.63, 12.8, 24)
    assert (seen.nodes_lost, seen.losses) == (74, 48)
    assert round(seen.multi_node_share, 2) == 0.35
    assert round(seen.mean_s_between_losses / 60, 1) == 13.3


@pytest.mark.parametrize(
    "name, minutes", [("5m", 5), ("10m", 10), ("30m", 30), ("1h", 60), ("3h", 180), ("6h", 360)]
)
def test_the_oobleck_traces_lose_one_node_per_period_until_half_are_left(
    name: str, minutes: int
) -> None:
    seen = measure_trace(_published(f"oobleck/{name}.csv"))

    assert (seen.max_nodes, seen.nodes_lost, seen.max_lost_together) == (30, 15, 1)
    assert seen.mean_s_between_losses == pytest.approx(minutes * 60, rel=0.01)


# ---------------------------------------------------------------- generators


def test_generated_traces_have_the_statistics_of_the_p3_trace() -> None:
    made = [generate_trace(np.random.default_rng(seed)) for seed in range(100)]
    seen = [measure_trace(trace) for trace in made]

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in seen]))

    # Within 5 % of the P3 trace; the standard error of these means is below 1.5 %.
    assert mean("mean_nodes") == pytest.approx(24.03, rel=0.05)
    assert mean("nodes_lost") == pytest.approx(167, rel=0.05)
    assert mean("losses") == pytest.approx(79, rel=0.05)
    assert mean("multi_node_share") == pytest.approx(0.506, rel=0.05)
    assert mean("mean_s_between_losses") == pytest.approx(518, rel=0.05)
    assert max(one.max_nodes for one in seen) == 32
    assert max(one.max_lost_together for one in seen) == 6
    gaps = [_gaps(trace) for trace in made]
    assert float(np.mean([gap.std() / gap.mean() for gap in gaps])) == pytest.approx(1.15, rel=0.1)
    assert min(float(gap.min()) for gap in gaps) == 60.0


def test_generated_losses_take_as_many_nodes_at_once_as_in_the_p3_trace() -> None:
    counts = np.zeros(6)
    for seed in range(100):
        together = measure_trace(generate_trace(np.random.default_rng(seed))).lost_together
        counts[: len(together)] += together

    expected = np.array([39, 13, 15, 7, 1, 4]) / 79 * counts.sum()

    # Chi-square with 5 degrees of freedom: 20.5 is exceeded by chance once in a thousand.
    assert float(((counts - expected) ** 2 / expected).sum()) < 20.5


def test_a_seed_gives_the_same_trace_again_and_another_seed_another() -> None:
    first, again, other = (generate_trace(np.random.default_rng(seed)) for seed in (5, 5, 6))

    assert first == again
    assert first != other


def test_a_spot_profile_changes_the_trace() -> None:
    calm = SpotProfile(hours=100, mean_s_between_losses=7200, max_nodes=64, mean_nodes=60)

    seen = measure_trace(generate_trace(np.random.default_rng(0), calm))

    assert seen.mean_s_between_losses == pytest.approx(7200, rel=0.3)
    assert 55 < seen.mean_nodes <= 64


def test_nodes_of_a_fleet_fail_at_their_rate_and_come_back() -> None:
    fleet = FleetProfile(hours=2000, num_nodes=20, node_mtbf_s=36000, repair_s=3600)

    seen = measure_trace(generate_fleet(np.random.default_rng(1), fleet))

    assert seen.mean_nodes == pytest.approx(20 * 36000 / (36000 + 3600), rel=0.05)
    assert seen.nodes_lost == pytest.approx(2000 * 3600 * 20 / (36000 + 3600), rel=0.05)
    assert seen.multi_node_share == 0


def test_the_weibull_shape_of_a_fleet_makes_early_bursts() -> None:
    fleet = FleetProfile(hours=20000, num_nodes=1, node_mtbf_s=36000, repair_s=1e-3)

    gaps = _gaps(generate_fleet(np.random.default_rng(2), fleet))

    # A Weibull distribution of shape 0.78 has a standard deviation of 1.29 means.
    assert float(gaps.std() / gaps.mean()) == pytest.approx(1.29, rel=0.05)


def test_a_failing_domain_takes_all_its_nodes_at_once() -> None:
    fleet = FleetProfile(
        hours=1000,
        num_nodes=16,
        node_mtbf_s=1e12,
        domain_nodes=4,
        domain_mtbf_s=360000,
        repair_s=60,
    )

    trace = generate_fleet(np.random.default_rng(4), fleet)

    losses = [event.nodes for event in trace.events if event.kind == "remove"]
    assert len(losses) == pytest.approx(1000 * 3600 * 4 / 360000, rel=0.5)
    for nodes in losses:
        places = {int(node.removeprefix("node").split(".")[0]) for node in nodes}
        assert len(places) == 4
        assert len({place // 4 for place in places}) == 1


def test_every_generated_row_is_valid() -> None:
    fleet = FleetProfile(
        hours=500, num_nodes=12, node_mtbf_s=36000, domain_nodes=3, domain_mtbf_s=90000
    )

    trace = generate_fleet(np.random.default_rng(8), fleet)

    assert measure_trace(read_trace(trace.lines())).nodes_lost == measure_trace(trace).nodes_lost


def _gaps(trace: Trace) -> np.ndarray:
    losses = sorted({event.at_s for event in trace.events if event.kind == "remove"})
    return np.diff([trace.start_s, *losses])

"""Costs of the models come from measurements where there are any."""

from typing import Any

import pytest

from elasticmoe.errors import SpecError
from elasticmoe.simulator.rivals.calibrate import calibrate, read_measurements
from elasticmoe.simulator.rivals.compare import standard_models
from elasticmoe.simulator.rivals.elasticmoe import ElasticMoE
from elasticmoe.simulator.rivals.torchft import Torchft


def part(*overheads: float, false_alarms: int = 0) -> dict[str, object]:
    """As `benchmarks/recovery.py --out` keeps it."""
    recoveries = [{"overhead_s": each, "full_s": 10 * each} for each in overheads]
    return {"recoveries": recoveries, "false_alarms": false_alarms}


def test_figures_that_were_printed_become_costs_and_the_rest_stays_assumed() -> None:
    figures = read_measurements([{"recovery_overhead_s_4_failover": 0.14, "protocol_share": 0.01}])

    costs = calibrate(standard_models(), figures)

    two, three = (model for model in costs.models if isinstance(model, ElasticMoE))
    assert (two.failover_s, two.join_s, two.overhead) == (0.14, 0.14, 0.01)
    assert (three.failover_s, three.redundancy) == (0.14, 3)
    assert [m for m in costs.models if isinstance(m, Torchft)] == [Torchft()]
    assert {(one.field, one.figure) for one in costs.taken} == {
        ("failover_s", "recovery_overhead_s_4_failover"),
        ("join_s", "recovery_overhead_s_4_failover"),
        ("overhead", "protocol_share"),
    }


def test_a_lost_node_counts_more_than_a_dead_worker() -> None:
    figures = {"recovery_overhead_s_4_failover": 0.14, "node_loss_s": 0.6}

    costs = calibrate([ElasticMoE()], figures)

    assert costs.models == (ElasticMoE(failover_s=0.6, join_s=0.6),)


def test_parts_that_were_kept_become_medians_and_the_best_heartbeat_counts() -> None:
    kept = {
        "parts": {
            "ours-2-failover": part(0.1, 0.3, 0.2),
            "torchft-100": part(0.2, false_alarms=1),
            "torchft-250": part(0.4, 0.5),
            "torchft-500": part(0.8),
            "torchrun": part(3.0),
        }
    }

    figures = read_measurements([kept, {"node_loss_s": 0.5}])
    costs = calibrate([ElasticMoE(), Torchft()], figures)

    assert figures["recovery_overhead_s_2_failover"] == 0.2
    ours, torchft = costs.models
    assert ours == ElasticMoE(failover_s=0.5, join_s=0.5)
    assert torchft == Torchft(
        heartbeat_s=0.25, reconfigure_s=pytest.approx(0.2), group_restart_s=4.5
    )


def test_a_file_without_a_figure_is_refused() -> None:
    with pytest.raises(SpecError, match="file 2: there is no figure in it"):
        read_measurements([{"node_loss_s": 0.5}, {"name": "x"}])


@pytest.mark.parametrize(
    "kept, sentence",
    [
        ({"parts": {"ours-2": {"recoveries": []}}}, "parts.ours-2.recoveries: there is none"),
        ({"parts": {"ours-2": 1}}, "parts.ours-2.recoveries: there is none"),
        ({"parts": {"ours-2": {"recoveries": 3}}}, "parts.ours-2.recoveries: there is none"),
        (
            {"parts": {"ours-2": {"recoveries": [{"full_s": 1.0}]}}},
            "parts.ours-2.recoveries[0].overhead_s: None is not a finite number",
        ),
        (
            {"parts": {"torchrun": {"recoveries": [{"overhead_s": 1, "full_s": "long"}]}}},
            "parts.torchrun.recoveries[0].full_s: 'long' is not a finite number",
        ),
        ({"parts": {"torchft-x": part(1.0)}}, "parts.torchft-x: name its heartbeat in ms"),
        (
            {"parts": {"torchft-100": {"recoveries": [{"overhead_s": 1, "full_s": 1}]}}},
            "parts.torchft-100.false_alarms: None is not a finite number",
        ),
        ({"node_loss_s": float("nan")}, "node_loss_s: nan is not a finite number"),
        ({"node_loss_s": 10**400}, "node_loss_s: 1000"),
        ({"parts": {}}, "there is no figure in it"),
        ({"is_quick": True}, "there is no figure in it"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(kept: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_measurements([{"node_loss_s": 0.5}, kept], ["one.json", "two.json"])

    assert f"two.json: {sentence}" in str(caught.value)

import re

import pytest

from elasticmoe.telemetry.metrics import METRICS, Metrics

REPORT = {
    "tokens": 8192,
    "tokens_per_s": 4096.0,
    "gradient_norm": 0.5,
    "learning_rate": 1e-3,
    "mtp_losses": [2.5],
    "skipped": False,
    "phases": {"compute": 1.5, "vote": 0.01},
    "layers": [
        {
            "layer": "layer.1",
            "max_violation": 0.25,
            "running_violation": 0.1,
            "entropy": 0.9,
            "confidence": 0.2,
            "dead_experts": 3,
            "drop_rate": 0.0,
        }
    ],
}


def test_a_committed_step_is_counted_once_with_all_its_figures() -> None:
    metrics = Metrics()

    metrics.observe_step(7, seconds=2.0, loss=1.25, report=REPORT)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert value("elasticmoe_committed_steps_total") == 1
    assert value("elasticmoe_step") == 7
    assert value("elasticmoe_tokens_total") == 8192
    assert value("elasticmoe_loss_nats") == 1.25
    assert value("elasticmoe_mtp_loss_nats", depth="0") == 2.5
    assert value("elasticmoe_step_duration_seconds_sum") == 2.0
    assert value("elasticmoe_step_phase_seconds", phase="vote") == 0.01
    assert value("elasticmoe_expert_imbalance_ratio", layer="layer.1") == 0.25
    assert value("elasticmoe_dead_experts", layer="layer.1") == 3


def test_figures_that_are_not_known_are_left_out_of_labelled_rows() -> None:
    metrics = Metrics()

    metrics.observe_step(1, seconds=1.0, loss=3.0, report={})

    assert b"elasticmoe_loss_nats 3.0" in metrics.to_text()
    assert b"elasticmoe_dead_experts{layer" not in metrics.to_text()


def test_faults_and_recoveries_are_counted_by_label() -> None:
    metrics = Metrics()

    metrics.add("elasticmoe_faults_total", kind="worker_died")
    metrics.add("elasticmoe_faults_total", kind="worker_died")
    metrics.observe("elasticmoe_recovery_duration_seconds", 0.19, rung="replace")

    assert b'elasticmoe_faults_total{kind="worker_died"} 2.0' in metrics.to_text()
    assert b'elasticmoe_recovery_duration_seconds_count{rung="replace"} 1.0' in metrics.to_text()


def test_using_a_row_as_another_kind_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="is a gauge, not a counter"):
        Metrics().add("elasticmoe_step")


def test_every_row_follows_the_naming_rules() -> None:
    names = [row.name for row in METRICS]

    assert len(names) == len(set(names))
    for row in METRICS:
        assert re.fullmatch(r"elasticmoe_[a-z_]+", row.name)
        assert row.name.endswith("_total") == (row.kind == "counter")
        assert bool(row.buckets) == (row.kind == "histogram")
        assert row.help.endswith(".")

"""Every metric, as one table; dashboards and alert rules are made from it.

Units are in the names. Labels come from small closed sets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

STEP_BUCKETS_S: Final = tuple(0.01 * 2**power for power in range(15))
"""10 ms (a small model) to 164 s (the largest), doubling."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds; of histograms only."""


# fmt: off
METRICS: Final[tuple[Row, ...]] = (
    # progress
    Row("elasticmoe_committed_steps_total", "counter", "Steps committed by this controller."),
    Row("elasticmoe_step", "gauge", "Number of the newest committed step."),
    Row("elasticmoe_tokens_total", "counter", "Tokens in committed steps."),
    Row("elasticmoe_skipped_steps_total", "counter",
        "Steps committed as no-ops, because a gradient was not finite."),
    Row("elasticmoe_step_duration_seconds", "histogram", "Time of a committed step.",
        buckets=STEP_BUCKETS_S),
    Row("elasticmoe_step_phase_seconds", "gauge", "Time of the newest step, by phase.", ("phase",)),
    Row("elasticmoe_tokens_per_second", "gauge", "Tokens of the newest step over its time."),
    Row("elasticmoe_model_flops_per_second", "gauge",
        "Matrix-product flops of the newest step over its time, without recomputation."),
    Row("elasticmoe_mfu_ratio", "gauge",
        "Model flops as share of the gang's peak; absent where the peak is unknown."),
    # learning
    Row("elasticmoe_loss_nats", "gauge", "Next-token cross entropy per token."),
    Row("elasticmoe_mtp_loss_nats", "gauge",
        "Cross entropy per token of each multi-token-prediction depth.", ("depth",)),
    Row("elasticmoe_auxiliary_loss", "gauge", "Balance and z losses, weighted."),
    Row("elasticmoe_gradient_norm", "gauge", "Global gradient norm before clipping."),
    Row("elasticmoe_learning_rate", "gauge", "Learning rate of the newest step."),
    # experts
    Row("elasticmoe_expert_imbalance_ratio", "gauge",
        "MaxVio of one step: (largest load - mean) / mean.", ("layer",)),
    Row("elasticmoe_expert_running_imbalance_ratio", "gauge",
        "MaxVio of the running load.", ("layer",)),
    Row("elasticmoe_router_entropy_ratio", "gauge",
        "Mean entropy of a token's router scores, as share of the largest possible.", ("layer",)),
    Row("elasticmoe_router_confidence_ratio", "gauge",
        "Mean of a token's largest normalised router score.", ("layer",)),
    Row("elasticmoe_dead_experts", "gauge", "Experts that got no token in a step.", ("layer",)),
    Row("elasticmoe_dropped_tokens_ratio", "gauge",
        "Share of expert assignments that the capacity limit dropped.", ("layer",)),
    # the gang
    Row("elasticmoe_generation", "gauge", "Number of the gang's membership."),
    Row("elasticmoe_workers", "gauge", "Workers, by what they do.", ("state",)),
    Row("elasticmoe_avoided_nodes", "gauge",
        "Nodes that are to have no workers: in quarantine, or about to go away."),
    Row("elasticmoe_faults_total", "counter", "Faults and notices seen, by kind.", ("kind",)),
    Row("elasticmoe_recoveries_total", "counter", "Recoveries, by rung of the ladder.", ("rung",)),
    Row("elasticmoe_regroupings_total", "counter",
        "Changes of the gang between two steps: to grow, or to move off a node."),
    Row("elasticmoe_recovery_duration_seconds", "histogram",
        "From a fault's detection to the next committed step.", ("rung",), STEP_BUCKETS_S),
    Row("elasticmoe_repeated_steps_total", "counter", "Committed steps lost and computed again."),
    Row("elasticmoe_ignored_events_total", "counter",
        "Events that the state machine did not expect; anything but 0 is a bug."),
    # durability
    Row("elasticmoe_checkpoints_total", "counter", "Checkpoints, by outcome.", ("outcome",)),
    Row("elasticmoe_checkpoint_step", "gauge", "Step of the newest durable checkpoint."),
    Row("elasticmoe_checkpoint_bytes", "gauge", "Size of the newest durable checkpoint."),
    Row("elasticmoe_survival_probability", "gauge",
        "Probability that every unit keeps a home if so many random nodes are lost.",
        ("lost_nodes",)),
    Row("elasticmoe_fatal_domains", "gauge", "Failure domains whose loss would lose a unit."),
)
# fmt: on

_LAYER_ROWS: Final[Mapping[str, str]] = {
    "max_violation": "elasticmoe_expert_imbalance_ratio",
    "running_violation": "elasticmoe_expert_running_imbalance_ratio",
    "entropy": "elasticmoe_router_entropy_ratio",
    "confidence": "elasticmoe_router_confidence_ratio",
    "dead_experts": "elasticmoe_dead_experts",
    "drop_rate": "elasticmoe_dropped_tokens_ratio",
}

_STEP_ROWS: Final[Mapping[str, str]] = {
    "aux_loss": "elasticmoe_auxiliary_loss",
    "gradient_norm": "elasticmoe_gradient_norm",
    "learning_rate": "elasticmoe_learning_rate",
    "tokens_per_s": "elasticmoe_tokens_per_second",
    "flops_per_s": "elasticmoe_model_flops_per_second",
    "mfu": "elasticmoe_mfu_ratio",
}


class Metrics:
    """The table's metrics with their values, for one controller."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._rows = {row.name: row for row in METRICS}
        self._live = {row.name: _build(row, self.registry) for row in METRICS}

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._child(name, "gauge", labels).set(value)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        self._child(name, "counter", labels).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count a value in a histogram."""
        self._child(name, "histogram", labels).observe(value)

    def observe_step(
        self, step: int, *, seconds: float, loss: float, report: Mapping[str, Any]
    ) -> None:
        """Take in a committed step, once each.

        Args:
            step: its number.
            seconds: how long it took.
            loss: next-token cross entropy per token, nats.
            report: the rest as workers report it, `StepDone.metrics`; what is absent stays as
                it was.
        """
        self.add("elasticmoe_committed_steps_total")
        self.set("elasticmoe_step", step)
        self.set("elasticmoe_loss_nats", loss)
        self.observe("elasticmoe_step_duration_seconds", seconds)
        self.add("elasticmoe_tokens_total", report.get("tokens", 0))
        self.add("elasticmoe_skipped_steps_total", float(report.get("skipped", False)))
        for field, name in _STEP_ROWS.items():
            if field in report:
                self.set(name, report[field])
        for depth, mtp_loss in enumerate(report.get("mtp_losses", ())):
            self.set("elasticmoe_mtp_loss_nats", mtp_loss, depth=str(depth))
        for phase, phase_seconds in report.get("phases", {}).items():
            self.set("elasticmoe_step_phase_seconds", phase_seconds, phase=phase)
        for layer in report.get("layers", ()):
            for field, name in _LAYER_ROWS.items():
                self.set(name, layer[field], layer=layer["layer"])

    def to_text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _child(self, name: str, kind: str, labels: Mapping[str, str]) -> Any:
        row = self._rows[name]
        assert row.kind == kind, f"{name} is a {row.kind}, not a {kind}"
        live = self._live[name]
        return live.labels(**labels) if row.labels else live


def _build(row: Row, registry: CollectorRegistry) -> Any:
    if row.kind == "histogram":
        return Histogram(row.name, row.help, row.labels, buckets=row.buckets, registry=registry)
    make: Callable[..., Any] = Counter if row.kind == "counter" else Gauge
    return make(row.name, row.help, row.labels, registry=registry)

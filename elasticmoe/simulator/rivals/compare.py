"""Several models beside each other on one trace: the rows of a table, the lines of a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from elasticmoe.simulator.rivals.checkpoint_restart import CheckpointRestart
from elasticmoe.simulator.rivals.elasticmoe import ElasticMoE
from elasticmoe.simulator.rivals.job import Job
from elasticmoe.simulator.rivals.lazarus import Lazarus
from elasticmoe.simulator.rivals.ledger import Outcome, Point
from elasticmoe.simulator.rivals.moevement import MoEvement
from elasticmoe.simulator.rivals.replay import Model
from elasticmoe.simulator.rivals.torchft import Torchft
from elasticmoe.simulator.traces import Trace


@dataclass(frozen=True, slots=True)
class Row:
    """One model's line in the table. Shares are of the node-seconds that the trace offers."""

    model: str
    goodput: float
    """Useful committed work as a share of an undisturbed run on the same nodes."""
    samples: float
    redone: float
    protecting: float
    recovering: float
    unused: float
    waiting: float
    recoveries: Mapping[str, int]
    """How often each kind of recovery was used."""
    rollbacks: int
    """How often the job went back to a durable checkpoint."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found; rows and series are in the order of the models."""

    rows: tuple[Row, ...]
    series: Mapping[str, tuple[Point, ...]]
    """For each model the nodes that train and the useful work, over time."""
    assumptions: tuple[tuple[str, str, str], ...]
    """(model or "job", assumption, value): everything the rows rest on."""


def standard_models() -> tuple[Model, ...]:
    """This design and its rivals, each with its own paper's or our measured costs."""
    return (
        ElasticMoE(),
        ElasticMoE(name="elasticmoe, 3 homes", redundancy=3),
        Lazarus(),
        MoEvement(),
        Torchft(),
        CheckpointRestart(),
    )


def compare(trace: Trace, models: Sequence[Model], job: Job) -> Comparison:
    """Run every model on a trace.

    Raises:
        ValueError: two models share a name.
    """
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"two models share a name: {names}")
    outcomes = [model.run(trace, job) for model in models]
    return Comparison(
        rows=tuple(_make_row(outcome) for outcome in outcomes),
        series={outcome.model: outcome.series for outcome in outcomes},
        assumptions=tuple(
            (name, field.name, str(getattr(thing, field.name)))
            for name, thing in [("job", job), *zip(names, models, strict=True)]
            for field in fields(thing)  # type: ignore[arg-type]
            if field.name != "name"
        ),
    )


def rate_goodput(useful_samples: float, trace: Trace, job: Job) -> float:
    """Goodput of a run that was made elsewhere, on the same scale as the rows.

    Args:
        useful_samples: samples in committed steps that were never rolled back.
        trace: the trace it ran on.
        job: the job, whose `node_samples_per_s` says what an undisturbed node does.
    """
    offered = trace.node_seconds()
    return useful_samples / (offered * job.node_samples_per_s) if offered else 0.0


def _make_row(outcome: Outcome) -> Row:
    return Row(
        model=outcome.model,
        goodput=outcome.goodput,
        samples=outcome.samples,
        redone=outcome.share("redone"),
        protecting=outcome.share("protecting"),
        recovering=outcome.share("recovering"),
        unused=outcome.share("unused"),
        waiting=outcome.share("waiting"),
        recoveries=outcome.recoveries,
        rollbacks=outcome.recoveries.get("rollback", 0),
    )

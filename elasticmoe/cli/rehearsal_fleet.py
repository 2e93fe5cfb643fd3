"""The cluster of a rehearsal: its nodes, and what will happen to them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf

from elasticmoe.errors import PlanError
from elasticmoe.plan.describe import format_amount
from elasticmoe.plan.types import Inventory
from elasticmoe.report.rehearsal import WORKERS_PER_NODE, FullSize, plan_full_size
from elasticmoe.simulator.faults import Fault
from elasticmoe.simulator.run import Machine
from elasticmoe.simulator.schedules import (
    WEIBULL_SHAPE,
    Rates,
    draw_faults,
    faults_of_trace,
    spread_machines,
)
from elasticmoe.simulator.traces import Trace
from elasticmoe.spec.job import JobSpec


@dataclass(frozen=True, slots=True)
class Size:
    """What was said about the nodes; None: choose."""

    nodes: int | None
    node_gb: float | None
    """Memory of a node, in 10^9 bytes."""
    domains: int | None
    step_s: float | None


@dataclass(frozen=True, slots=True)
class Fleet:
    """Nodes that are there when the job begins, and their failures."""

    machines: tuple[Machine, ...]
    draw: Callable[[float, int], tuple[Fault, ...]]
    """Faults of a run, by its length in seconds and its seed."""
    failures_per_hour: float
    """Expected, of all nodes."""
    longest_hours: float
    assumed: str


def size_up(job: JobSpec, inventory: Inventory, size: Size) -> tuple[FullSize, tuple[Machine, ...]]:
    """Spread the job over nodes: as many workers on each as fit, 8 at most.

    Raises:
        PlanError: a node cannot hold what the plan puts there.
    """
    count = job.workers.replicas
    most_bytes = inf if size.node_gb is None else size.node_gb * 1e9
    each = WORKERS_PER_NODE
    while True:
        nodes = size.nodes or max(2, ceil(count / each))
        machines = spread_machines(count, nodes, size.domains)
        full = plan_full_size(job, inventory, machines, size.step_s)
        if full.node_bytes <= most_bytes:
            return full, machines
        if size.nodes or each == 1:
            raise PlanError(
                f"--node-gb {size.node_gb:g}: the fullest of {nodes:,} nodes would need "
                f"{format_amount(full.node_bytes)}. Give more nodes or workers.replicas, or lower "
                "batch.global_samples or protection.redundancy."
            )
        each = max(1, min(each - 1, int(most_bytes // max(full.stage_worker_bytes))))


def fleet_with_rates(machines: tuple[Machine, ...], rates: Rates) -> Fleet:
    """Nodes that fail at random."""
    mtbf_h = rates.mtbf_s / 3600
    assumed = "no node fails (--mtbf 0)"
    if mtbf_h:
        assumed = (
            f"each node fails every {mtbf_h:g} h on average (Weibull, shape {WEIBULL_SHAPE}): "
            f"{rates.node_share:.0%} of failures take the node for 5 to 15 minutes, "
            f"{rates.domain_share:.0%} its failure domain, {rates.hang_share:.0%} hang a worker, "
            "the rest kill one"
        )
    if rates.controller_mtbf_s:
        assumed += f"; the controller dies every {rates.controller_mtbf_s / 3600:g} h"
    return Fleet(
        machines,
        lambda length_s, seed: draw_faults(machines, length_s, rates, seed),
        len(machines) / mtbf_h if mtbf_h else 0.0,
        inf,
        assumed,
    )


def fleet_of_trace(trace: Trace, capacity: int, name: str) -> Fleet:
    """Nodes that come and go as recorded.

    Args:
        capacity: workers on each.
        name: of the trace, for people.
    """
    machines, faults = faults_of_trace(trace, capacity)
    hours = (trace.end_s - trace.start_s) / 3600
    return Fleet(
        machines,
        lambda length_s, seed: tuple(fault for fault in faults if fault.at_s < length_s),
        0.0,
        hours,
        f"nodes with room for {capacity} workers come and go as in {name}; seeds differ in "
        "everything else",
    )

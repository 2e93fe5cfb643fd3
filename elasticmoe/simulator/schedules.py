"""Schedules of faults: hostile ones to find bugs, ones with the statistics of real clusters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gamma
from typing import Any, Final

import numpy as np

from elasticmoe.simulator.costs import Costs
from elasticmoe.simulator.faults import Fault, Kind
from elasticmoe.simulator.jobs import plain_inventory, small_job
from elasticmoe.simulator.memory import spread_bytes
from elasticmoe.simulator.run import Machine, Scenario
from elasticmoe.simulator.traces import Trace
from elasticmoe.spec.job import JobSpec

WEIBULL_SHAPE: Final = 0.78
"""Of the times between failures of one node: Schroeder and Gibson 2006 fitted 0.7 to 0.8 (LANL)."""
KINDS: Final[dict[Kind, float]] = {
    "crash": 8.0,
    "hang": 3.0,
    "stall": 1.0,
    "fail": 1.0,
    "cut": 2.0,
    "lose_node": 3.0,
    "vanish_node": 1.0,
    "lose_domain": 1.0,
    "agent": 1.5,
    "partition": 2.0,
    "slow": 0.5,
    "controller": 5.0,
    "seal": 0.5,
    "node_up": 2.0,
}
"""How often a hostile schedule takes each kind, relative to the others."""
SURE: Final[tuple[Kind, ...]] = ("crash", "crash", "hang", "cut", "lose_node", "agent")
MOMENTS: Final = (
    "Break",
    "Recover",
    "Gather",
    "Form",
    "Form",
    "Train",
    "Fence",
    "Drain",
    "Regroup",
    "TakeSnapshot",
)
"""Decisions behind which a hostile schedule likes to strike again."""
PHASES: Final = ("compute", "prepare", "vote", "vote", "apply", "apply", "publish")
LARGE: Final = 1024
MOST_DOMAINS: Final = 64
SCARCE_SHARE: Final = 0.25
"""Of the schedules in which nodes have a memory that does not always suffice."""
NUM_SIZES: Final = 3
"""Of memory, in one world."""
FURTHER: Final = 0.1
"""Of what a node needs as long as nobody is lost: it may have so much more, at least."""
JOINING: Final = (0.3, 0.7, 1.0, 1.5, 100.0)
"""Memory of nodes that arrive later, in what a node needs as long as nobody is lost."""
SIZES: Final = (4, 4, 4, 6, 8, 8, 12, 16, 24, 32, 64)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job and what happens to it."""

    job: JobSpec
    scenario: Scenario


def hostile_schedule(seed: int, *, workers: int | None = None) -> Schedule:
    """A small job and some nasty faults, many of them aimed at the worst moments.

    Args:
        seed: equal seeds give equal schedules.
        workers: size of the job; none: 4 to 64, small ones more often. From `LARGE` on the model
            is DeepSeek-V3's and the run is short.
    """
    rng = np.random.default_rng(seed)
    size = workers or int(rng.choice(SIZES))
    per_node = 8 if size >= LARGE else int(rng.choice([1, 2, 4, 8]))
    num_nodes = max(2, -(-size // per_node))
    spare = int(rng.integers(0, 2))
    num_domains = int(rng.integers(1, min(num_nodes, MOST_DOMAINS) + 1))
    machines = tuple(
        Machine(f"n{number}", f"d{number % num_domains}", -(-size // num_nodes))
        for number in range(num_nodes + spare)
    )
    job = _large_job(size) if size >= LARGE else _small_job(size, rng)
    costs = Costs(apply_share=0.25, prepare_share=0.15, vote_share=0.05, spread_share=0.05)
    if size < LARGE:  # units take a while, so that something can happen meanwhile
        costs = replace(costs, move_bytes_per_s=2e8)
    most = 3 if size >= LARGE else 8
    faults = [_sure_fault(rng), *(_hostile_fault(rng) for _ in range(int(rng.integers(0, most))))]
    later_s = costs.group_seconds(size) + size * costs.decide_s  # until the gang trains
    faults = [replace(fault, at_s=fault.at_s + later_s) for fault in faults]
    seed_of_world = int(rng.integers(0, 2**31))
    scenario = Scenario(machines, tuple(faults), seed_of_world, costs, 4000.0, strict=True)
    if size < LARGE and rng.random() < SCARCE_SHARE:
        scenario = _with_memory(job, scenario, rng)
    return Schedule(job, scenario)


def _with_memory(job: JobSpec, scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Nodes say how much memory they have: a few sizes, of which each is enough as long as nobody
    is lost, and seldom enough for one machine less. Who joins later may have any."""
    inventory, machines = plain_inventory(job), scenario.machines
    comfortable = max(spread_bytes(job, inventory, machines).values())
    crowded = max(spread_bytes(job, inventory, machines[1:]).values())
    further = max(crowded - comfortable, FURTHER * comfortable)
    sizes = [int(comfortable + rng.random() * further) for _ in range(NUM_SIZES)]
    return replace(
        scenario,
        machines=tuple(replace(one, memory_bytes=int(rng.choice(sizes))) for one in machines),
        faults=tuple(
            replace(fault, memory_bytes=int(float(rng.choice(JOINING)) * comfortable))
            if fault.kind == "node_up"
            else fault
            for fault in scenario.faults
        ),
    )


def _small_job(size: int, rng: np.random.Generator) -> JobSpec:
    return small_job(
        parallel={"stages": int(rng.choice([1, 1, 2, 3]))},
        workers={
            "replicas": size,
            "min": max(1, size // int(rng.choice([2, 4, 8]))),
            "max": 2 * size,
        },
        protection={
            "redundancy": int(rng.choice([1, 1, 2, 2, 2, 3])),
            "snapshots": str(rng.choice(["auto", "auto", "copy", "parity", "off"])),
            "snapshot_interval_s": (None, 0.3, 1.0)[int(rng.integers(0, 3))],
        },
        checkpoint={"interval_steps": int(rng.choice([5, 10, 20]))},
        schedule={"steps": 30},
    )


def _large_job(size: int) -> JobSpec:
    return small_job(
        model={"preset": "deepseek-v3"},
        batch={"global_samples": 16 * 1024},
        parallel={"stages": 16, "expert_replicas": "one"},
        workers={"replicas": size, "min": size // 2, "max": 2 * size},
        checkpoint={"interval_steps": 40},
        schedule={"steps": 80},
    )


def _sure_fault(rng: np.random.Generator) -> Fault:
    """One that hits the gang while it trains, whatever the others do."""
    kind: Kind = SURE[int(rng.integers(0, len(SURE)))]
    return Fault(kind, at_s=0.3 + 3.5 * float(rng.random()), pick=float(rng.random()))


def _hostile_fault(rng: np.random.Generator) -> Fault:
    weights = np.array(list(KINDS.values()))
    kind: Kind = list(KINDS)[int(rng.choice(len(weights), p=weights / weights.sum()))]
    when = rng.random()
    about: dict[str, Any] = {}
    if when < 0.35:
        about = {"phase": str(rng.choice(PHASES)), "share": float(rng.random())}
    elif when < 0.75:
        delay_s = float(rng.choice([0.0, 0.001, 0.005, 0.02, 0.05]) * rng.random() * 2)
        about = {"after": str(rng.choice(MOMENTS)), "delay_s": delay_s}
    lasts = {
        "hang": (0.0, 0.0, 0.4, 1.0),
        "partition": (0.2, 2.0, 6.0, 20.0, 60.0),
        "slow": (1.0, 3.0),
    }.get(kind, (0.0,))
    return Fault(
        kind=kind,
        at_s=float(rng.random()) * 8.0,
        pick=float(rng.random()),
        lasts_s=float(rng.choice(lasts)),
        records=int(rng.integers(0, 12)),
        acts=int(rng.integers(0, 3)),
        capacity=int(rng.integers(1, 5)),
        **about,
    )


@dataclass(frozen=True, slots=True)
class Rates:
    """How often things happen to one node, and what."""

    mtbf_s: float
    """Mean time between the failures of one node."""
    shape: float = WEIBULL_SHAPE
    """Of the Weibull distribution; 1: failures have no memory (Poisson)."""
    domain_share: float = 0.05
    """Of failures that take the whole domain."""
    node_share: float = 0.3
    """Of failures that take the node; it comes back after `repair_s`."""
    hang_share: float = 0.1
    repair_s: float = 600.0
    controller_mtbf_s: float = 0.0
    """Mean time between crashes of the controller; 0: none."""


def spread_machines(workers: int, nodes: int, domains: int | None = None) -> tuple[Machine, ...]:
    """Nodes with room for all workers, dealt out to failure domains; none: each is its own."""
    each = -(-workers // nodes)
    return tuple(
        Machine(f"node-{number}", f"domain-{number % (domains or nodes)}", each)
        for number in range(nodes)
    )


def draw_faults(
    machines: Sequence[Machine], length_s: float, rates: Rates, seed: int
) -> tuple[Fault, ...]:
    """Faults of every node, in the order of time.

    Args:
        seed: equal seeds give equal faults.

    Source: the Weibull shape, Schroeder and Gibson 2006, "A large-scale study of failures in
    high-performance computing systems", section 5.
    """
    rng = np.random.default_rng(seed)
    faults: list[Fault] = []
    if rates.mtbf_s:
        scale_s = rates.mtbf_s / gamma(1.0 + 1.0 / rates.shape)
        for machine in machines:  # which has run for a while: the interval it is in is a long one
            interval_s = scale_s * float(rng.gamma(1.0 + 1.0 / rates.shape)) ** (1.0 / rates.shape)
            at_s = float(rng.random()) * interval_s
            while at_s < length_s:
                faults += _failure_of(machine, at_s, rates, rng)
                at_s += scale_s * float(rng.weibull(rates.shape))
    if rates.controller_mtbf_s:
        at_s = float(rng.exponential(rates.controller_mtbf_s))
        while at_s < length_s:
            faults.append(Fault("controller", at_s))
            at_s += float(rng.exponential(rates.controller_mtbf_s))
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _failure_of(
    machine: Machine, at_s: float, rates: Rates, rng: np.random.Generator
) -> list[Fault]:
    draw, pick = float(rng.random()), float(rng.random())
    name = machine.name
    if draw < rates.domain_share + rates.node_share:
        kind: Kind = "lose_domain" if draw < rates.domain_share else "lose_node"
        back_s = at_s + rates.repair_s * (0.5 + float(rng.random()))
        back = Fault("node_up", back_s, node=name, domain=machine.domain, capacity=machine.capacity)
        return [Fault(kind, at_s, node=name), back]
    hangs = draw < rates.domain_share + rates.node_share + rates.hang_share
    return [Fault("hang" if hangs else "crash", at_s, pick=pick, node=name)]


def faults_of_trace(
    trace: Trace, capacity: int, domain_of: Mapping[str, str] | None = None
) -> tuple[tuple[Machine, ...], tuple[Fault, ...]]:
    """Machines that are there when a trace begins, and who joins and leaves later.

    Args:
        capacity: workers that fit on a node.
        domain_of: failure domain by node; none: each node is its own.
    """
    domains = domain_of or {}
    machines: list[Machine] = []
    faults: list[Fault] = []
    for event in trace.events:
        at_s = event.at_s - trace.start_s
        for name in event.nodes:
            domain = domains.get(name, name)
            if event.kind == "remove":
                faults.append(Fault("lose_node", at_s, node=name))
            elif at_s <= 0.0:
                machines.append(Machine(name, domain, capacity))
            else:
                faults.append(Fault("node_up", at_s, node=name, domain=domain, capacity=capacity))
    return tuple(machines), tuple(faults)

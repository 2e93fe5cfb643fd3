"""Run a job in the pretend world, from its submission to its end or a given time."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np

from elasticmoe.controller.history import check_history
from elasticmoe.controller.machine import replay
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Record
from elasticmoe.controller.state import JobState
from elasticmoe.messages.events import JobSubmitted, TermBegan
from elasticmoe.plan.types import Inventory
from elasticmoe.simulator.checker import Checker, Problem
from elasticmoe.simulator.costs import Costs
from elasticmoe.simulator.faults import Fault, Fired, Injector
from elasticmoe.simulator.hands import Hands
from elasticmoe.simulator.ledger import Account, Ledger
from elasticmoe.simulator.world import World
from elasticmoe.spec.job import JobSpec

RELIEF_S: Final = 30.0
"""So long after the last fault harm ends, and a node with room for all arrives."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A node that is there from the beginning."""

    name: str
    domain: str
    capacity: int
    memory_bytes: int = 0
    """0: it does not say how much it has."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a run depends on, the job aside."""

    machines: tuple[Machine, ...]
    faults: tuple[Fault, ...]
    seed: int = 0
    costs: Costs = field(default_factory=Costs)
    limit_s: float = 3600.0
    """Simulated time after which the run ends."""
    must_end: bool = True
    """Whether the job has to be done by then: help comes behind the last fault, and what is not
    done or not sound is a problem."""
    strict: bool = False
    """Whether a rollback that memory would have spared is a problem."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    state: JobState
    records: tuple[Record, ...]
    fired: tuple[Fired, ...]
    problems: tuple[Problem, ...]
    account: Account
    needless_rollbacks: int
    crashes: int
    """Of the controller."""
    slowest_decision_s: float
    """Real time of the brain's longest turn; 0: not measured."""
    slowest_decision: str
    """What it decided then."""


def simulate(
    job: JobSpec,
    inventory: Inventory,
    scenario: Scenario,
    *,
    stopwatch: Callable[[], float] | None = None,
) -> Outcome:
    """Run a job through faults; equal input gives an equal outcome.

    Args:
        inventory: the model's blocks and units.
        scenario: machines, faults, costs, seed.
        stopwatch: real seconds, to measure how long the brain takes; none: not measured.
    """
    checker = Checker(strict=scenario.strict)
    rng = np.random.default_rng(scenario.seed)
    world = World(job, inventory, scenario.costs, rng, checker, Hands())
    world.keeper.stopwatch = stopwatch
    checker.world = world
    ledger = Ledger(world)
    fired: list[Fired] = []

    def on_fired(one: Fired) -> None:
        fired.append(one)
        checker.answers.expect(world, one)
        checker.room.struck(one)
        ledger.fired(one)

    injector = Injector(world, on_fired)
    checker.on_record += [injector.recorded, ledger.recorded]
    checker.on_commit.append(ledger.committed)
    _submit(world, scenario)
    injector.plan(scenario.faults)
    if scenario.must_end:
        last_s = max((fault.at_s + fault.lasts_s for fault in scenario.faults), default=0.0)
        world.at(last_s + RELIEF_S, lambda: _relieve(world, injector))
    world.run(scenario.limit_s)
    if not world.over and not scenario.must_end:
        world.now_s = scenario.limit_s
    world.keeper.flush()
    _judge(world, checker, must_end=scenario.must_end)
    return Outcome(
        state=world.keeper.state,
        records=tuple(world.keeper.records),
        fired=tuple(fired),
        problems=tuple(checker.problems),
        account=ledger.finish(),
        needless_rollbacks=len(checker.needless),
        crashes=world.keeper.crashes,
        slowest_decision_s=world.keeper.slowest_s,
        slowest_decision=world.keeper.slowest,
    )


def _submit(world: World, scenario: Scenario) -> None:
    """Hand in the job and bring all machines up."""
    spec = world.job.model_dump(mode="json")
    world.post(JobSubmitted(0.0, spec, asdict(world.inventory), []))
    world.post(TermBegan(0.0, 1, "simulated"))
    for machine in scenario.machines:
        world.bring_up(machine.name, machine.domain, machine.capacity, machine.memory_bytes)


def _relieve(world: World, injector: Injector) -> None:
    """No more harm, and room for all."""
    injector.stop()
    world.bring_up("relief", "relief", world.job.workers.replicas)


def _judge(world: World, checker: Checker, *, must_end: bool) -> None:
    """What must hold in the end: all steps are done, and the journal tells a sound history."""
    state, records = world.keeper.state, world.keeper.records
    if must_end and state.phase is not Phase.DONE:
        checker.noticed(f"ends in phase {state.phase.value}: {state.outcome or 'it is stuck'}")
    for problem in check_history(records):
        checker.noticed(f"history: {problem}")
    if state.tally.ignored:
        checker.noticed(f"{state.tally.ignored} events made no sense to the brain")
    if world.keeper.has_taken_in_all and replay(records) != state:
        checker.noticed("replay of the journal leads to another state")

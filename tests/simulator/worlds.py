"""Short ways to run a small job in the pretend world."""

from elasticmoe.controller.record import Decided
from elasticmoe.simulator.faults import Fault
from elasticmoe.simulator.jobs import plain_inventory, small_job
from elasticmoe.simulator.run import Machine, Outcome, Scenario, simulate
from elasticmoe.spec.job import JobSpec

FOUR = (Machine("a", "a", 2), Machine("b", "b", 2))


def run(
    *faults: Fault,
    machines: tuple[Machine, ...] = FOUR,
    job: JobSpec | None = None,
    seed: int = 0,
) -> Outcome:
    """A job of 40 steps on 4 workers, unless told otherwise."""
    spec = job or small_job()
    return simulate(spec, plain_inventory(spec), Scenario(machines, faults, seed, strict=True))


def kinds(outcome: Outcome) -> list[str]:
    """The faults that really hit something."""
    return [fired.kind for fired in outcome.fired]


def decisions(outcome: Outcome, kind: type) -> list[object]:
    """Decisions of one kind that are on record."""
    found = (record.body for record in outcome.records if isinstance(record.body, Decided))
    return [one.decision for one in found if isinstance(one.decision, kind)]

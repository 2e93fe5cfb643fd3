"""When which fault is due: a pure function of the scenario."""

from dataclasses import dataclass

import numpy as np

from chaos.scenario import FaultSpec, Scenario


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come."""

    number: int
    """Counted from 1, in the order in which they are due."""
    fault: FaultSpec
    step: int | None
    """Due once this many steps are committed; none: in the next recovery."""
    seed: tuple[int, int, int]
    """Of everything that is random about it: the scenario's seed, the fault's position in the
    scenario, and its count there."""

    def rng(self) -> np.random.Generator:
        """The same numbers however the run goes."""
        return np.random.default_rng(self.seed)


def plan_faults(scenario: Scenario) -> tuple[Planned, ...]:
    """All faults of a scenario in the order in which they are due.

    Those of a recovery come right behind the one that stands before them in the scenario.
    """
    found: list[tuple[tuple[int, int, int], FaultSpec, int | None, tuple[int, int, int]]] = []
    last_step = 0
    for position, fault in enumerate(scenario.fault):
        rng = np.random.default_rng((scenario.seed, position))
        step = float(fault.at_step or 0)
        for count in range(fault.count):
            seed = (scenario.seed, position, count)
            if fault.every_steps is not None:
                step += rng.exponential(fault.every_steps)
            due = None if fault.recovering else max(round(step), 1)
            last_step = due or last_step
            found.append(((last_step, position, count), fault, due, seed))
    found.sort(key=lambda entry: entry[0])
    return tuple(
        Planned(number, fault, due, seed)
        for number, (_, fault, due, seed) in enumerate(found, start=1)
    )

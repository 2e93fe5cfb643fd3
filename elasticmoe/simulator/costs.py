"""How long things take in the pretend world: measured where a measurement exists.

Every figure is an assumption of every result; `docs/simulator.md` lists where each comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, Final

from elasticmoe.errors import SpecError
from elasticmoe.spec.problems import guess

BEHIND_COMPUTE: Final = ("spread_share", "apply_share", "vote_share", "prepare_share")
"""Shares of a step that come one after the other; the first phase gets what they leave."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, bytes per second and shares."""

    step_s: float = 0.17
    """A step of all wanted workers."""
    fixed_share: float = 0.2
    """Of a step: what does not get shorter with more workers."""
    prepare_share: float = 0.05
    """Shares of a step; what is left comes before."""
    vote_share: float = 0.01
    apply_share: float = 0.12
    spread_share: float = 0.02
    """How much later than the first the last member passes a phase."""

    detect_s: float = 0.007
    """From a process's end to its agent's report, less the message."""
    notice_s: float = 0.01
    """From a death to the reset that a peer sees, where it sees one."""
    notice_probability: float = 0.8
    """Per node: ring collectives show a death to neighbours only."""
    silence_s: float = 0.3
    """A heartbeat that stopped for so long is reported."""
    stall_s: float = 1.0
    """A worker whose heart beats, but that makes no progress for so long, is reported."""
    link_s: float = 0.0005
    """A message between controller and agent, one way."""
    decide_s: float = 0.0002
    """The brain takes in one event, and has it on record."""
    node_lost_s: float = 0.5
    """From the end of a machine or agent to the evidence."""
    lease_s: float = 4.0
    """An agent that was silent for so long is lost."""
    agent_patience_s: float = 30.0
    """An agent that hears nothing for so long ends its workers and itself."""
    agent_place_s: float = 2.5
    """From a machine's arrival to its agent's readiness."""
    controller_restart_s: float = 1.0
    """From a controller's death to the next one's first decision."""

    fork_s: float = 0.014
    """From the order to start a worker to its readiness."""
    park_s: tuple[float, float] = (0.002, 0.02)
    """From the order to leave a generation to the report, shortest and longest."""
    group_s: float = 0.002
    """Forming the groups of a generation: this much, and this much per worker."""
    group_worker_s: float = 0.0005
    recall_s: float = 0.002
    """Rolling forward and sharing progress."""
    move_bytes_per_s: float = 4e9
    """Training state that one worker sends or receives."""
    publish_s: float = 0.013
    """Sending all compute weights anew."""
    load_bytes_per_s: float = 1e9
    """One worker reads its share of a checkpoint."""
    save_bytes_per_s: float = 1e9
    seal_s: float = 0.02
    """Writing a manifest."""
    element_bytes: int = 12
    """Training state per element: master weight and two moments."""

    def step_seconds(self, workers: int, wanted: int) -> float:
        """A step on `workers`, where `wanted` need `step_s`.

        >>> Costs(step_s=1.0, fixed_share=0.5).step_seconds(2, 4)
        1.5
        """
        return self.step_s * (self.fixed_share + (1 - self.fixed_share) * wanted / workers)

    def group_seconds(self, workers: int) -> float:
        """Forming the groups of a generation."""
        return self.group_s + self.group_worker_s * workers


@dataclass(frozen=True, slots=True)
class Phases:
    """When each phase of a step ends, in seconds from the step's begin."""

    agree: float
    prepare: float
    """The last member has prepared."""
    vote: float
    """The barrier is complete: the first member passes it."""
    primaries: float
    """The last member has updated its primary homes."""
    publish: float
    """All weights have arrived."""
    apply: float
    """The last member has updated its other homes; the next step begins."""
    spread: float
    """How far apart the first and the last member are."""


def phases_of(costs: Costs, step_s: float) -> Phases:
    """Cut a step into its phases."""
    apply = 1 - costs.spread_share
    vote = apply - costs.apply_share
    prepare = vote - costs.vote_share
    agree = prepare - costs.prepare_share
    applying = costs.apply_share
    return Phases(
        agree=agree * step_s,
        prepare=prepare * step_s,
        vote=vote * step_s,
        primaries=(vote + 0.4 * applying + costs.spread_share) * step_s,
        publish=(vote + 0.6 * applying + costs.spread_share) * step_s,
        apply=step_s,
        spread=costs.spread_share * step_s,
    )


def read_costs(plain: Mapping[str, Any]) -> Costs:
    """Costs from plain data: what is not named keeps its default.

    Raises:
        SpecError: a name is unknown, or a value is not a number that the cost can have.
    """
    usual = {field.name: getattr(Costs(), field.name) for field in fields(Costs)}
    problems = [
        f"costs.{name}: unknown" + (guess(name, list(usual)) or f"; known are {sorted(usual)}")
        for name in plain
        if name not in usual
    ]
    changed: dict[str, Any] = {}
    for name in sorted(usual.keys() & plain.keys()):
        if wanted := _mistake(name, plain[name], usual[name]):
            problems.append(f"costs.{name}: {plain[name]!r:.40} is not {wanted}")
            continue
        value = plain[name]
        changed[name] = tuple(value) if isinstance(value, list) else value
    costs = replace(Costs(), **changed)
    if not problems and sum(getattr(costs, name) for name in BEHIND_COMPUTE) > 1:
        problems.append(f"costs: {', '.join(BEHIND_COMPUTE)} are more than 1 together")
    if problems:
        raise SpecError(tuple(problems))
    return costs


def _mistake(name: str, value: Any, usual: object) -> str:
    """What a value should have been; empty if it is."""
    if isinstance(usual, tuple):
        right = isinstance(value, list) and len(value) == len(usual) and all(map(_is_amount, value))
        return "" if right and value == sorted(value) else "two numbers, the smaller one first"
    if name == "step_s" or name.endswith("_per_s"):  # somebody divides by these
        return "" if _is_amount(value) and value > 0 else "a number above 0"
    if name.endswith(("_share", "_probability")):
        return "" if _is_amount(value) and value <= 1 else "a number from 0 to 1"
    return "" if _is_amount(value) else "a number of at least 0"


def is_finite(value: Any) -> bool:
    """Whether plain data is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _is_amount(value: Any) -> bool:
    return is_finite(value) and value >= 0

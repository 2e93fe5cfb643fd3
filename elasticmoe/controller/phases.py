"""The phases of a job, and what leads from one to the next."""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from elasticmoe.controller.decisions import (
    Break,
    Drain,
    Fence,
    Finish,
    Form,
    Gather,
    GiveUp,
    Protect,
    Quarantine,
    Recover,
    Regroup,
    Stay,
    Stop,
    TakeCheckpoint,
    TakeSnapshot,
    Train,
    Wait,
)
from elasticmoe.messages.events import JobSubmitted


class Phase(Enum):
    """Where a job is in its life."""

    NEW = "new"
    """Nothing is known."""
    WAITING = "waiting"
    """For room for enough workers."""
    GATHERING = "gathering"
    """Workers start, or a back-off runs."""
    FORMING = "forming"
    """The members of a generation join it and load their state."""
    TRAINING = "training"
    DRAINING = "draining"
    """The gang comes to its end: last checkpoint, last reports."""
    BREAKING = "breaking"
    """A generation is over by a fault; survivors park, the dead are counted."""
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    __hash__ = object.__hash__
    """That of `Enum` is the name's, found by a call: too slow for what is looked up so often."""


FINAL_PHASES: Final = frozenset({Phase.DONE, Phase.STOPPED, Phase.FAILED})

# fmt: off
NEXT_PHASE: Final[Mapping[tuple[Phase, type], Phase]] = {
    # in this phase     when this happens   go to
    (Phase.NEW,         JobSubmitted):      Phase.WAITING,
    (Phase.WAITING,     Gather):            Phase.GATHERING,
    (Phase.WAITING,     Fence):             Phase.WAITING,
    (Phase.WAITING,     Stop):              Phase.STOPPED,
    (Phase.GATHERING,   Gather):            Phase.GATHERING,
    (Phase.GATHERING,   Fence):             Phase.GATHERING,
    (Phase.GATHERING,   Recover):           Phase.GATHERING,
    (Phase.GATHERING,   Form):              Phase.FORMING,
    (Phase.GATHERING,   Wait):              Phase.WAITING,
    (Phase.GATHERING,   Stop):              Phase.STOPPED,
    (Phase.GATHERING,   GiveUp):            Phase.FAILED,
    (Phase.FORMING,     Train):             Phase.TRAINING,
    (Phase.FORMING,     Break):             Phase.BREAKING,
    (Phase.FORMING,     Stop):              Phase.STOPPED,
    (Phase.TRAINING,    Gather):            Phase.TRAINING,
    (Phase.TRAINING,    Fence):             Phase.TRAINING,
    (Phase.TRAINING,    TakeCheckpoint):    Phase.TRAINING,
    (Phase.TRAINING,    TakeSnapshot):      Phase.TRAINING,
    (Phase.TRAINING,    Protect):           Phase.TRAINING,
    (Phase.TRAINING,    Stay):              Phase.TRAINING,
    (Phase.TRAINING,    Drain):             Phase.DRAINING,
    (Phase.TRAINING,    Break):             Phase.BREAKING,
    (Phase.DRAINING,    Regroup):           Phase.GATHERING,
    (Phase.DRAINING,    Break):             Phase.BREAKING,
    (Phase.DRAINING,    Finish):            Phase.DONE,
    (Phase.DRAINING,    Stop):              Phase.STOPPED,
    (Phase.DRAINING,    GiveUp):            Phase.FAILED,
    (Phase.BREAKING,    Fence):             Phase.BREAKING,
    (Phase.BREAKING,    Gather):            Phase.BREAKING,
    (Phase.BREAKING,    Quarantine):        Phase.BREAKING,
    (Phase.BREAKING,    Recover):           Phase.GATHERING,
    (Phase.BREAKING,    Wait):              Phase.WAITING,
    (Phase.BREAKING,    Stop):              Phase.STOPPED,
    (Phase.BREAKING,    GiveUp):            Phase.FAILED,
}
# fmt: on


def next_phase(phase: Phase, trigger: type) -> Phase:
    """Look up the next phase; what `decide` chooses always has a row."""
    expected = sorted(kind.__name__ for where, kind in NEXT_PHASE if where is phase)
    assert (phase, trigger) in NEXT_PHASE, (
        f"{trigger.__name__} in phase {phase.value}; expected one of {expected}"
    )
    return NEXT_PHASE[phase, trigger]


def diagram() -> str:
    """The table as a Mermaid state diagram; the README holds a copy, and a test keeps it true."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, trigger), target in NEXT_PHASE.items():
        arrows.setdefault((phase, target), []).append(trigger.__name__)
    lines = [
        f"    {phase.value} --> {target.value}: {', '.join(triggers)}"
        for (phase, target), triggers in arrows.items()
    ]
    ends = [f"    {phase.value} --> [*]" for phase in Phase if phase in FINAL_PHASES]
    return "\n".join(["stateDiagram-v2", "    [*] --> new", *lines, *ends]) + "\n"

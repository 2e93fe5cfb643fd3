"""What all nemeses share: they strike, prove it, and may be undone."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from chaos.world import World


class Answer(Enum):
    """What tells that the job has dealt with a fault."""

    GENERATION = "generation"
    """A step is committed by a newer generation."""
    PROGRESS = "progress"
    """A step is committed."""
    TERM = "term"
    """A new controller took over, and a step is committed."""
    OUTLIVED = "outlived"
    """A step is committed by a newer generation, or by the same one once the fault is over."""


class Surroundings(Protocol):
    """What a scenario sets up around its job."""

    @property
    def has_cluster(self) -> bool:
        """Nodes and links are ours to break."""

    @property
    def has_small_disk(self) -> bool:
        """There is a disk to fill."""

    @property
    def skewable_clocks(self) -> bool:
        """Clocks can be shifted."""


class Aim(Protocol):
    """Whom a scenario wants struck; see `chaos.scenario.Target`."""

    @property
    def worker(self) -> int | None:
        """Number."""

    @property
    def member(self) -> int | None:
        """Position in the plan."""

    @property
    def stage(self) -> int | None:
        """Pipeline stage."""

    @property
    def node(self) -> str | None:
        """Beginning of its name."""

    @property
    def count(self) -> int:
        """Victims."""

    @property
    def all(self) -> bool:
        """All that fit."""


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault that has provably happened."""

    victims: tuple[str, ...]
    """`worker 3`, `node right`."""
    evidence: str
    undo: Callable[[], str] | None = None
    """Ends it; returns the evidence that it ended. None: there is nothing to undo."""


class Nemesis(BaseModel):
    """One kind of fault; its fields are its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    answer: ClassVar[Answer] = Answer.GENERATION

    for_s: float = Field(default=0.0, ge=0)
    """How long it lasts, if it is something that ends."""

    def lacks(self, around: Surroundings) -> str:
        """What a scenario must have for this to be possible at all; empty: nothing."""
        return ""

    def obstacle(self, world: World, aim: Aim) -> str:
        """Why it cannot strike right now; empty: it can."""
        return ""

    @abstractmethod
    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Do it.

        Raises:
            NotFiredError: there is no proof that it happened.
        """


def draw(candidates: list[Any], aim: Aim, rng: np.random.Generator) -> list[Any]:
    """As many of the candidates as are wanted, at random."""
    count = len(candidates) if aim.all else min(aim.count, len(candidates))
    chosen = rng.choice(len(candidates), size=count, replace=False)
    return [candidates[int(index)] for index in sorted(chosen)]

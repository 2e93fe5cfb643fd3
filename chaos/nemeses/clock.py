"""Clocks that jump: the wall clock that one node's Python processes read."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from chaos.nemeses.base import Aim, Answer, Blow, Nemesis, Surroundings
from chaos.world import World


class SkewClock(Nemesis):
    """The wall clock is wrong by `seconds` for `for_s`; the monotonic clock goes on as ever."""

    answer: ClassVar[Answer] = Answer.PROGRESS
    for_s: float = Field(default=5.0, gt=0)
    seconds: float = 3600.0
    """How far it is ahead; negative: behind."""

    def lacks(self, around: Surroundings) -> str:
        """The job's processes must have been started under the shim."""
        return "" if around.skewable_clocks else "skewable_clocks = true"

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Shift it."""
        assert world.clock is not None
        clock = world.clock
        evidence = clock.shift(self.seconds)
        return Blow(("the wall clock",), evidence, lambda: clock.shift(0.0))

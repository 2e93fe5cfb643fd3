"""Links between nodes that are cut, open in one direction only, or slow.

Packets are sent to a hardware address that nobody has, so that they vanish without an error on
either side, as in a cable that was pulled somewhere in between.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from chaos.nemeses.base import Aim, Answer, Blow
from chaos.nemeses.nodes import OfClusterNodes
from chaos.world import World


class OfLinks(OfClusterNodes):
    """Strikes the link of one node to all others."""

    answer: ClassVar[Answer] = Answer.OUTLIVED
    for_s: float = Field(default=8.0, gt=0)

    @abstractmethod
    def begin(self, world: World, node: str) -> tuple[str, Callable[[], str]]:
        """Break the link of a node; returns the evidence, and what ends it."""

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Break the link of one node."""
        label, _ = self.one(world, aim, rng)
        evidence, undo = self.begin(world, label)
        return Blow((f"link of {label}",), evidence, undo)


class CutLink(OfLinks):
    """Nothing passes, in neither direction."""

    def begin(self, world: World, node: str) -> tuple[str, Callable[[], str]]:
        """Cut it."""
        assert world.cluster is not None
        return world.cluster.network.drop(node, ("in", "out"))


class HalfOpenLink(OfLinks):
    """What one side says arrives, and what it is answered does not."""

    lost: Literal["in", "out"] = "out"
    """The node's incoming or outgoing packets."""

    def begin(self, world: World, node: str) -> tuple[str, Callable[[], str]]:
        """Let one direction vanish."""
        assert world.cluster is not None
        return world.cluster.network.drop(node, (self.lost,))


class DelayLink(OfLinks):
    """What the node sends arrives later; nothing is lost."""

    answer: ClassVar[Answer] = Answer.PROGRESS
    delay_ms: float = Field(default=100.0, gt=0)

    def begin(self, world: World, node: str) -> tuple[str, Callable[[], str]]:
        """Send its packets through a relay that keeps each for a while."""
        assert world.cluster is not None
        return world.cluster.network.delay(node, self.delay_ms / 1e3)

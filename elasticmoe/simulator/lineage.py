"""What a unit's content is: not bits, but the gradients that led to it.

A *version* names one content. Two copies are equal exactly if their versions are: they began equal
and took the same gradients in the same order, each computed once, by one generation. That is
sharper than a step number: a copy rolled forward with a gradient of another generation is at the
right step, and wrong.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gradient:
    """The reduced gradients of one step, as one generation computed them."""

    generation: int
    step: int


INITIAL = 0
"""The version of everything before the first step."""


class Lineage:
    """All versions there ever were, numbered."""

    def __init__(self, start_step: int = 0) -> None:
        self._steps = [start_step]
        self._parents = [-1]
        self._known: dict[tuple[int, Gradient], int] = {}

    def after(self, version: int, gradient: Gradient) -> int:
        """The version that an update with a gradient leads to."""
        key = (version, gradient)
        if key not in self._known:
            self._known[key] = len(self._steps)
            self._steps.append(self._steps[version] + 1)
            self._parents.append(version)
        return self._known[key]

    def spoiled(self, version: int) -> int:
        """What an update with a gradient that is not there leads to: equal to nothing else."""
        self._steps.append(self._steps[version] + 1)
        self._parents.append(-1)
        return len(self._steps) - 1

    def step(self, version: int) -> int:
        """Committed steps that are in a version."""
        return self._steps[version]

    def holds(self, version: int, earlier: int) -> bool:
        """Whether everything in an earlier version is in this one too."""
        while version >= 0 and self._steps[version] > self._steps[earlier]:
            version = self._parents[version]
        return version == earlier

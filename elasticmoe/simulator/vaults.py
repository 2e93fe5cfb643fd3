"""A worker's vault in the pretend world: which units are there, and at which version."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from elasticmoe.messages.worker import Copies
from elasticmoe.simulator.lineage import Gradient, Lineage

Units = tuple[int, ...]


@dataclass(slots=True)
class Vault:
    """What outlives the process; see `elasticmoe.vault`."""

    node: str
    generation: int = 0
    progress: int = -1
    """Version of bias, load and counters; -1: none."""
    prepared: Gradient | None = None
    prepared_step: int = 0
    covered: Units = ()
    """Units whose gradients are prepared: the homes of the plan that prepared them."""
    voted: int = 0
    units: dict[int, Units] = field(default_factory=dict)
    """Version -> units that are whole at it."""
    torn: Units = ()

    def version_of(self) -> dict[int, int]:
        """Unit -> version, of all whole units."""
        return {unit: version for version, units in self.units.items() for unit in units}

    def set_units(self, versions: Mapping[int, int]) -> None:
        """Replace what is whole."""
        found: dict[int, list[int]] = {}
        for unit, version in versions.items():
            found.setdefault(version, []).append(unit)
        self.units = {version: tuple(sorted(units)) for version, units in found.items()}

    def roll_forward(self, step: int, lineage: Lineage, only: Iterable[int] | None = None) -> None:
        """Apply what is prepared, if it leads to `step`.

        Args:
            only: the units that a process got to before it died; none: all, and the progress.
        """
        if self.prepared is None or self.prepared_step != step:
            return
        chosen = None if only is None else set(only)
        covered = set(self.covered)
        versions = self.version_of()
        for unit, version in list(versions.items()):
            if lineage.step(version) == step - 1 and (chosen is None or unit in chosen):
                versions[unit] = (
                    lineage.after(version, self.prepared)
                    if unit in covered
                    else lineage.spoiled(version)
                )
        if chosen is None and self.progress >= 0 and lineage.step(self.progress) == step - 1:
            self.progress = lineage.after(self.progress, self.prepared)
        self.set_units(versions)

    def clear(self) -> None:
        """Another history begins: forget units and progress; what was prepared stays until the
        generation is joined, as in the real vault."""
        self.units, self.torn, self.progress = {}, (), -1

    def join(self, generation: int) -> None:
        """A generation begins here: nothing is prepared, nobody has voted."""
        self.generation, self.prepared, self.prepared_step, self.voted = generation, None, 0, 0
        self.covered = ()

    def copies(self, worker: int, lineage: Lineage, phase: str = "") -> Copies | None:
        """What an agent or worker says about it; none before anything was in it."""
        if self.generation == 0 and not self.units and not self.torn:
            return None
        by_step: dict[int, Units] = {}
        for version, units in self.units.items():
            step = lineage.step(version)
            by_step[step] = tuple(sorted(by_step[step] + units)) if step in by_step else units
        return Copies(
            worker=worker,
            generation=self.generation,
            step=lineage.step(self.progress) if self.progress >= 0 else -1,
            prepared=self.prepared_step,
            voted=self.voted,
            whole=tuple(sorted(by_step.items())),
            torn=self.torn,
            phase=phase,
        )

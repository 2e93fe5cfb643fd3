"""A worker's vault in the pretend world: which units are there, and at which version."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from elasticmoe.messages.worker import Copies, SnapshotCopies
from elasticmoe.simulator.lineage import Gradient, Lineage

Units = tuple[int, ...]

NUM_SNAPSHOTS = 2
"""That a vault has room for."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one vault holds of one snapshot."""

    version: int
    """Of all units in it."""
    groups: tuple[Units, ...]
    """One unit: a copy of it; several: the XOR of all their copies."""

    @property
    def whole(self) -> Units:
        """Units of which there is a copy, ascending."""
        return tuple(sorted(group[0] for group in self.groups if len(group) == 1))

    def copies(self, lineage: Lineage) -> SnapshotCopies:
        """What is said about it."""
        parities = tuple(group for group in self.groups if len(group) > 1)
        return SnapshotCopies(lineage.step(self.version), self.whole, parities)


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
    snapshots: tuple[Snapshot, ...] = ()
    """At most `NUM_SNAPSHOTS`."""

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
        """Another history begins: forget units, progress and snapshots; what was prepared stays
        until the generation is joined, as in the real vault."""
        self.units, self.torn, self.progress, self.snapshots = {}, (), -1, ()

    def make_room(self, lineage: Lineage) -> None:
        """Another snapshot is begun: if there is no room, the one of the lowest step goes."""
        if len(self.snapshots) == NUM_SNAPSHOTS:
            gone = min(self.snapshots, key=lambda one: lineage.step(one.version))
            self.snapshots = tuple(one for one in self.snapshots if one is not gone)

    def keep(self, snapshot: Snapshot) -> None:
        """A snapshot is all there; harmless if it was before."""
        if snapshot not in self.snapshots:
            self.snapshots += (snapshot,)

    def snapshot_of(self, step: int, lineage: Lineage) -> Snapshot | None:
        """The snapshot of a step, if there is one."""
        found = [one for one in self.snapshots if lineage.step(one.version) == step]
        return found[-1] if found else None

    def restore(self, step: int, lineage: Lineage, share: float) -> None:
        """Put the snapshot of a step in the place of all that is newer; harmless if done twice.

        Args:
            share: of its units, which a process got to before it died; 1: all, and the progress.
        """
        found = self.snapshot_of(step, lineage)
        self.clear()
        self.prepared, self.prepared_step, self.voted, self.covered = None, 0, 0, ()
        if found is None:
            return
        self.snapshots = (found,)
        units = found.whole[: int(share * len(found.whole))]
        self.set_units(dict.fromkeys(units, found.version))
        if share == 1.0:
            self.progress = found.version

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
            snapshots=tuple(
                one.copies(lineage)
                for one in sorted(self.snapshots, key=lambda one: lineage.step(one.version))
            ),
        )

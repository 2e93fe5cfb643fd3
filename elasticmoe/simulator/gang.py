"""One generation in the pretend world, and what each member's vault holds at any moment.

While all is well nobody is looked at one by one: a step is a few events for the whole gang. A
member's vault is written only when the member leaves, from the time at which it leaves.
"""

from dataclasses import dataclass, field
from math import inf

from elasticmoe.messages.worker import FromMemory
from elasticmoe.plan.types import Plan
from elasticmoe.simulator.costs import Phases
from elasticmoe.simulator.lineage import INITIAL, Gradient, Lineage
from elasticmoe.simulator.vaults import Snapshot, Units, Vault


@dataclass(slots=True)
class Left:
    """A member that is not in the gang any more."""

    at_s: float
    """From then on it takes part in nothing."""
    until_s: float = inf
    """Until then its own work ran on; a member that lives ends its update, past the vote."""


@dataclass(slots=True)
class Forming:
    """When the stages of forming end; none: not known yet."""

    groups_s: float | None = None
    """All members have met."""
    recalled_s: float = 0.0
    """Copies are rolled forward, progress is shared; or the checkpoint is loaded."""
    moved_s: float = 0.0
    """Missing units have arrived."""
    shared: bool = False
    """Whether everybody got as far as `recalled_s`."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """A numbered command that all members hold."""

    since_s: float
    number: int
    action: str
    plan: Plan | None = None
    """For `protect`."""


@dataclass(frozen=True, slots=True)
class Taking:
    """A snapshot that the gang takes, between two steps."""

    began_s: float
    took_s: float
    snapshots: tuple[Snapshot, ...]
    """What each member holds of it in the end."""


def homes_by_member(plan: Plan) -> tuple[tuple[Units, ...], tuple[Units, ...]]:
    """Per member the units that it is primary home of, and those that it is another home of."""
    primaries: list[list[int]] = [[] for _ in plan.members]
    mirrors: list[list[int]] = [[] for _ in plan.members]
    for unit, (primary, *others) in enumerate(plan.homes):
        primaries[primary].append(unit)
        for other in others:
            mirrors[other].append(unit)
    return tuple(map(tuple, primaries)), tuple(map(tuple, mirrors))


@dataclass(slots=True)
class Gang:
    """A generation as its members live it."""

    generation: int
    plan: Plan
    workers: tuple[int, ...]
    primaries: tuple[Units, ...]
    """Per member the units that it is primary home of."""
    mirrors: tuple[Units, ...]
    """Per member the other units that it keeps."""
    memory: FromMemory | None
    checkpoint: str | None
    first_command: int
    step: int
    """Committed steps when the open step began."""
    version: int = INITIAL
    """Of all homes then."""
    alone: frozenset[int] = frozenset()
    """Units with one home: what they were before an update is kept while it runs."""
    forming: Forming = field(default_factory=Forming)
    arrived: set[int] = field(default_factory=set)
    adopted: dict[int, list[Vault]] = field(default_factory=dict)
    """Member -> further vaults that it reads."""
    incoming: dict[int, list[int]] = field(default_factory=dict)
    """Member -> units that are moved to it."""
    joined: bool = False
    """Everybody has everything; from here on vaults are what the step says."""
    trains: bool = False
    began_s: float = 0.0
    """Of the open step."""
    phases: Phases | None = None
    start_step: int = 0
    voted: bool = False
    """The open step's barrier is complete."""
    published: bool = False
    """The open step's weights have all arrived."""
    left: dict[int, Left] = field(default_factory=dict)
    """Worker -> how it left."""
    ended: bool = False
    taking: Taking | None = None
    """The newest snapshot."""
    snapshot_s: float = 0.0
    """What it cost, until a step's report has said so."""
    actions: list[Instruction] = field(default_factory=list)
    instructed: int = 0
    position: dict[int, int] = field(default_factory=dict)
    """Worker -> member."""
    nodes: tuple[str, ...] = ()
    """Where its members are."""
    unaware: list[str] = field(default_factory=list)
    """Nodes on which nobody has seen a reset yet."""

    def __post_init__(self) -> None:
        self.start_step = self.step
        self.instructed = self.first_command - 1
        self.nodes = tuple(dict.fromkeys(member.node for member in self.plan.members))
        self.unaware = list(self.nodes)
        self.position = {worker: member for member, worker in enumerate(self.workers)}

    def follow(self, plan: Plan) -> None:
        """Go over to a plan with other homes, between two steps."""
        self.plan = plan
        self.primaries, self.mirrors = homes_by_member(plan)
        self.alone = frozenset(unit for unit, homes in enumerate(plan.homes) if len(homes) == 1)

    def rest_until(self, at_s: float) -> None:
        """Nobody is in a step until then."""
        self.voted = self.published = False
        self.began_s = at_s

    def homes(self, member: int) -> Units:
        """The units that a member keeps."""
        return self.primaries[member] + self.mirrors[member]

    def lag(self, member: int) -> float:
        """How much later than the first a member passes a phase, 0 to 1; differs by step."""
        mixed = (member * 2654435761 + self.step * 40503 + 12345) & 0xFFFFFFFF
        return ((mixed >> 7) & 0xFFFF) / 0x10000

    def prepared_at_s(self, member: int) -> float:
        """When a member has prepared the open step and enters the vote."""
        assert self.phases is not None, "a step is open"
        span = self.phases.prepare - self.phases.agree
        return self.began_s + self.phases.agree + span * (0.5 + 0.5 * self.lag(member))

    def passes_at_s(self, member: int) -> float:
        """When a member passes the vote, if the barrier completes."""
        assert self.phases is not None, "a step is open"
        return self.began_s + self.phases.vote + self.phases.spread * self.lag(member)

    def everyone_voted(self) -> bool:
        """Whether those who left did so behind the barrier's entry."""
        return all(
            left.at_s >= self.prepared_at_s(self.position[worker])
            for worker, left in self.left.items()
        )

    def everyone_published(self) -> bool:
        """Whether those who left had sent their new weights."""
        assert self.phases is not None, "a step is open"
        sent_s = self.began_s + self.phases.primaries
        return all(left.at_s >= sent_s for left in self.left.values())

    def freeze(self, worker: int, vault: Vault, lineage: Lineage) -> str:
        """Write into a vault what its worker has got to; the name of the phase it was in."""
        left, member = self.left[worker], self.position[worker]
        if self.joined:
            return self._freeze_training(member, vault, left, lineage)
        return self._freeze_forming(member, vault, left, lineage)

    def uniform(self, member: int, vault: Vault) -> None:
        """Write into a vault that its member is between two steps."""
        vault.units = {self.version: tuple(sorted(self.homes(member)))}
        vault.torn, vault.progress = (), self.version
        if self.step > self.start_step:
            self._mark_prepared(vault, member, self.step)
            vault.voted = self.step

    def keep_snapshot(self, member: int, vault: Vault) -> None:
        """Write into a vault the snapshot that is being taken, if its member is through with it: it
        waits in vain for others once somebody has left."""
        taking = self.taking
        if taking is None:
            return
        through_s = taking.began_s + taking.took_s * (0.5 + 0.5 * self.lag(member))
        if all(left.at_s >= through_s for left in self.left.values()):
            vault.keep(taking.snapshots[member])

    def leaves_at_s(self, worker: int) -> float:
        """When a living member notices that the generation is over: its own update comes first."""
        left, member = self.left[worker], self.position[worker]
        if self.trains and self.phases is not None and self.voted:
            if left.at_s >= self.passes_at_s(member):
                return max(left.at_s, self.began_s + self.phases.apply)
        forming = self.forming
        if not self.joined and forming.groups_s is not None and left.at_s > forming.groups_s:
            return max(left.at_s, forming.recalled_s)
        return left.at_s

    # -- in a step

    def _freeze_training(self, member: int, vault: Vault, left: Left, lineage: Lineage) -> str:
        self.uniform(member, vault)
        self.keep_snapshot(member, vault)
        if not self.trains or left.at_s < self.prepared_at_s(member):
            return "compute" if self.trains else "form"
        self._mark_prepared(vault, member, self.step + 1)
        if not self.voted or left.at_s < self.passes_at_s(member):
            return "vote"
        vault.voted = self.step + 1
        assert self.phases is not None, "a step is open"
        new = lineage.after(self.version, Gradient(self.generation, self.step + 1))
        passed_s = self.passes_at_s(member)
        primary = _share(left.until_s, passed_s, self.began_s + self.phases.primaries)
        mirror = 0.0
        if self.published:
            published_s = self.began_s + self.phases.publish
            mirror = _share(left.until_s, published_s, self.began_s + self.phases.apply)
        if left.until_s == inf:
            mirror = 1.0
        done, torn = self._updated(self.primaries[member], primary)
        more, torn_too = self._updated(self.mirrors[member], mirror)
        updated, gone = {*done, *more}, {*torn, *torn_too}
        vault.torn = tuple(sorted(gone))
        vault.set_units(
            {
                unit: new if unit in updated else self.version
                for unit in self.homes(member)
                if unit not in gone
            }
        )
        if primary == 1.0:
            vault.progress = new
        return "apply"

    def _mark_prepared(self, vault: Vault, member: int, step: int) -> None:
        vault.prepared, vault.prepared_step = Gradient(self.generation, step), step
        vault.covered = self.homes(member)

    def _updated(self, units: Units, share: float) -> tuple[Units, Units]:
        """Units that are done, and the one that a crash tears: never where it is the only home."""
        if share >= 1.0:
            return units, ()
        reached = share * len(units)
        count = int(reached)
        torn = units[count : count + 1] if reached > count else ()
        return units[:count], tuple(unit for unit in torn if unit not in self.alone)

    # -- while it forms

    def _freeze_forming(self, member: int, vault: Vault, left: Left, lineage: Lineage) -> str:
        forming = self.forming
        if forming.groups_s is None or left.at_s < forming.groups_s:
            return "form"
        share = _share(left.until_s, forming.groups_s, forming.recalled_s)
        if self.memory is None:
            self._load(member, vault, share)
            return "form"
        self.roll(member, vault, share, lineage)
        if forming.shared:
            until_s = min(gone.at_s for gone in self.left.values())
            got = _share(until_s, forming.recalled_s, forming.moved_s)
            self.receive(member, vault, got)
        return "form"

    def _load(self, member: int, vault: Vault, share: float) -> None:
        """Read from a checkpoint, or from the seed."""
        units = self.homes(member)
        vault.clear()
        vault.set_units(dict.fromkeys(units[: int(share * len(units))], self.version))
        if share == 1.0:
            vault.progress = self.version
            vault.join(self.generation)

    def roll(self, member: int, vault: Vault, share: float, lineage: Lineage) -> None:
        """Roll what is prepared forward, or go back to a snapshot, in the member's own vault and in
        adopted ones."""
        assert self.memory is not None, "from memory"
        step = self.memory.step
        if share < 1.0 and self.memory.is_snapshot:
            vault.restore(step, lineage, share)
            return
        if share < 1.0:
            units = tuple(sorted(vault.version_of()))
            vault.roll_forward(step, lineage, only=units[: int(share * len(units))])
            return
        adopted = self.adopted.get(member, [])
        for one in (vault, *adopted):
            if self.memory.is_snapshot:
                one.restore(step, lineage, 1.0)
            else:
                one.roll_forward(step, lineage)
        if not adopted:
            return
        versions = vault.version_of()
        found = {unit: version for one in adopted for unit, version in one.version_of().items()}
        for unit in self.homes(member):
            whole = unit in versions and lineage.step(versions[unit]) == step
            if not whole and unit in found and lineage.step(found[unit]) == step:
                versions[unit] = found[unit]
        vault.torn = tuple(unit for unit in vault.torn if unit not in versions)
        vault.set_units(versions)

    def receive(self, member: int, vault: Vault, share: float) -> None:
        """Take units that other members send."""
        incoming = self.incoming.get(member, [])
        versions = vault.version_of()
        for unit in incoming[: int(share * len(incoming))]:
            versions[unit] = self.version
        vault.torn = tuple(unit for unit in vault.torn if unit not in versions)
        vault.set_units(versions)


def _share(at_s: float, first_s: float, end_s: float) -> float:
    if end_s <= first_s:
        return 1.0 if at_s >= end_s else 0.0
    return min(max((at_s - first_s) / (end_s - first_s), 0.0), 1.0)

"""What must hold, checked after every event, from what happened and what the journal says.

The brain's own state is not believed: it is what could be wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from elasticmoe.controller.copies import find_sources, has_progress, settle_step
from elasticmoe.controller.decisions import Break, Form, Recover, Train
from elasticmoe.controller.record import Decided, Record
from elasticmoe.controller.state import JobState
from elasticmoe.messages.events import Event, Reported
from elasticmoe.messages.worker import StepDone
from elasticmoe.simulator.answers import Answers
from elasticmoe.simulator.gang import Gang
from elasticmoe.simulator.nodes import Node
from elasticmoe.simulator.room import Room
from elasticmoe.simulator.snapshots import is_whole
from elasticmoe.simulator.world import LateLoss, World

OVERFULL: Final = "would need"
"""In the reasons against a rung: what is in memory is there, and cannot be moved for lack of it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A promise that was broken."""

    at_s: float
    text: str


class Checker:
    """Watches a world; implements `world.Truth`."""

    def __init__(self, *, strict: bool) -> None:
        """
        Args:
            strict: a rollback that memory would have spared is a problem, not only counted.
        """
        self.world: World | None = None
        self.problems: list[Problem] = []
        self.on_record: list[Callable[[Record], None]] = []
        self.on_commit: list[Callable[[int], None]] = []
        self.needless: list[float] = []
        """When a checkpoint was gone back to though all was in memory."""
        self._strict = strict
        self._timeline_of: dict[int, int] = {}
        self._first_of: dict[int, int] = {}
        """Generation -> committed steps that it was to go on from."""
        self._newest = 0
        """Newest generation that was opened."""
        self._trained = 0
        """Newest one that was told to train."""
        self._kept = 0
        """Version that must never be lost on this timeline."""
        self._kept_timeline = 0
        self._reported_step = 0
        self.answers = Answers(self.noticed)
        self.room = Room(self.noticed)
        self._snapshots: set[int] = set()
        """Versions of which a snapshot was begun."""

    # -- what the world tells

    def noticed(self, text: str) -> None:
        """Something broke a promise of the protocol."""
        assert self.world is not None, "a world is watched"
        self.problems.append(Problem(self.world.now_s, text))

    def opened(self, gang: Gang) -> None:
        """A generation is to be formed: every unit has its homes, every member its place."""
        assert self.world is not None, "a world is watched"
        self._newest = max(self._newest, gang.generation)
        job = self.world.job
        homes = min(job.protection.redundancy, len(gang.workers))
        for unit, chosen in enumerate(gang.plan.homes):
            if len(set(chosen)) != len(chosen) or not chosen:
                self.noticed(f"generation {gang.generation}: unit {unit} has homes {chosen}")
            if len(chosen) < homes and gang.memory is None:
                self.noticed(f"generation {gang.generation}: unit {unit} has {len(chosen)} homes")
        if len(gang.plan.homes) != len(self.world.inventory.units):
            self.noticed(f"generation {gang.generation}: some unit has no home")
        if not job.workers.min <= len(set(gang.workers)) <= job.workers.max:
            self.noticed(f"generation {gang.generation} has workers {gang.workers}")

    def voted(self, gang: Gang, version: int) -> None:
        """From here on the step is committed."""
        assert self.world is not None, "a world is watched"
        if gang.generation < self._newest:
            if not self._is_cut_off(gang):
                self.noticed(
                    f"generation {gang.generation} commits a step though {self._newest} was opened"
                )
            return
        if not self.world.lineage.holds(version, self._kept):
            self.noticed(f"step {gang.step + 1} was committed without what was committed before")
        self._kept, self._kept_timeline = version, self._timeline_of.get(gang.generation, 0)

    def _is_cut_off(self, gang: Gang) -> bool:
        """Whether nobody in a gang hears the controller or is heard: it trains for nobody until its
        agents' patience ends."""
        assert self.world is not None, "a world is watched"
        nodes = self.world.nodes
        return all(nodes[name].given_up or nodes[name].cut for name in gang.nodes)

    def committed(self, gang: Gang, version: int) -> None:
        """All members have applied a step."""
        if gang.generation < self._newest:
            return
        assert self.world is not None, "a world is watched"
        self.answers.stepped(self.world, gang)
        for told in self.on_commit:
            told(gang.step)

    def snapshotted(self, gang: Gang) -> None:
        """All members copy what they have: it is committed, and the same version."""
        assert self.world is not None, "a world is watched"
        self._snapshots.add(gang.version)
        if gang.generation == self._newest and gang.version != self._kept:
            self.noticed(f"a snapshot of step {gang.step} is not of what is committed")

    def joined(self, gang: Gang) -> None:
        """All members go on from one version: is everything in it that must be?"""
        assert self.world is not None, "a world is watched"
        lineage, timeline = self.world.lineage, self._timeline_of.get(gang.generation, 0)
        if lineage.step(gang.version) != gang.step:
            self.noticed(
                f"generation {gang.generation} says step {gang.step}, "
                f"its state is of step {lineage.step(gang.version)}"
            )
        decided = self._first_of.get(gang.generation, gang.step)
        if decided != gang.step:
            self.noticed(
                f"generation {gang.generation} goes on from step {gang.step}, "
                f"step {decided} was decided"
            )
        kept = lineage.holds(gang.version, self._kept)
        is_snapshot = gang.memory is not None and gang.memory.is_snapshot
        if is_snapshot and gang.version not in self._snapshots:
            self.noticed(
                f"generation {gang.generation} goes back to step {gang.step}, "
                "of which there never was such a snapshot"
            )
        if timeline == self._kept_timeline and not kept:
            if gang.memory is not None and not is_snapshot:
                self.noticed(
                    f"generation {gang.generation} goes on from step {gang.step} on the same "
                    f"timeline without step {lineage.step(self._kept)}, which somebody voted for"
                )
            elif gang.step < self._reported_step:
                self.noticed(
                    f"generation {gang.generation} goes back to step {gang.step} on the same "
                    f"timeline; step {self._reported_step} was reported"
                )
        if timeline != self._kept_timeline and gang.memory is not None and not kept:
            self._check_rollback(gang)
        if not kept:
            self._kept, self._reported_step = gang.version, gang.step
        self._kept_timeline = timeline

    def lost(self, kind: LateLoss, node: Node) -> None:
        """A preemption's end has come, or a partition outlasted the lease: as any lost node."""
        assert self.world is not None, "a world is watched"
        self.answers.lost(self.world, kind, node)

    def _check_rollback(self, gang: Gang) -> None:
        """A new timeline from memory must hold the whole of an older state."""
        assert self.world is not None, "a world is watched"
        if not self.world.lineage.holds(self._kept, gang.version):
            self.noticed(
                f"generation {gang.generation} goes on from a state that is no part of history"
            )

    # -- what the controller does

    def recorded(self, record: Record) -> None:
        """A record was written."""
        if isinstance(record.body, Decided):
            assert self.world is not None, "a world is watched"
            self._decided(record.body)
            self.room.decided(self.world, record.body.decision)
        for told in self.on_record:
            told(record)

    def advanced(self, before: JobState, event: Event, after: JobState) -> None:
        """The brain took in an event."""
        assert self.world is not None, "a world is watched"
        self.answers.check(self.world)
        self.room.heard(self.world, event)
        if isinstance(event, Reported):
            self._check_stale(before, event, after)
            if isinstance(event.report, StepDone):
                current = event.report.generation == before.generation
                if current and after.committed_step < before.committed_step:
                    self.noticed(f"step {event.report.step} took the committed step back")
                if current:
                    self._check_samples(event.report)
                    self._reported_step = max(self._reported_step, event.report.step)

    def replayed(self, state: JobState) -> None:
        """A new controller has read the journal."""
        form = state.form
        if form is not None and self._timeline_of.get(form.generation) != state.timeline:
            self.noticed(f"replay says timeline {state.timeline}")

    def _decided(self, body: Decided) -> None:
        match body.decision:
            case Form() as form:
                known = max(self._timeline_of.values(), default=0)
                newest = max(self._timeline_of, default=0)
                if form.generation <= newest:
                    self.noticed(f"generation {form.generation} is formed behind {newest}")
                if form.timeline < known or form.timeline > known + 1:
                    self.noticed(f"timeline {form.timeline} follows {known}")
                if form.timeline > known and form.memory and not form.memory.is_snapshot:
                    self.noticed(f"generation {form.generation} gives up steps that are in memory")
                if form.step < self._reported_step and form.timeline == known:
                    self.noticed(
                        f"step {form.step} follows step {self._reported_step} on one timeline"
                    )
                if form.timeline > known:
                    self._reported_step = min(self._reported_step, form.step)
                self._timeline_of[form.generation] = form.timeline
                self._first_of[form.generation] = form.step
                self.answers.answered(form.generation - 1)
            case Break() as broken:
                self.answers.answered(broken.generation)
            case Train() as train:
                self._trained = train.generation
                self._check_exposure()
            case Recover(rung="snapshot" | "checkpoint", redo_steps=redo) as recover if redo:
                self._check_need(recover)
            case _:
                pass

    def _check_samples(self, report: StepDone) -> None:
        """Steps follow each other and each has its own samples: so each is used exactly once. What
        a step used follows from the state that it began with, not from its number."""
        assert self.world is not None, "a world is watched"
        size = self.world.job.batch.global_samples
        first, end = report.samples
        if first != (report.step - 1) * size or end != report.step * size:
            self.noticed(f"step {report.step} used samples {first} to {end - 1}")

    def _check_exposure(self) -> None:
        """A gang that trains has all homes there can be, or the state says that it has not."""
        world = self.world
        assert world is not None, "a world is watched"
        gang = world.gang
        assert gang is not None, "somebody trains"
        homes = min(world.job.protection.redundancy, len(gang.workers))
        short = sum(len(chosen) < homes for chosen in gang.plan.homes)
        if short and world.keeper.state.exposed_since_s is None:
            self.noticed(
                f"generation {gang.generation} trains, {short} units lack a home, "
                "and the state does not say so"
            )

    def _check_need(self, recover: Recover) -> None:
        """Steps are given up: was there no way to keep them, or more of them?"""
        world = self.world
        assert world is not None, "a world is watched"
        is_small = any(node.memory_bytes for node in world.nodes.values() if node.vaults)
        crowded = is_small and any(OVERFULL in why for why in recover.passed_over)
        if world.gang is None or world.job.protection.skip_rungs or crowded:
            return
        spared = "every unit is" if self._is_needless(world) else ""
        if not spared and recover.rung == "checkpoint":
            spared = self._spared_by_snapshot(world, recover.step)
        if spared:
            self.needless.append(world.now_s)
            if self._strict:
                self.noticed(f"back to a {recover.rung} though {spared} in memory")

    def _spared_by_snapshot(self, world: World, step: int) -> str:
        """A snapshot behind `step`, of what is committed, that the gang's vaults hold; those of who
        left before it trained are given up."""
        lineage = world.lineage
        for version in sorted(self._snapshots, reverse=True):
            if lineage.step(version) <= step or not lineage.holds(self._kept, version):
                continue
            found = [
                one
                for node in world.nodes.values()
                if node.reachable
                for vault in node.vaults.values()
                if vault.generation >= self._trained
                for one in vault.snapshots
                if one.version == version
            ]
            if is_whole(found, len(world.inventory.units)):
                return f"the snapshot of step {lineage.step(version)} is"
        return ""

    def _is_needless(self, world: World) -> bool:
        """Whether the vaults that are left hold the whole state.

        Those of who left before the last gang trained do not count: it may have committed more, and
        nobody else knows.
        """
        copies = [
            found
            for node in world.nodes.values()
            if node.reachable
            for worker, vault in node.vaults.items()
            if (found := vault.copies(worker, world.lineage)) is not None
            and found.generation >= self._trained
        ]
        settled = settle_step(copies, self._reported_step)
        if settled is None:
            return False
        sources = find_sources(copies, settled.step)
        whole = len(sources) == len(world.inventory.units)
        return whole and any(has_progress(vault, settled.step) for vault in copies)

    def _check_stale(self, before: JobState, event: Reported, after: JobState) -> None:
        generation = getattr(event.report, "generation", before.generation)
        if generation >= before.generation or after.decided or before.is_final:
            return
        same = (
            before.committed_step == after.committed_step
            and before.timeline == after.timeline
            and before.formed == after.formed
            and before.checkpoints == after.checkpoints
            and before.ended == after.ended
        )
        if not same:
            self.noticed(f"a message of generation {generation} had an effect: {event}")

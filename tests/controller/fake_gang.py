"""A pretend gang that keeps the protocol of a step: prepare, vote, apply; and its vaults."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fake_job import SAMPLES

from elasticmoe.messages.commands import FormGeneration
from elasticmoe.messages.worker import (
    CheckpointPart,
    Copies,
    GangEnded,
    GangFormed,
    SnapshotCopies,
    StepDone,
    WorkerParked,
)
from elasticmoe.plan.snapshots import plan_snapshots
from elasticmoe.plan.types import Plan

if TYPE_CHECKING:
    from fake_world import World

STEP_S, FORM_S, PARK_S, PART_S = 0.1, 0.02, 0.01, 0.04
APART_S = 0.001
"""How far apart the members of a gang are."""


@dataclass
class Vault:
    """A worker's memory; see `elasticmoe.vault`."""

    node: str
    generation: int = 0
    step: int = -1
    prepared: int = 0
    voted: int = 0
    units: dict[int, int] = field(default_factory=dict)
    torn: set[int] = field(default_factory=set)
    phase: str = ""
    collective: int = 0
    snapshots: list[SnapshotCopies] = field(default_factory=list)

    def copies(self, worker: int) -> Copies:
        whole: dict[int, list[int]] = {}
        for unit, step in sorted(self.units.items()):
            if unit not in self.torn:
                whole.setdefault(step, []).append(unit)
        return Copies(
            worker=worker,
            generation=self.generation,
            step=self.step,
            prepared=self.prepared,
            voted=self.voted,
            whole=tuple((step, tuple(whole[step])) for step in sorted(whole)),
            torn=tuple(sorted(self.torn)),
            phase=self.phase,
            collective=self.collective,
            snapshots=tuple(self.snapshots),
        )

    def keep(self, snapshot: SnapshotCopies) -> None:
        """Of two snapshots the older one goes."""
        self.snapshots = [*self.snapshots, snapshot][-2:]

    def restore(self, step: int) -> None:
        self.snapshots = [one for one in self.snapshots if one.step == step]
        self.units = dict.fromkeys((u for one in self.snapshots for u in one.whole), step)
        self.torn, self.prepared, self.voted = set(), 0, 0
        self.step = step if self.snapshots else -1

    def apply(self, share: float) -> None:
        """Update the first part of the units, or all and with them the progress."""
        step = self.voted
        behind = sorted(unit for unit, at in self.units.items() if at == step - 1)
        for unit in behind[: round(share * len(behind))]:
            self.units[unit] = step
        if share == 1:
            self.step = step

    def tear(self) -> None:
        """A crash in the middle of an update."""
        behind = [unit for unit, at in self.units.items() if at == self.voted - 1]
        if behind and self.step == self.voted - 1:
            self.torn.add(min(behind))

    def roll_forward(self, step: int) -> None:
        if self.prepared == step and self.step >= step - 1:
            for unit, at in self.units.items():
                if at == step - 1 and unit not in self.torn:
                    self.units[unit] = step
            self.step = step

    def holds(self, unit: int, step: int) -> bool:
        return self.units.get(unit) == step and unit not in self.torn


class Gang:
    """A generation as the workers see it."""

    snapshot_cost_s = 0.0
    """What the first member says that a snapshot took; 0: nothing."""

    def __init__(self, world: "World", command: FormGeneration) -> None:
        self.world, self.command = world, command
        self.generation = command.generation
        self.plan = Plan.from_json(command.plan)
        self.members = tuple(member.worker for member in self.plan.members)
        start = world.sealed[command.checkpoint] if command.checkpoint else 0
        self.step = command.memory.step if command.memory else start
        self.first_step = self.step + 1
        self.told: set[int] = set()
        self.opened: set[int] = set()
        self.done: set[int] = set()
        self.broken = self.ended = False
        self.actions: list[tuple[int, str, Plan | None]] = []
        self.agreed: list[tuple[int, str, Plan | None]] = []
        self.instructed = command.first_command - 1
        self.snapshot_s = 0.0
        self.found: dict[int, str] = {}
        """Worker -> what it found wrong with its memory."""

    def begin(self) -> None:
        """Members are told, open their memory, get what they lack, report, and train."""
        if self.command.memory is None or self.command.memory.is_snapshot:
            self.world.highest_voted = self.step
        self._check(self.step >= self.world.highest_voted, f"redoes step {self.step + 1}")
        if any(worker not in self.world.alive for worker in self.members):
            self.break_up("nobody there")
        self._after(0.2 * FORM_S, self._tell)
        self._after(0.4 * FORM_S, self._open)
        self._after(0.8 * FORM_S, self._move)
        self._after(FORM_S + STEP_S / 2, self._step)

    def break_up(self, reason: str, told: bool = False) -> None:
        """Everybody leaves; whoever hangs does not."""
        if self.broken:
            return
        self.broken = True
        for worker in self.members:
            self.world.later(PARK_S, lambda worker=worker: self._park(worker, reason))

    def instruct(self, number: int, action: str, plan: Plan | None) -> None:
        if number not in [known for known, _, _ in self.actions] and number > self.instructed:
            self.actions.append((number, action, plan))

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.world.later(delay_s, lambda: None if self.broken else action())

    def _each(self, delay_s: float, action: Callable[[int], None], *, even_broken: bool) -> None:
        """Let every member do something, one shortly after the other."""

        def act(worker: int) -> None:
            acts = worker in self.world.alive and worker not in self.world.stopped
            if acts and (even_broken or not self.broken):
                action(worker)

        for place, worker in enumerate(self.members):
            self.world.later(delay_s + APART_S * place, lambda worker=worker: act(worker))

    # -- forming

    def _tell(self) -> None:
        memory = self.command.memory
        self.world.reached("told", self.step, self.members[0])
        for heir, dead in memory.heirs if memory else ():
            if heir in self.world.alive:
                self.world.hand_over(dead, heir)
        self.told.update(worker for worker in self.members if worker in self.world.alive)
        for worker in self.told:
            self.world.vaults.setdefault(worker, Vault(self.world.alive[worker]))

    def _open(self) -> None:
        self.world.reached("opened", self.step, self.members[0])
        self.opened |= self.told
        for worker in self.members:
            if worker not in self.world.alive:
                continue  # it died just now
            for vault in self._readable(worker) if self.command.memory else ():
                if self.command.memory.is_snapshot:
                    vault.restore(self.step)
                else:
                    vault.roll_forward(self.step)

    def _move(self) -> None:
        memory = self.command.memory
        if memory is not None:
            source = self._readable(self.members[memory.progress_from])
            self._check(any(v.step == self.step for v in source), "nobody has the progress")
            for unit, position, others in memory.rebuilt:
                group, there = {unit, *others}, self._readable(self.members[position])
                kept = [set(p) for v in there for one in v.snapshots for p in one.parities]
                self._check(group in kept, f"no parity of {group} at {position}")
                lacking = [
                    one
                    for one in others
                    if not any(v.holds(one, self.step) for v in there)
                    and one not in [u for u, _, to in memory.gathered if to == position]
                ]
                self._check(not lacking, f"{position} cannot rebuild {unit} without {lacking}")
                self._fill(self.members[position], unit)
            for unit, origin, to in memory.moves:
                there = self._readable(self.members[origin])
                self._check(any(v.holds(unit, self.step) for v in there), f"{unit} not at {origin}")
                self._fill(self.members[to], unit)
        self.world.reached("moved", self.step, self.members[0])
        self._each(0, self._join, even_broken=False)

    def _join(self, worker: int) -> None:
        vault, memory = self.world.vaults[worker], self.command.memory
        position = self.members.index(worker)
        homes = [unit for unit, homes in enumerate(self.plan.homes) if position in homes]
        for unit in homes:
            if memory is None or any(v.holds(unit, self.step) for v in self._readable(worker)):
                self._fill(worker, unit)
            self._check(vault.holds(unit, self.step), f"worker {worker} lacks unit {unit}")
        vault.units = dict.fromkeys(homes, self.step)
        vault.torn, vault.step, vault.prepared, vault.voted = set(), self.step, 0, 0
        vault.generation = self.generation
        self.world.reached("joined", self.step, worker)
        late_s = self.world.formed_late_s.get(position, 0.0)
        self.world.report(late_s, worker, GangFormed(self.generation, worker, self.step + 1, {}))

    def _readable(self, worker: int) -> Sequence[Vault]:
        memory = self.command.memory
        adopted = [dead for reader, dead in memory.adopted if reader == worker] if memory else []
        for dead in adopted:
            there = self.world.vault_of(dead)
            node = self.world.alive.get(worker)
            self._check(there is not None and there.node == node, f"{worker} cannot read {dead}")
        found = [self.world.vaults.get(worker), *(self.world.vault_of(dead) for dead in adopted)]
        return [vault for vault in found if vault is not None]

    def _fill(self, worker: int, unit: int) -> None:
        vault = self.world.vaults[worker]
        vault.units[unit] = self.step
        vault.torn.discard(unit)

    def _check(self, holds: bool, promise: str) -> None:
        if not holds:
            self.world.broken_promises.append(f"generation {self.generation}: {promise}")

    # -- one step

    def _step(self) -> None:
        if self.ended or self is not self.world.gang:
            return
        step = self.step + 1
        if step > self.world.job.schedule.steps:
            self._end(self.step)
            return
        if step in self.world.fails_at:
            self.world.fail(self.members[0], self.world.fails_at[step], step)
            return
        self.done = set()
        self.world.reached("begun", step, self.members[0])
        slow_s = self._pause_s(step)
        self._each(
            0.6 * STEP_S + slow_s, lambda worker: self._prepare(worker, step), even_broken=False
        )

    def _pause_s(self, step: int) -> float:
        slow_s, self.world.pause_s = self.world.pause_s, 0.0
        if step == self.first_step:
            slow_s += self.world.first_pause_s
        if step % self.world.job.checkpoint.interval_steps == 0:
            slow_s += self.world.save_pause_s
        return slow_s

    def _prepare(self, worker: int, step: int) -> None:
        vault = self.world.vaults[worker]
        vault.prepared, vault.phase, vault.collective = step, "vote", step
        self.world.reached("prepared", step, worker)
        vaults = [self._vault(member) for member in self.members]
        if all((one.generation, one.prepared) == (self.generation, step) for one in vaults):
            self.agreed, self.actions = self.actions, []
            self._each(0.005, lambda worker: self._vote(worker, step), even_broken=False)

    def _vote(self, worker: int, step: int) -> None:
        vault = self.world.vaults[worker]
        vault.voted, vault.phase = step, "apply"
        self.world.reached("voted", step, worker)
        self.world.later(0.004, lambda: self._apply(worker, step, 0.5))
        self.world.later(0.008, lambda: self._apply(worker, step, 1))

    def _apply(self, worker: int, step: int, share: float) -> None:
        vault = self.world.vaults.get(worker)
        working = worker in self.world.alive and worker not in self.world.stopped
        if vault is None or not working or vault.voted != step or vault.step == step:
            return
        vault.apply(share)
        self.world.reached("half" if share < 1 else "applied", step, worker)
        if share < 1 or self.broken:
            return
        if worker == self.members[0]:
            self._report_step(step)
        self.done.add(worker)
        if len(self.done) == len(self.members):
            self._committed(step)

    def _report_step(self, step: int) -> None:
        self.instructed = max([self.instructed, *(number for number, _, _ in self.agreed)])
        samples = ((step - 1) * SAMPLES, step * SAMPLES)
        metrics = {"skipped": step in self.world.skipped}
        done = StepDone(
            self.generation,
            step,
            STEP_S,
            1.0 / step,
            metrics,
            samples,
            self.instructed,
            self.snapshot_s,
        )
        self.snapshot_s = 0.0
        self.world.report(self.world.report_s, self.members[0], done)

    def _committed(self, step: int) -> None:
        self.step = step
        kinds = [action for _, action, _ in self.agreed]
        for _, action, plan in self.agreed:
            if action == "protect" and plan is not None:
                self._protect(plan)
            elif action == "snapshot":
                self._keep_snapshot(step)
        last = step == self.world.job.schedule.steps or "stop" in kinds
        if not last and "pause" in kinds:
            self._end(step)
            return
        wanted = last or "checkpoint" in kinds
        if wanted or step % self.world.job.checkpoint.interval_steps == 0:
            self._save(step)
        if last:
            self._end(step)
        else:
            self._after(0.2 * STEP_S, self._step)

    def _protect(self, plan: Plan) -> None:
        for unit, homes in enumerate(plan.homes):
            for position in homes:
                self._fill(self.members[position], unit)
        self.plan = plan

    def _keep_snapshot(self, step: int) -> None:
        self.snapshot_s = self.snapshot_cost_s
        whole: dict[int, set[int]] = {}
        parities: dict[int, list[tuple[int, ...]]] = {}
        for unit, homes in enumerate(self.plan.homes):
            whole.setdefault(homes[0], set()).add(unit)
        parity = self.world.job.protection.snapshots == "parity"
        for group in plan_snapshots(self.plan, self.world.inventory, parity=parity):
            if len(group.units) == 1:
                whole.setdefault(group.keeper, set()).update(group.units)
            else:
                parities.setdefault(group.keeper, []).append(group.units)
        for position, worker in enumerate(self.members):
            kept = tuple(sorted(whole.get(position, ())))
            snapshot = SnapshotCopies(step, kept, tuple(parities.get(position, ())))
            self._vault(worker).keep(snapshot)

    def _save(self, step: int) -> None:
        for worker in self.members:
            files = [{"path": f"{step}/{worker}"}]
            part = CheckpointPart(self.generation, worker, step, files, {"step": step})
            still = lambda: not self.broken or self.ended  # noqa: E731
            self.world.report(self.world.part_s, worker, part, still)

    def _end(self, step: int) -> None:
        at_last = step == self.world.job.schedule.steps
        if at_last and self.command.memory is not None and step == self.command.memory.step:
            self._save(step)  # nothing was left to do: it is saved all the same
        self.ended = True
        for worker in self.members:
            kept = tuple(self._vault(worker).snapshots)
            ended = GangEnded(self.generation, worker, step, kept, self.instructed)
            self.world.report(0.01, worker, ended)

    def _vault(self, worker: int) -> Vault:
        return self.world.vaults.get(worker) or Vault("")

    def _park(self, worker: int, reason: str) -> None:
        hangs = worker in self.world.stuck or worker in self.world.stopped
        if worker not in self.world.alive or hangs or self.ended:
            return  # at the end of its gang it has nothing to leave
        vault = self.world.vaults.get(worker)
        if vault is not None and vault.voted == vault.step + 1:
            vault.apply(1)  # past the vote the update runs to its end
        copies = vault.copies(worker) if vault is not None and worker in self.opened else None
        code = "corrupted" if worker in self.found else ""
        reason = self.found.get(worker, reason)
        self.world.report(0, worker, WorkerParked(self.generation, worker, 0, reason, copies, code))

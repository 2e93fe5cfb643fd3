"""A gang of forked workers that recovers as the controller would, by hand."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from forked import Worker, form
from gangs import tiny_job
from numpy.typing import NDArray

from elasticmoe.controller.copies import Settled, find_sources, has_progress, settle_step
from elasticmoe.controller.memory import plan_recall
from elasticmoe.controller.number_map import NumberMap
from elasticmoe.controller.roster import Worker as ReadyWorker
from elasticmoe.controller.state import Job, JobState, KnownVault, Roster, WorkerStatus
from elasticmoe.messages.worker import (
    BreakGang,
    Copies,
    FromMemory,
    GangEnded,
    GangFormed,
    Instruct,
    StepDone,
    WorkerParked,
)
from elasticmoe.model.inventory import build_inventory
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.moves import plan_moves
from elasticmoe.plan.types import Member, Plan
from elasticmoe.runtime.pack import pack
from elasticmoe.spec.job import JobSpec
from elasticmoe.vault.contents import read_copies
from elasticmoe.vault.vault import Vault

DTYPE = {"fp32": np.float32, "bf16": np.float32, "fp64": np.float64}
State = dict[int, NDArray[np.floating]]
"""Master weights and moments, by unit."""


def make_job(directory: Path, precision: str, stages: int = 1, redundancy: int = 2) -> JobSpec:
    text = directory / "corpus.txt"
    if not text.exists():
        bytes_ = np.random.default_rng(0).integers(97, 123, 20_000, dtype=np.uint8)
        text.write_bytes(bytes(bytes_))
        pack([text], directory / "data", holdout=0.0)
    return tiny_job(
        model={"vocab_size": 256, "precision": precision},
        data={"sources": [{"path": str(directory / "data")}]},
        schedule={"steps": 100_000, "kind": "constant", "warmup_steps": 0},  # not of its length
        checkpoint={"interval_steps": 50_000},
        parallel={"stages": stages},
        protection={"redundancy": redundancy, "hash_interval_steps": 5},
        storage={"dir": str(directory / "job")},
    )


class Crew:
    """A gang and its vaults; recovers as the controller would."""

    def __init__(self, job: JobSpec, plan: Plan) -> None:
        self.job, self.plan = job, plan
        self.inventory = build_inventory(job.model, job.data.seq_len)
        self.workers = [Worker(job, number) for number in range(len(plan.members))]
        self.numbers = len(plan.members)
        self.generation, self.committed = 1, 0
        form(plan, self.workers, 1)

    def train(self, steps: int) -> None:
        """Wait until so many more steps are committed."""
        until = self.committed + steps
        while self.committed < until:
            done = self.workers[0].next(StepDone)
            assert done.step in (self.committed, self.committed + 1)
            self.committed = done.step

    def kill(self, *victims: int) -> None:
        for victim in victims:
            self.workers[victim].kill()

    def inventory_of_copies(self, dead: tuple[int, ...]) -> list[Copies]:
        """Break the generation; what survived it."""
        found = []
        for member, worker in enumerate(self.workers):
            if member not in dead:
                worker.tell(BreakGang(self.generation, peer_died=True))
        for member, worker in enumerate(self.workers):
            if member in dead:
                copies = read_copies(Vault(worker.vault), worker.number, is_alive=False)
            else:
                copies = worker.next(WorkerParked).copies
                assert copies is not None
            found.append(copies)
        return found

    def go_on_after(self, known: list[Copies | None]) -> Settled:
        """Nobody died; some have parked by themselves."""
        for member, worker in enumerate(self.workers):
            if known[member] is None:
                worker.tell(BreakGang(self.generation, peer_died=True))
                known[member] = worker.next(WorkerParked).copies
        copies = [one for one in known if one is not None]
        settled = settle_step(copies, self.committed)
        assert settled is not None
        position = {copy.worker: member for member, copy in enumerate(copies)}
        self._go_on(self.plan, copies, settled, position)
        return settled

    def replace(self, *dead: int, forms: bool = True) -> Settled:
        """New processes take over the vaults of the dead; `forms`: and the gang forms."""
        copies = self.inventory_of_copies(dead)
        settled = settle_step(copies, self.committed)
        assert settled is not None
        for member in dead:
            self.workers[member] = self._heir_of(member)
        position = {copy.worker: member for member, copy in enumerate(copies)}
        self._go_on(self.plan, copies, settled, position, forms=forms)
        return settled

    def replace_from_peers(
        self, dead: int, *, forms: bool = True, meanwhile: Callable[[], None] = lambda: None
    ) -> Settled:
        """A new process without the dead one's memory, as on another node: it gets copies.

        Args:
            meanwhile: called when everybody has parked.
        """
        copies = [c for at, c in enumerate(self.inventory_of_copies((dead,))) if at != dead]
        meanwhile()
        settled = settle_step(copies, self.committed)
        assert settled is not None
        self.workers[dead] = Worker(self.job, self.numbers)
        self.numbers += 1
        position = {
            worker.number: member for member, worker in enumerate(self.workers) if member != dead
        }
        self._go_on(self.plan, copies, settled, position, forms=forms)
        return settled

    def fail_over(self, *dead: int, keep_vaults: bool = False, forms: bool = True) -> Settled:
        """The survivors go on alone; a survivor reads the vaults of the dead, if they are kept."""
        copies = self.inventory_of_copies(dead)
        left = [member for member in range(len(self.workers)) if member not in dead]
        if not keep_vaults:
            copies = [copies[member] for member in left]
        settled = settle_step(copies, self.committed)
        assert settled is not None
        position = {self.workers[member].number: at for at, member in enumerate(left)}
        adopted = [self.workers[member] for member in dead] if keep_vaults else []
        present = {
            unit: tuple(position[w] for w in workers if w in position)
            for unit, workers in find_sources(copies, settled.step).items()
        }
        position |= {worker.number: 0 for worker in adopted}
        self.workers = [self.workers[member] for member in left]
        members = tuple(Member(w.number, self.plan.members[0].node, "d") for w in self.workers)
        self.plan = make_plan(self.job, self.inventory, members, present=present)
        self._go_on(self.plan, copies, settled, position, adopted, forms=forms)
        return settled

    def copies_of(self, member: int) -> Copies:
        """What a member's vault holds at this moment."""
        worker = self.workers[member]
        return read_copies(Vault(worker.vault), worker.number, is_alive=True)

    def go_back(self, lost: int, copies: list[Copies], step: int) -> FromMemory:
        """A member's node is gone; the others go back to a snapshot, as the controller says."""
        del self.workers[lost], copies[lost]
        places = [member for place, member in enumerate(self.plan.members) if place != lost]
        return self._put_back(places, copies, step)

    def go_back_again(self, dead: int, copies: list[Copies], step: int) -> FromMemory:
        """A member's process died on the way back; another one of its node reads what it left."""
        self.workers[dead] = self._heir_of(dead)
        return self._put_back(list(self.plan.members), copies, step)

    def go_back_together(self, copies: list[Copies], step: int) -> FromMemory:
        """Nobody is gone, and all go back to a snapshot."""
        return self._put_back(list(self.plan.members), copies, step)

    def _heir_of(self, dead: int) -> Worker:
        heir = Worker(self.job, self.numbers)
        os.close(heir.vault)
        heir.vault = self.workers[dead].vault
        self.numbers += 1
        return heir

    def _put_back(self, places: list[Member], copies: list[Copies], step: int) -> FromMemory:
        members = tuple(
            Member(worker.number, place.node, place.domain)
            for worker, place in zip(self.workers, places, strict=True)
        )
        idle = [ReadyWorker(m.worker, m.node, WorkerStatus.IDLE, 0.0) for m in members]
        known = [(c.worker, KnownVault(m.node, c)) for m, c in zip(members, copies, strict=True)]
        state = JobState(
            job=Job(self.job, self.inventory),
            workers=Roster().with_workers(idle),
            vaults=NumberMap(dict(known)),
        )
        self.plan, memory = plan_recall(
            state, members, step=step, replaced={}, plan=None, is_snapshot=True
        )
        self.generation += 1
        self.committed = step
        form(self.plan, self.workers, self.generation, memory)
        return memory

    def formed(self) -> None:
        """All members have joined the generation."""
        for worker in self.workers:
            assert worker.next(GangFormed).step == self.committed + 1

    def _go_on(
        self,
        plan: Plan,
        copies: list[Copies],
        settled: Settled,
        position: dict[int, int],
        adopted: list[Worker] | None = None,
        *,
        forms: bool = True,
    ) -> None:
        step = settled.step
        sources = {
            unit: tuple(sorted({position[worker] for worker in workers if worker in position}))
            for unit, workers in find_sources(copies, step).items()
        }
        first = next(c for c in copies if has_progress(c, step) and c.worker in position)
        memory = FromMemory(step, plan_moves(plan, self.inventory, sources), position[first.worker])
        self.generation += 1
        self.committed = step
        extra = tuple((w.number, w.vault_path) for w in adopted or [])
        form(plan, self.workers, self.generation, memory, adopted=extra)
        for worker in self.workers if forms else ():
            assert worker.next(GangFormed).step == step + 1

    def finish(self, step: int, command: int = 1) -> State:
        """Stop at about a step; the state of all units, from the vaults."""
        while self.committed < step - 1:
            self.train(1)
        for worker in self.workers:
            worker.tell(Instruct(self.generation, command, "stop"))
        ended = {worker.next(GangEnded).step for worker in self.workers}
        assert len(ended) == 1
        self.committed = ended.pop()
        return self.state()

    def state(self) -> State:
        found: State = {}
        dtype = DTYPE[self.job.model.precision]
        starts = np.cumsum([0, *(unit.numel for unit in self.inventory.units)])
        for worker in self.workers:
            vault = Vault(worker.vault)
            for unit in np.flatnonzero(vault.steps_U() == self.committed):
                where = slice(starts[unit], starts[unit + 1])
                kinds = [
                    vault.array(dtype, (vault.layout.numel,), offset)[where]
                    for offset in vault.layout.tensors[:3]
                ]
                mine = np.stack(kinds)
                if unit in found:
                    assert np.array_equal(found[unit], mine), f"homes of unit {unit} differ"
                found[int(unit)] = mine.copy()
        assert len(found) == len(self.inventory.units)
        return found

    def close(self) -> None:
        for worker in self.workers:
            try:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def undisturbed(job: JobSpec, plan: Plan, step: int, crews: list[Crew]) -> State:
    """The state after exactly `step` steps without faults."""
    bounded = job.model_copy(update={"schedule": job.schedule.model_copy(update={"steps": step})})
    crew = Crew(bounded, plan)
    crews.append(crew)
    for worker in crew.workers:
        assert worker.next(GangEnded).step == step
    crew.committed = step
    return crew.state()

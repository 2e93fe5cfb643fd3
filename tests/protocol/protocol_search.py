"""Every way in which faults can meet a gang, and what must hold after each.

Moments between two collectives belong to one member alone, so interleavings need not be walked
one by one: what a fault finds is one moment per member, in any combination in which nobody is past
a collective that somebody has not entered.
"""

import gc
from typing import NamedTuple

from protocol_faults import (
    Ending,
    check_finished_alike,
    check_formed,
    check_recoverable,
    endings,
    fall,
    settle_in,
)
from protocol_run import BrokenPromiseError, Track, recover, train
from protocol_vault import Case
from protocol_world import (
    Decision,
    Unrecoverable,
    World,
    begin,
    decide,
    plan_homes,
    rotations,
    settle,
    turn_world,
)

from elasticmoe.controller.copies import Settled

Cause = tuple[World, tuple[Ending | Decision, ...]]


class Outcome(NamedTuple):
    """What a search saw."""

    violation: str
    """The broken promise and the way to it; empty: none."""
    broken: int
    """Different worlds that faults left."""
    trained: int
    """Different gangs that trained."""
    unrecoverable: int
    """Worlds of these that memory could not bring back, and need not."""


class Search:
    """Breadth first by number of faults, so that the first violation is one of the shortest."""

    def __init__(self, case: Case, max_faults: int) -> None:
        self.case = case
        self._causes: dict[World, Cause] = {}
        self._broken: list[dict[World, None]] = [{} for _ in range(max_faults + 1)]
        self._trained: list[dict[World, None]] = [{} for _ in range(max_faults + 1)]
        self._seen: set[World] = set()
        self._turns = rotations(case)
        self._unrecoverable = 0
        self._deciding: tuple[Decision, ...] = ()
        """What is being tried."""

    def run(self) -> Outcome:
        """Search until a promise breaks or all has been seen."""
        was_collecting = gc.isenabled()
        gc.disable()  # nothing here is cyclic, and there is a lot of it
        try:
            violation = self._search()
        finally:
            if was_collecting:
                gc.enable()
        return Outcome(
            violation,
            sum(map(len, self._broken)),
            sum(map(len, self._trained)),
            self._unrecoverable,
        )

    def _search(self) -> str:
        world = begin(self.case)
        self._add(self._trained, 0, world, None)
        try:
            for faults in range(len(self._broken)):
                for world in self._broken[faults]:
                    self._recover(world, faults)
                for world in self._trained[faults]:
                    self._train(world, faults)
        except BrokenPromiseError as error:
            last = [line for decision in self._deciding for line in _tell(decision)]
            return "\n".join([*self._story(world), *last, f"=> {error}"])
        return ""

    def _add(
        self, where: list[dict[World, None]], faults: int, world: World, cause: Cause | None
    ) -> None:
        if world in self._seen:
            return
        self._seen.update(turn_world(self.case, world, turn) for turn in self._turns)
        where[faults][world] = None
        if cause is not None:
            self._causes[world] = cause

    def _train(self, world: World, faults: int) -> None:
        self._deciding = ()
        members = tuple(worker for worker, lives in enumerate(world.alive) if lives)
        tracks = train(self.case, world, members, plan_homes(self.case, members))
        check_finished_alike(tracks)
        self._fall(world, world, tracks, faults)

    def _recover(self, world: World, faults: int) -> None:
        is_hopeless = False
        some_died = any(world.alive) and not all(world.alive)
        for settled in self._settle(world):
            for replace in (True, False) if some_died else (True,):
                self._deciding = ()
                decision = decide(self.case, world, settled, replace=replace)
                if isinstance(decision, Unrecoverable):
                    check_recoverable(self.case, world, decision.reason)
                    is_hopeless = True
                elif decision is not None:
                    self._form(world, decision, faults)
        self._unrecoverable += is_hopeless

    def _settle(self, world: World) -> list[Settled | None]:
        """What is decided, whether or not the controller knows what was reported."""
        known = sorted({world.committed, world.reported})
        found = [settle(self.case, world, committed) for committed in known]
        return list({one and one.step: one for one in found}.values())

    def _form(self, world: World, decision: Decision, faults: int) -> None:
        self._deciding = (decision,)
        is_last = faults == len(self._broken) - 1
        tracks = recover(self.case, world, decision, only_end=is_last)
        check_formed(self.case, world, decision, tracks)
        if is_last:
            return
        trained = settle_in(self.case, world, decision, tracks)
        self._add(self._trained, faults, trained, (world, (decision,)))
        forming = world._replace(generation=world.generation + 1, settled=decision.step)
        self._fall(world, forming, tracks, faults, decision)

    def _fall(
        self, world: World, during: World, tracks: list[Track], faults: int, *before: Decision
    ) -> None:
        left = len(self._broken) - 1 - faults
        for ending in endings(self.case, during, tracks, left) if left else ():
            after = fall(self.case, during, ending)
            self._add(self._broken, faults + ending.faults, after, (world, (*before, ending)))

    def _story(self, world: World) -> list[str]:
        lines: list[str] = []
        while world in self._causes:
            world, causes = self._causes[world]
            lines[:0] = [line for cause in causes for line in _tell(cause)]
        return [f"{self.case.workers} worker(s) train from the seed", *lines]


def _tell(cause: Ending | Decision) -> list[str]:
    if isinstance(cause, Decision):
        return [
            f"decided: go on from step {cause.step} ({cause.reason}) with workers "
            f"{list(cause.members)}, moves {list(cause.moves)}"
        ]
    lines = [f"  worker {worker} {fate} after: {at.doing}" for worker, fate, at in cause.fates]
    lost = f", nodes {list(cause.nodes)} lost" if cause.nodes else ""
    return [f"{cause.faults} fault(s){lost}", *lines]

"""The same protocol, one action at a time and at random, in larger gangs and for longer."""

from typing import ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from protocol_faults import (
    KILLED,
    LOST,
    PARKED,
    Ending,
    check_formed,
    check_recoverable,
    fall,
    settle_in,
)
from protocol_run import BrokenPromiseError, Moment, Track, recover, train
from protocol_vault import Bug, Case
from protocol_world import Decision, Unrecoverable, begin, decide, plan_homes, settle

NUMBER = st.integers(0, 999)


class StepMachine(RuleBasedStateMachine):
    """A gang, whoever runs ahead in it, and whatever fails."""

    bugs: ClassVar[frozenset[Bug]] = frozenset()
    decision: Decision | None = None

    @initialize(
        workers=st.integers(1, 6),
        redundancy=st.integers(1, 3),
        steps=st.integers(1, 4),
        nodes=st.lists(st.integers(0, 5), min_size=6, max_size=6),
        units_per_worker=st.integers(1, 2),
        skipped=st.frozensets(st.integers(1, 4), max_size=1),
        flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    )
    def form_from_the_seed(
        self,
        workers: int,
        redundancy: int,
        steps: int,
        nodes: list[int],
        units_per_worker: int,
        skipped: frozenset[int],
        flags: tuple[bool, bool, bool],
    ) -> None:
        self.case = Case(
            workers,
            redundancy,
            steps,
            tuple(nodes[:workers]),
            units_per_worker,
            skipped,
            *flags,
            self.bugs,
        )
        self.world = begin(self.case)
        self._train(tuple(range(workers)))

    @rule(worker=NUMBER, moments=st.integers(1, 12))
    def run_ahead(self, worker: int, moments: int) -> None:
        """One worker goes on as far as the others let it."""
        track = self.tracks[worker % len(self.tracks)]
        for _ in range(moments):
            if track.worker not in self.fates and self._may_go_on(track):
                self.at[track.worker] += 1

    @rule(moments=st.lists(st.integers(0, 40), min_size=6, max_size=6))
    def spread_out(self, moments: list[int]) -> None:
        """Everybody goes on, some further than others."""
        for track, wanted in zip(self.tracks, moments, strict=False):
            self.run_ahead(self.tracks.index(track), wanted)

    @rule(rounds=st.integers(1, 6))
    def run_together(self, rounds: int) -> None:
        """Everybody goes on to the next collectives."""
        for _ in range(rounds):
            for track in self.tracks:
                if track.worker not in self.fates and self._may_go_on(track):
                    self.at[track.worker] += 1
                    while not self._moment(track).collective:
                        self.at[track.worker] += 1

    @rule(worker=NUMBER, broken=NUMBER)
    def kill(self, worker: int, broken: int) -> None:
        """Maybe while it does what is left to do when a collective has failed."""
        track = self.tracks[worker % len(self.tracks)]
        if track.worker in self.fates:
            return
        moment = self._moment(track)
        if self.faults and moment.broken and broken % 2:
            moment = moment.broken[broken // 2 % len(moment.broken)]
        self.fates[track.worker] = (KILLED, moment)
        self.faults += 1

    @rule(worker=NUMBER)
    def lose_node(self, worker: int) -> None:
        """With all processes and vaults on it."""
        node = self.case.node(worker % self.case.workers)
        near = [worker for worker in range(self.case.workers) if self.case.node(worker) == node]
        members = {track.worker for track in self.tracks}
        if node in self.lost or not any(self.world.vaults[at] or at in members for at in near):
            return
        self.lost.add(node)
        for track in self.tracks:
            if self.case.node(track.worker) == node:
                self.fates[track.worker] = (LOST, self._moment(track))
        self.faults += 1

    @precondition(lambda self: not self.faults)
    @rule()
    def cut(self) -> None:
        """All connections fail, and nobody dies."""
        self.faults += 1

    @precondition(lambda self: self.faults)
    @rule(replace=st.booleans(), is_known=st.booleans())
    def recover(self, replace: bool, is_known: bool) -> None:
        """Everybody alive parks; the controller decides."""
        for track in self.tracks:
            if track.worker not in self.fates:
                while not self._moment(track).collective:
                    self.at[track.worker] += 1
                moment = self._moment(track)
                parked = moment.broken[-1] if moment.broken else moment
                self.fates[track.worker] = (PARKED, parked)
        fates = tuple((worker, *fate) for worker, fate in self.fates.items())
        ending = Ending(self.faults, tuple(self.lost), fates)
        self.world = world = fall(self.case, self.world, ending)
        settled = settle(self.case, world, world.reported if is_known else world.committed)
        decision = decide(self.case, world, settled, replace=replace or not any(world.alive))
        decision = decision or decide(self.case, world, settled, replace=True)
        if isinstance(decision, Unrecoverable):
            check_recoverable(self.case, world, decision.reason)
            self.world = begin(self.case)  # the checkpoint
            self._train(tuple(range(self.case.workers)))
            return
        assert decision is not None
        self.decision = decision
        self._start(recover(self.case, world, decision))
        check_formed(self.case, world, decision, self.tracks)
        generation = world.generation + 1
        self.world = world._replace(generation=generation, settled=decision.step)

    @precondition(lambda self: self.decision is not None and not self.faults)
    @rule()
    def train_on(self) -> None:
        """All members have formed the generation: it trains."""
        decision = self.decision
        assert decision is not None
        for track in self.tracks:
            while self.at[track.worker] + 1 < len(track.moments):
                self.at[track.worker] += 1
        self.world = settle_in(self.case, self.world, decision, self.tracks)
        self._train(decision.members)

    def _train(self, members: tuple[int, ...]) -> None:
        self.decision = None
        self._start(train(self.case, self.world, members, plan_homes(self.case, members)))

    def _start(self, tracks: list[Track]) -> None:
        self.tracks = tracks
        self.at = {track.worker: 0 for track in tracks}
        self.fates: dict[int, tuple[str, Moment]] = {}
        self.lost: set[int] = set()
        self.faults = 0

    def _moment(self, track: Track) -> Moment:
        return track.moments[self.at[track.worker]]

    def _may_go_on(self, track: Track) -> bool:
        if self.at[track.worker] + 1 == len(track.moments):
            return False
        return not self._moment(track).collective or all(
            self._entered(other) >= self._entered(track) for other in self.tracks
        )

    def _entered(self, track: Track) -> int:
        moments = track.moments[: self.at[track.worker] + 1]
        return sum(1 for moment in moments if moment.collective)


StepMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
HUNT = settings(
    max_examples=300,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.generate],  # the search makes the short traces
)
test_larger_gangs_keep_every_promise = StepMachine.TestCase


@pytest.mark.parametrize(
    "bug", [Bug.SKIP_PREPARING, Bug.NO_VOTE, Bug.FORGET_BIAS], ids=lambda bug: bug.name.lower()
)
def test_machine_catches_planted_bug(bug: Bug) -> None:
    machine = type("Planted", (StepMachine,), {"bugs": frozenset({bug})})

    with pytest.raises(BrokenPromiseError):
        run_machine(machine, settings=HUNT)

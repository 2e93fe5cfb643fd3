"""Strikes when it is time, sees the job's answer, undoes what must be undone."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from chaos.errors import ChaosError, GoneError, StuckError
from chaos.nemeses.base import Answer, Blow, Nemesis
from chaos.scenario import Choice, Scenario
from chaos.schedule import Planned, plan_faults
from chaos.world import World

POLL_S: Final = 0.005
POLL_RECOVERY_S: Final = 0.0005
"""Whoever wants to strike in the middle of a recovery of 40 ms has to look often."""
START_PATIENCE_S: Final = 180.0
"""From the start of a job to its first step: Ray and imports, on a busy machine."""
OBSTACLE_PATIENCE_S: Final = 120.0
"""How long a fault waits until it is possible, a checkpoint to damage for example."""
ANSWER_PATIENCE_S: Final = 180.0
"""The job is called stuck after that. A checker's bound is much shorter."""
END_PATIENCE_S: Final = 180.0
GONE_TRIES: Final = 2000
"""Each waits for news of the job; a death is in the journal some 20 ms later, a lost node 4 s."""
UNMOVED_LINES: Final = 100
"""A job that commits so many steps after a fault was undone will not answer it any more: it goes
on as if nothing had been. A checker complains of that."""


@dataclass(slots=True)
class Strike:
    """A fault that happened, and what the job answered."""

    number: int
    nemesis: str
    victims: tuple[str, ...]
    evidence: str
    answer: str
    """What counts as one; see `Answer`."""
    step: int
    """Newest step that was committed and reported before."""
    generation: int
    """The newest that had been opened."""
    term: int
    phase: str
    at_s: float
    """Wall clock."""
    lines: int
    """Lines of `steps.jsonl` before it."""
    answered_s: float | None = None
    """From the fault to the first step of the answer."""
    undone: str = ""
    undone_s: float | None = None
    """From the fault to its undoing."""


@dataclass(slots=True)
class _Open:
    """A strike that is not over yet."""

    strike: Strike
    began_s: float
    blow: Blow
    undo_at_s: float | None
    lines: int
    """Lines of `steps.jsonl` behind which an answer is looked for."""
    term_seen: bool = False
    over_line: int = 0
    """Lines when it struck, or was undone."""


@dataclass(slots=True)
class Conductor:
    """Runs one scenario against one job."""

    world: World
    scenario: Scenario
    strikes_file: Path
    say: Callable[[str], None] = lambda text: None
    until_s: float = float("inf")
    """When the run's time is over, by the monotonic clock."""
    strikes: list[Strike] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Draws of a mix that were not possible when they came."""
    _open: list[_Open] = field(default_factory=list)
    _answered_line: int = 0
    _entered: Counter[str] = field(default_factory=Counter)
    """Phases that the job had entered before the last strike, and how often."""

    def run(self) -> None:
        """Strike all faults, wait for the answers, let the job come to its end.

        Raises:
            NotFiredError: a fault left no proof.
            StuckError: the job committed nothing for too long.
        """
        try:
            self._wait(lambda: self.world.live.committed > 0, START_PATIENCE_S, "a first step")
            for planned in plan_faults(self.scenario):
                self._wait_until_due(planned)
                if self.world.live.is_over:
                    return
                self._strike(planned)
            self._wait(lambda: not self._open, ANSWER_PATIENCE_S, "an answer to the last fault")
            self._end()
        finally:
            self._undo_all()
            self._write()

    def _end(self) -> None:
        live = self.world.live
        if live.is_over:
            return
        if self.scenario.job.end == "stop":
            self._wait_for_lines(live.lines + self.scenario.job.tail_steps)
            self.world.ask_to_stop()
            self._wait(lambda: live.is_over, END_PATIENCE_S, "its end, after it was asked to stop")
        else:
            self._wait_for_end()

    def _wait_for_end(self) -> None:
        live = self.world.live
        while not live.is_over and live.phase != "over":
            self._wait_for_lines(live.lines + 1)
        self._wait(lambda: live.is_over, END_PATIENCE_S, "its outcome")

    def _wait_for_lines(self, lines: int) -> None:
        """Wait for so many committed steps, each of which may take its time."""
        live = self.world.live
        while live.lines < lines and not live.is_over and live.phase != "over":
            more = live.lines + 1
            self._wait(
                lambda more=more: live.lines >= more or live.phase == "over",  # type: ignore[misc]
                ANSWER_PATIENCE_S,
                "the next step",
            )

    def _wait_until_due(self, planned: Planned) -> None:
        live, fault = self.world.live, planned.fault
        if fault.recovering is not None:
            phase, before = fault.recovering, self._entered
            self._wait(
                lambda: live.entered[phase] > before[phase],
                ANSWER_PATIENCE_S,
                f"it to be {phase}",
                POLL_RECOVERY_S,
            )
            return
        step = planned.step or 0
        while live.committed < step and not live.is_over:
            self._wait_for_lines(live.lines + 1)
        if not fault.overlap:
            self._wait(lambda: not self._open, ANSWER_PATIENCE_S, "an answer to the fault before")
            self._wait(
                lambda: (
                    live.phase == "training"
                    and live.lines >= self._answered_line + fault.rest_steps
                ),
                ANSWER_PATIENCE_S,
                "it to train again",
            )

    # -- striking

    def _strike(self, planned: Planned) -> None:
        """Strike; a victim that has just gone by itself is replaced by another one."""
        for _ in range(GONE_TRIES):
            try:
                self._strike_once(planned)
            except GoneError:
                self._look()
                time.sleep(POLL_S)
            else:
                return
        self._strike_once(planned)

    def _strike_once(self, planned: Planned) -> None:
        live = self.world.live
        choice, nemesis, rng = self._possible(planned)
        strike = Strike(
            number=planned.number,
            nemesis=choice.nemesis,
            victims=(),
            evidence="",
            answer=nemesis.answer.value,
            step=live.committed,
            generation=live.generation,
            term=live.term,
            phase=live.phase,
            at_s=time.time(),
            lines=live.lines,
        )
        began_s = time.monotonic()
        self._entered = Counter(live.entered)
        blow = nemesis.strike(self.world, choice.target, rng)
        strike.victims, strike.evidence = blow.victims, blow.evidence
        self.strikes.append(strike)
        undo_at_s = began_s + nemesis.for_s if blow.undo is not None else None
        self._open.append(_Open(strike, began_s, blow, undo_at_s, live.lines, over_line=live.lines))
        self._write()
        self.say(
            f"{strike.number:4}  step {strike.step:5}  {strike.nemesis}: "
            f"{', '.join(strike.victims)} ({strike.evidence})"
        )

    def _possible(self, planned: Planned) -> tuple[Choice, Nemesis, np.random.Generator]:
        """Draw what to do; in a mix what cannot be done now is drawn again."""
        rng = planned.rng()
        done = Counter(strike.nemesis for strike in self.strikes)
        left = [
            choice
            for choice in planned.fault.strike
            if choice.at_most is None or done[choice.nemesis] < choice.at_most
        ]
        if not left:
            raise ChaosError(f"fault {planned.number}: every choice was struck at_most often")
        why: dict[str, str] = {}
        deadline_s = min(time.monotonic() + OBSTACLE_PATIENCE_S, self.until_s)
        while time.monotonic() < deadline_s:
            open_choices = list(left)
            while open_choices:
                weights = np.array([choice.weight for choice in open_choices])
                index = int(rng.choice(len(open_choices), p=weights / weights.sum()))
                choice = open_choices.pop(index)
                nemesis = choice.made()
                obstacle = nemesis.obstacle(self.world, choice.target)
                if not obstacle:
                    return choice, nemesis, rng
                if choice.nemesis not in why:
                    self.skipped[choice.nemesis] += 1
                why[choice.nemesis] = obstacle
            self._look()
            time.sleep(POLL_S)
        raise ChaosError(f"fault {planned.number} was not possible: {why}")

    # -- answers

    def _wait(
        self, there: Callable[[], bool], patience_s: float, what: str, poll_s: float = POLL_S
    ) -> None:
        """Look at the job until something is so, or it is over.

        Raises:
            StuckError: it took too long.
        """
        deadline_s = time.monotonic() + patience_s
        while True:
            self._look()
            if there() or self.world.live.is_over:
                return
            now_s = time.monotonic()
            if now_s > self.until_s:
                limit_s = self.scenario.limit_s
                raise StuckError(self._waited(f"time limit of {limit_s:g} s: waited", what))
            if now_s > deadline_s:
                raise StuckError(self._waited(f"waited {patience_s:g} s", what))
            time.sleep(poll_s)

    def _waited(self, how: str, what: str) -> str:
        live, last = self.world.live, self.strikes[-1] if self.strikes else None
        after = f" after fault {last.number} ({last.nemesis})" if last else ""
        return (
            f"{how} for {what}{after}: phase {live.phase}, generation {live.generation}, "
            f"step {live.committed}"
        )

    def _look(self) -> None:
        """Read what is new, note answers, undo what has lasted long enough."""
        live = self.world.live
        live.poll()
        now_s = time.monotonic()
        for entry in list(self._open):
            strike = entry.strike
            if strike.answered_s is None and self._is_answered(entry):
                strike.answered_s = now_s - entry.began_s
                self._answered_line = live.lines
            if entry.undo_at_s is not None and now_s >= entry.undo_at_s:
                self._undo(entry)
            if entry.undo_at_s is None and (
                strike.answered_s is not None or self._is_unmoved(entry)
            ):
                self._open.remove(entry)
                self._write()

    def _is_unmoved(self, entry: _Open) -> bool:
        """Whether the job goes on as if nothing had been, where it should not."""
        waits_for_generation = entry.strike.answer == Answer.GENERATION.value
        return waits_for_generation and self.world.live.lines > entry.over_line + UNMOVED_LINES

    def _is_answered(self, entry: _Open) -> bool:
        live, strike = self.world.live, entry.strike
        if strike.answer == Answer.GENERATION.value:
            return live.reported_generation > strike.generation
        if strike.answer == Answer.OUTLIVED.value:
            is_over = entry.undo_at_s is None and live.lines > entry.over_line
            return is_over or live.reported_generation > strike.generation
        if strike.answer == Answer.TERM.value and live.term <= strike.term:
            return False
        if strike.answer == Answer.TERM.value and not entry.term_seen:
            entry.term_seen, entry.lines = True, live.lines
        return live.lines > entry.lines

    def _undo(self, entry: _Open) -> None:
        assert entry.blow.undo is not None
        entry.undo_at_s = None
        entry.strike.undone = entry.blow.undo()
        entry.over_line = self.world.live.lines
        entry.strike.undone_s = time.monotonic() - entry.began_s

    def _undo_all(self) -> None:
        for entry in self._open:
            if entry.undo_at_s is not None:
                self._undo(entry)

    def _write(self) -> None:
        self.strikes_file.write_text(
            "".join(json.dumps(asdict(strike)) + "\n" for strike in self.strikes)
        )


def read_strikes(path: Path) -> list[Strike]:
    """What `Conductor` wrote."""
    found = []
    for line in path.read_text().splitlines():
        plain: dict[str, Any] = json.loads(line)
        plain["victims"] = tuple(plain["victims"])
        found.append(Strike(**plain))
    return found

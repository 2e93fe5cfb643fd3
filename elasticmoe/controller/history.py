"""Whether a journal tells of a sound history: every step and every sample once.

Reads the records alone, never the state machine's state, so that it can contradict it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import Decision, Finish, Form, Recover, Regroup, Wait
from elasticmoe.controller.record import Progress, Record, turns
from elasticmoe.controller.recovery import KEEPING
from elasticmoe.messages.events import (
    CheckpointSealed,
    JobSubmitted,
    Reported,
    TermBegan,
    WorkerDied,
)
from elasticmoe.messages.worker import Copies, GangEnded, GangFormed, WorkerParked


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive steps of the committed history."""

    first_step: int
    last_step: int
    first_sample: int
    end_sample: int


class History:
    """The committed history as the sample record tells it; rollbacks cut it."""

    def __init__(self, start_step: int, num_steps: int, step_samples: int) -> None:
        self._start_step, self._num_steps = start_step, num_steps
        self._step_samples = step_samples
        self._generation = 0
        self._may_skip = False
        self._saved = {0, start_step}
        self._in_memory = 0
        self._snapshots: set[int] = set()
        self._first_step: dict[int, int] = {}
        self.stretches: list[Stretch] = []
        self.problems: list[str] = []

    @property
    def last_step(self) -> int:
        """The last committed step."""
        return self.stretches[-1].last_step if self.stretches else self._start_step

    def take_over(self) -> None:
        """A new controller: what the last one had not written down yet may be missing."""
        self._may_skip = True

    def saved(self, step: int) -> None:
        """A checkpoint of this step exists."""
        self._saved.add(step)

    def reported(self, copies: Copies) -> None:
        """A vault was read: that far, at most, a step can have been committed."""
        steps = [step for step, _ in copies.whole]
        self._in_memory = max([self._in_memory, copies.prepared, copies.voted, *steps])
        self._snapshots |= {snapshot.step for snapshot in copies.snapshots}

    def ended(self, report: GangEnded) -> None:
        """A member came to the end of its gang with all its state at a step."""
        self._in_memory = max(self._in_memory, report.step)
        self._snapshots |= {snapshot.step for snapshot in report.snapshots}

    def settle(self, step: int) -> None:
        """It was decided which step is committed: all that were known, or what vaults prove."""
        if step < self.last_step:
            self._complain(f"step {self.last_step} was committed, {step} is said to be the last")
        if step > self.last_step:
            if step > self._in_memory and not self._may_skip:
                self._complain(f"step {step} is said to be committed, and no vault was so far")
            self._bridge_to(step + 1)

    def joined(self, report: GangFormed) -> None:
        """A member begins to train."""
        first = self._first_step.get(report.generation)
        if first is not None and report.step != first:
            self._complain(f"worker {report.worker} begins with step {report.step}, not {first}")

    def form(self, decision: Form) -> None:
        """A generation starts from a step: what lies behind it is given up."""
        self._generation, self._in_memory = decision.generation, 0
        self._first_step[decision.generation] = decision.step + 1
        if decision.memory is not None and decision.memory.is_snapshot:
            if decision.step not in self._snapshots:
                self._complain(f"starts from a snapshot of step {decision.step} that nobody has")
            elif decision.step > self.last_step:  # whose report was under way: it was committed
                self._bridge_to(decision.step + 1)
        elif decision.memory is not None:
            if not decision.step == decision.memory.step == self.last_step:
                self._complain(
                    f"starts from step {decision.step} with memory of step {decision.memory.step}, "
                    f"and step {self.last_step} was committed"
                )
        elif decision.step not in self._saved:
            self._complain(f"starts from step {decision.step}, of which there is no checkpoint")
        if decision.step > self.last_step:
            self._skip_to(decision.step + 1)
        kept = [part for part in self.stretches if part.first_step <= decision.step]
        if kept and kept[-1].last_step > decision.step:
            over = kept[-1].last_step - decision.step
            end_sample = kept[-1].end_sample - over * self._step_samples
            kept[-1] = replace(kept[-1], last_step=decision.step, end_sample=end_sample)
        self.stretches = kept

    def commit(self, progress: Progress) -> None:
        """Steps were committed. Those of an older generation came too late to count."""
        count = progress.last_step - progress.first_step + 1
        if progress.end_sample == progress.first_sample:
            self._complain(
                f"step {progress.first_step} left samples out or used some twice, behind sample "
                f"{progress.first_sample}"
            )
        elif progress.end_sample - progress.first_sample != count * self._step_samples:
            self._complain(
                f"steps {progress.first_step} to {progress.last_step} used samples "
                f"{progress.first_sample} to {progress.end_sample - 1}, "
                f"not {self._step_samples} each"
            )
        if progress.generation != self._generation or progress.last_step <= self.last_step:
            return
        if progress.first_step > self.last_step + 1:
            self._skip_to(progress.first_step)
        known = max(self.last_step + 1 - progress.first_step, 0)  # reported twice
        self._append(
            Stretch(
                progress.first_step + known,
                progress.last_step,
                progress.first_sample + known * self._step_samples,
                progress.end_sample,
            )
        )
        self._may_skip = False

    def finish(self) -> None:
        """The job says that all steps are done."""
        if self.last_step != self._num_steps:
            self._complain(f"ends at step {self.last_step} of {self._num_steps}")

    def _append(self, stretch: Stretch) -> None:
        begins = f"step {stretch.first_step} begins with sample {stretch.first_sample}"
        if self.stretches:
            due = self.stretches[-1].end_sample
            if stretch.first_sample != due:
                self._complain(f"{begins}; the step before ended with sample {due - 1}")
        elif stretch.first_sample != (stretch.first_step - 1) * self._step_samples:
            self._complain(f"{begins}; no step was before it")
        self.stretches.append(stretch)

    def _skip_to(self, step: int) -> None:
        """Bridge steps that no record tells of: only the end of a controller excuses that."""
        first = self.last_step + 1
        if not self._may_skip:
            self._complain(f"no record tells of steps {first} to {step - 1}")
        self._bridge_to(step)

    def _bridge_to(self, step: int) -> None:
        first, last = self.last_step + 1, self.stretches[-1] if self.stretches else None
        first_sample = last.end_sample if last else (first - 1) * self._step_samples
        end_sample = first_sample + (step - first) * self._step_samples
        self.stretches.append(Stretch(first, step - 1, first_sample, end_sample))

    def _complain(self, problem: str) -> None:
        self.problems.append(f"generation {self._generation}: {problem}")


def check_history(records: Iterable[Record]) -> list[str]:
    """Find what is wrong with a job's committed history.

    Checked: steps follow each other without a gap, up to the last one if the job says it is done;
    every step used `batch.global_samples` samples and began where the one before had ended, also
    behind a rollback, so that no sample is used twice or left out; every generation started from
    a step of which there was a checkpoint or a snapshot, or from memory at exactly the last
    committed step, and every member began with the step behind it. The last committed step may be
    one of which no report came, if a decision says that it is committed and a vault was that far.

    Returns:
        One sentence per problem; empty for a sound history.
    """
    history: History | None = None
    for turn in turns(records):
        match turn.entry:
            case JobSubmitted() as submitted:
                found = submitted.checkpoints
                history = History(
                    start_step=found[-1]["step"] if found else 0,
                    num_steps=submitted.spec["schedule"]["steps"],
                    step_samples=submitted.spec["batch"]["global_samples"],
                )
                for checkpoint in found:
                    history.saved(checkpoint["step"])
                continue
        if history is None:
            return ["the journal does not begin with JobSubmitted"]
        match turn.entry:
            case TermBegan() as begun if begun.term > 1:
                history.take_over()
            case CheckpointSealed() as sealed:
                history.saved(sealed.step)
            case Progress() as progress:
                history.commit(progress)
            case WorkerDied(copies=Copies() as copies):
                history.reported(copies)
            case Reported(report=WorkerParked(copies=Copies() as copies)):
                history.reported(copies)
            case Reported(report=GangEnded() as ended):
                history.ended(ended)
            case Reported(report=GangFormed() as formed):
                history.joined(formed)
        for decision in turn.decisions:
            _decided(history, decision)
    return history.problems if history else ["the journal is empty"]


def _decided(history: History, decision: Decision) -> None:
    match decision:
        case Form():
            history.form(decision)
        case Recover() if decision.rung in KEEPING:
            history.settle(decision.step)
        case Wait() if decision.from_memory and not decision.redo_steps:
            history.settle(decision.step)
        case Regroup() if decision.rung != "checkpoint":
            history.settle(decision.step)
        case Finish():
            history.finish()

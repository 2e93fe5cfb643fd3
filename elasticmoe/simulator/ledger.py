"""Where the time of a simulated run went: goodput, lost steps, rungs, phases of outages."""

from dataclasses import dataclass, field
from typing import Final

from elasticmoe.controller.decisions import Break, Form, Recover, Regroup, Train, Wait
from elasticmoe.controller.record import Decided, Record
from elasticmoe.simulator.faults import Fired
from elasticmoe.simulator.world import World

PHASES: Final = ("detect", "park", "gather", "form", "first step")
"""Of an outage: fault to break, break to the choice of a rung, until all workers are ready, until
the gang trains, until a step beyond the last is committed."""
MAX_CURVE: Final = 4000
"""Points of the curve; every second one is dropped when there are more."""


@dataclass(slots=True)
class Account:
    """The bill."""

    steps: int = 0
    """Committed steps of the final history."""
    attempts: int = 0
    """Commits, those that a rollback gave up included."""
    rolled_back: int = 0
    """Committed steps that were given up and done again."""
    outages: int = 0
    waits: int = 0
    rungs: dict[str, int] = field(default_factory=dict)
    phase_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    outage_s: list[float] = field(default_factory=list)
    """Each outage, from the fault to the first new step."""
    rung_s: dict[str, list[float]] = field(default_factory=dict)
    """The same by the rung that ended it; `wait`: there were too few workers for a while."""
    goodput: float = 0.0
    """Time that the committed steps take on all wanted workers, as share of all time."""
    curve: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, committed steps)."""
    marks: list[tuple[float, str]] = field(default_factory=list)
    """(seconds, kind of fault)."""


class Ledger:
    """Listens to faults, decisions and commits."""

    def __init__(self, world: World) -> None:
        self.account = Account()
        self._world = world
        self._begun: dict[str, float] = {}
        """Of the open outage: what happened when."""
        self._rung = ""
        """Of the open outage: how it is to end."""
        self._every = self._skipped = 1

    def fired(self, fault: Fired) -> None:
        """A fault has hit something."""
        self.account.marks.append((fault.at_s, fault.kind))
        self._begun.setdefault("fault", fault.at_s)

    def recorded(self, record: Record) -> None:
        """A record was written."""
        if not isinstance(record.body, Decided):
            return
        now_s, account, begun = self._world.now_s, self.account, self._begun
        match record.body.decision:
            case Break():
                begun.setdefault("fault", now_s)
                begun.setdefault("break", now_s)
            case Recover() as recover:
                account.rungs[recover.rung] = account.rungs.get(recover.rung, 0) + 1
                self._rung = "wait" if self._rung == "wait" else recover.rung
                begun["rung"] = now_s
            case Wait():
                account.waits += 1
                self._rung = "wait"
                begun["rung"] = now_s
            case Regroup():
                account.rungs["regroup"] = account.rungs.get("regroup", 0) + 1
                self._rung = "regroup"
                for name in ("fault", "break", "rung"):
                    begun[name] = now_s
            case Form() as form:
                account.rolled_back += max(account.steps - form.step, 0)
                account.steps = min(account.steps, form.step)
                begun["form"] = now_s
            case Train():
                begun["train"] = now_s
            case _:
                pass

    def committed(self, step: int) -> None:
        """A step was applied by everybody."""
        now_s, account = self._world.now_s, self.account
        account.steps, account.attempts = step, account.attempts + 1
        self._skipped += 1
        if self._skipped >= self._every:
            self._skipped = 0
            account.curve.append((now_s, step))
        if len(account.curve) > MAX_CURVE:
            account.curve = account.curve[::2]
            self._every *= 2
        if "break" in self._begun and "train" in self._begun:
            self._close(now_s)
        elif "break" not in self._begun:
            self._begun, self._rung = {}, ""

    def finish(self) -> Account:
        """The bill, at the end of the run."""
        job, account = self._world.job, self.account
        ideal_s = account.steps * self._world.costs.step_seconds(
            job.workers.replicas, job.workers.replicas
        )
        account.goodput = ideal_s / self._world.now_s if self._world.now_s else 0.0
        account.curve.append((self._world.now_s, account.steps))
        return account

    def _close(self, now_s: float) -> None:
        begun, account = self._begun, self.account
        times = [begun["fault"], begun["break"]]
        times += [begun.get(name, times[-1]) for name in ("rung", "form", "train")]
        times.append(now_s)
        for name, start, end in zip(PHASES, times, times[1:], strict=False):
            account.phase_s[name] += max(end - start, 0.0)
        account.outages += 1
        account.outage_s.append(now_s - times[0])
        account.rung_s.setdefault(self._rung, []).append(now_s - times[0])
        self._begun, self._rung = {}, ""

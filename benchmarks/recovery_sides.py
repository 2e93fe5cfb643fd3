"""What the recovery benchmark asks of a contestant, and our own job as one of them."""

import os
import select
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.crew import CrewError
from benchmarks.recovery_timeline import (
    Aftermath,
    Commit,
    Kill,
    Recovery,
    Timeline,
    as_recovery,
    split_at,
)
from benchmarks.rivals.job import Workload
from chaos.cluster import Cluster
from chaos.errors import ChaosError
from elasticmoe.client import JobClient
from elasticmoe.cluster.jobs import JobHandle, submit
from elasticmoe.cluster.journal_file import read_journal
from elasticmoe.controller.decisions import Break, Decision, Form, Recover, Wait
from elasticmoe.controller.history import check_history
from elasticmoe.controller.machine import replay
from elasticmoe.controller.pace import FACTOR, SHORTEST_BOUND_S
from elasticmoe.controller.record import Decided, Record
from elasticmoe.errors import ElasticMoEError
from elasticmoe.messages.events import Reported
from elasticmoe.messages.worker import GangFormed
from elasticmoe.spec.job import JobSpec

STEPS = 10_000_000
"""More than any contestant gets to."""
END_TIMEOUT_S = 60.0
KNOWN_AFTER = 3
"""Commits of a new generation after which the journal is read: reading must not slow the first."""


class Side(Protocol):
    """One contestant."""

    name: str
    size: int
    """Workers at full strength."""
    timeline: Timeline

    def commits(self) -> list[Commit]:
        """All so far, with the number of workers where it is known."""
        ...

    def victims(self) -> list[int]:
        """Process ids of the workers, by their place or rank."""
        ...

    def era(self) -> int:
        """Newest generation, if this side has them."""
        ...

    def recover(self, kill: Kill, found: Aftermath) -> Recovery:
        """What a kill cost, with its phases."""
        ...

    def signs(self) -> list[float]:
        """Moments at which something looked like a fault to it."""
        ...

    def said(self) -> str:
        """The end of what it printed, for whoever wonders why it does not go on."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


class Ours:
    """A job as any user submits it, on a Ray of its own."""

    def __init__(
        self,
        workload: Workload,
        *,
        workers: int,
        stages: int,
        checkpoint_every: int,
        skip_rungs: Sequence[str] = (),
        launch: Callable[[JobSpec], JobHandle] = submit,
    ) -> None:
        self.name, self.size = f"elasticmoe, {workers} workers", workers
        self.timeline = Timeline()
        self._home = Path(tempfile.mkdtemp(prefix="recovery-"))
        self._members: dict[int, tuple[int, ...]] = {}
        self._story: list[str] = []
        job = workload.job(
            schedule={"steps": STEPS, "kind": "constant"},
            parallel={"stages": stages},
            workers={"replicas": workers, "min": 1, "max": workers, "device": "cpu"},
            protection={"skip_rungs": list(skip_rungs)},
            checkpoint={"interval_steps": checkpoint_every},
            storage={"dir": str(self._home / "run")},
        )
        try:
            self._handle = launch(job)
        except (ElasticMoEError, ChaosError):
            shutil.rmtree(self._home, ignore_errors=True)
            raise
        self.controller_pid = self._handle.pids["controller"]
        self.directory = self._handle.directory
        self._client = JobClient(self._handle.url, self._handle.token, self.directory)
        threading.Thread(target=self._follow, daemon=True).start()

    def commits(self) -> list[Commit]:
        """See `Side`."""
        commits = self.timeline.commits()
        eras = [commit.era for commit in commits]
        if any(eras.count(era) >= KNOWN_AFTER for era in set(eras) - set(self._members)):
            self._read_members()
        return [replace(c, workers=len(self._members.get(c.era, ()))) for c in commits]

    def victims(self) -> list[int]:
        """See `Side`."""
        pids = self.timeline.workers()
        return [pids[worker] for worker in self._members[self.era()] if worker in pids]

    def era(self) -> int:
        """See `Side`."""
        return max((commit.era for commit in self.timeline.commits()), default=0)

    def recover(self, kill: Kill, found: Aftermath) -> Recovery:
        """See `Side`; phases from the journal's times, which the controller's clock gave."""
        records = self._records()
        recovery = as_recovery(kill, found)
        return replace(
            recovery,
            bound_s=stall_bound_s(kill, records),
            **split_journal(kill, found.first, records),
        )

    def signs(self) -> list[float]:
        """See `Side`: every decision that ended a generation."""
        return [broken.at_s for broken in _decisions(self._records()) if isinstance(broken, Break)]

    def said(self) -> str:
        """See `Side`: what happened, in the journal's sentences."""
        return "\n".join(self._story[-20:])

    def close(self) -> None:
        """See `Side`. Checks that the journal tells of a sound history.

        Raises:
            CrewError: it does not.
        """
        problems = check_history(self._records())
        last = self._handle.pids.get("supervisor", self.controller_pid)
        try:
            self._client.stop()
            self._client.stop()
        except ElasticMoEError:
            pass  # it has ended already; what is left of it is waited for
        if not wait_for_end(last):
            os.kill(last, signal.SIGTERM)
            wait_for_end(last)
        shutil.rmtree(self._home, ignore_errors=True)
        if problems:
            raise CrewError(f"{self.name}: {problems}")

    def _follow(self) -> None:
        reason = f"{self.name} ended"
        try:
            for event in self._client.events():
                if event.kind == "step":
                    plain = event.fields
                    commit = Commit(
                        at_s=event.at_s,
                        step=plain["step"],
                        seconds=plain["seconds"],
                        workers=0,
                        era=plain["generation"],
                    )
                    self.timeline.add(commit)
                elif event.kind == "workers":
                    pids = {each["worker"]: each["pid"] for each in event.fields["workers"]}
                    self.timeline.set_workers(pids, keep=False)
                elif event.kind == "story":
                    self._story.append(event.fields["text"])
                elif event.kind == "end":
                    reason += f": {event.fields['reason']}"
        except ElasticMoEError as error:
            reason += f": {error}"
        self.timeline.end(reason)

    def _read_members(self) -> None:
        forms = (d for d in _decisions(self._records()) if isinstance(d, Form))
        self._members = {form.generation: form.workers for form in forms}

    def _records(self) -> list[Record]:
        return read_journal(self.directory / "journal")


class OursOnNodes(Ours):
    """The same on two nodes of a Ray cluster, each in a network namespace with two workers."""

    def __init__(self, workload: Workload, *, checkpoint_every: int) -> None:
        """Start cluster and job.

        Raises:
            ChaosError: network namespaces are not permitted here.
        """
        self._place = Path(tempfile.mkdtemp(prefix="recovery-nodes-"))
        try:
            self.cluster = Cluster(("left", "right"), 2, self._place)
        except ChaosError:
            shutil.rmtree(self._place)
            raise
        try:
            super().__init__(
                workload,
                workers=4,
                stages=2,
                checkpoint_every=checkpoint_every,
                launch=self._launch,
            )
        except (ElasticMoEError, ChaosError):
            self._take_down()
            raise

    def close(self) -> None:
        """See `Side`."""
        try:
            super().close()
        finally:
            self._take_down()

    def _launch(self, job: JobSpec) -> JobHandle:
        plain = self.cluster.submit(job)
        return JobHandle(**{**plain, "directory": Path(plain["directory"])})

    def _take_down(self) -> None:
        self.cluster.close()
        shutil.rmtree(self._place, ignore_errors=True)


def split_journal(kill: Kill, first: Commit, records: Sequence[Record]) -> dict[str, Any]:
    """Phases, rung and attempts of one recovery, from what the controller recorded.

    detect: to the decision that the generation is over. decide: until the survivors have parked,
    the dead was reaped and a rung is chosen. start: until everyone needed is up. move: state, as
    the slowest member tells. communicate: the rest until the first forward pass.
    """
    decisions = [d for d in _decisions(records) if d.at_s >= kill.at_s and d.at_s <= first.at_s]
    broken = next((d for d in decisions if isinstance(d, Break)), None)
    rungs = [d for d in decisions if isinstance(d, Recover | Wait)]
    forms = [d for d in decisions if isinstance(d, Form) and d.generation <= first.era]
    if broken is None or not rungs or not forms:
        return {}
    joined = [
        record.body.report.seconds
        for record in records
        if isinstance(record.body, Reported)
        and isinstance(record.body.report, GangFormed)
        and record.body.report.generation == first.era
    ]
    slowest = max(joined, key=lambda seconds: sum(seconds.values()), default={})
    move_s = sum(seconds for name, seconds in slowest.items() if name != "groups")
    cuts = [
        ("detect", broken.at_s),
        ("decide", rungs[-1].at_s),
        ("start", forms[-1].at_s),
        ("communicate", first.begin_s - move_s),
        ("move", first.begin_s),
        ("first step", first.at_s),
    ]
    rung = rungs[-1].rung if isinstance(rungs[-1], Recover) else "wait"
    return {"phases": split_at(kill.at_s, cuts), "rung": rung, "attempts": len(forms)}


def stall_bound_s(kill: Kill, records: Sequence[Record]) -> float:
    """The bound on a step's length by which the first break after a fault was decided: three times
    the slowest of the last 50 steps, from the journal up to there. 0: a stall was not the sign."""
    for index, record in enumerate(records):
        match record.body:
            case Decided(decision=Break() as broken) if broken.at_s >= kill.at_s:
                if not any(casualty.kind == "stalled" for casualty in broken.evidence):
                    return 0.0
                pace = replay(records[:index]).pace
                return max(SHORTEST_BOUND_S, FACTOR * max(pace.intervals, default=0.0))
    return 0.0


def wait_for_end(pid: int) -> bool:
    """Wait until a process, of whomever it is the child, has ended; whether it has in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], END_TIMEOUT_S)[0])
    finally:
        os.close(descriptor)


def _decisions(records: Sequence[Record]) -> list[Decision]:
    return [record.body.decision for record in records if isinstance(record.body, Decided)]

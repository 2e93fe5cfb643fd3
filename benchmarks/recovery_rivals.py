"""The rivals as contestants of the recovery benchmark."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.crew import ROOT, user_environment
from benchmarks.recovery_sides import STEPS, wait_for_end
from benchmarks.recovery_timeline import (
    NO_ERA,
    Aftermath,
    Commit,
    Kill,
    Mark,
    Recovery,
    Timeline,
    as_recovery,
    split_at,
)
from benchmarks.rivals.job import Workload

RESTART_PHASES = {
    "process": "detect, start processes",
    "imported": "import",
    "joined": "form",
    "start": "build",
    "loaded": "load",
}
"""What ends with each thing that a worker tells, in the order in which they come."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A rival: its script, its own arguments, and the names of its phases."""

    name: str
    script: str
    arguments: tuple[str, ...]
    saves: bool = True
    """Whether it needs checkpoints to recover."""


class Rival:
    """One rival under its own launcher, telling about itself through a pipe."""

    def __init__(self, tool: Tool, workload: Workload, *, checkpoint_every: int) -> None:
        self.name, self.size, self._tool = tool.name, 2, tool
        self.timeline = Timeline()
        self._home = Path(tempfile.mkdtemp(prefix="recovery-"))
        pipe = self._home / "events"
        os.mkfifo(pipe)
        self._pipe = os.open(pipe, os.O_RDWR)  # open for writing too: it outlasts every worker
        command = [sys.executable, str(ROOT / "benchmarks" / "rivals" / tool.script)]
        command += [*workload.flags(), f"--workers={self.size}", f"--steps={STEPS}"]
        command += [f"--events={pipe}", f"--checkpoint-every={checkpoint_every}"]
        command += [f"--checkpoint-dir={self._home / 'saved'}"] if tool.saves else []
        self._output = self._home / "output.txt"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, *tool.arguments],
                env={**user_environment(), "TMPDIR": str(self._home)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threading.Thread(target=self._follow, daemon=True).start()
        threading.Thread(target=self._wait, daemon=True).start()

    def commits(self) -> list[Commit]:
        """See `Side`."""
        return self.timeline.commits()

    def victims(self) -> list[int]:
        """See `Side`."""
        workers = self.timeline.workers()
        return [workers[rank] for rank in sorted(workers)]

    def era(self) -> int:
        """See `Side`."""
        return NO_ERA

    def recover(self, kill: Kill, found: Aftermath) -> Recovery:
        """See `Side`; phases as far as its workers tell."""
        marks = [m for m in self.timeline.marks() if kill.at_s <= m.at_s <= found.full.at_s]
        split = split_torchft if "torchft" in self._tool.script else split_restart
        return replace(as_recovery(kill, found), phases=split(kill, found, marks))

    def signs(self) -> list[float]:
        """See `Side`: steps that failed, or that some worker did not take part in.

        Alone at the very start does not count: its peers are not up yet.
        """
        commits = self.commits()
        full_s = min((c.at_s for c in commits if c.workers == self.size), default=float("inf"))
        signs = [c.at_s for c in commits if c.workers < self.size]
        signs += [mark.at_s for mark in self.timeline.marks() if mark.name == "failed"]
        return [sign_s for sign_s in signs if sign_s > full_s]

    def said(self) -> str:
        """See `Side`."""
        return self._output.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """See `Side`."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            if wait_for_end(self._process.pid):
                break
        shutil.rmtree(self._home, ignore_errors=True)

    def _follow(self) -> None:
        with os.fdopen(os.dup(self._pipe), "r") as lines:
            for line in lines:
                self._take(json.loads(line))

    def _take(self, plain: dict[str, Any]) -> None:
        at_s, rank = plain["at_s"], plain["rank"]
        if plain["event"] == "step":
            commit = Commit(
                at_s=at_s,
                step=plain["step"],
                seconds=plain["seconds"],
                workers=plain["workers"],
                waited_s=plain["waited_s"],
            )
            self.timeline.add(commit)
            return
        if plain["event"] == "start":
            for name, moment_s in plain["moments"].items():
                self.timeline.add(Mark(moment_s, name, rank))
            self.timeline.set_workers({rank: plain["pid"]}, keep=True)
        self.timeline.add(Mark(at_s, plain["event"], rank))

    def _wait(self) -> None:
        code = self._process.wait()
        self.timeline.end(f"{self.name} ended with {code}")


def split_restart(kill: Kill, found: Aftermath, marks: Sequence[Mark]) -> dict[str, float]:
    """Phases of a rival that starts all workers anew: each ends when the last worker is there."""
    cuts = [*_latest(marks, found.first.begin_s), ("first step", found.first.at_s)]
    return split_at(kill.at_s, [*cuts, ("redo", found.beyond.at_s)])


def split_torchft(kill: Kill, found: Aftermath, marks: Sequence[Mark]) -> dict[str, float]:
    """The survivor's phases, then those of the worker that comes back, both from the kill.

    detect: until the survivor has given up the step that the dead worker did not finish. decide:
    until the next step's quorum is known, as far as its own computing does not hide that.
    """
    first = found.first
    failed = [m.at_s for m in marks if m.name == "failed" and m.at_s <= first.at_s]
    cuts = [("detect", min(failed))] if failed else []
    cuts += [("decide", first.begin_s + first.waited_s), ("first step", first.at_s)]
    back = [mark for mark in marks if mark.worker == kill.victim]
    returns = split_at(kill.at_s, [*_latest(back, found.full.at_s), ("heal", found.full.at_s)])
    return {
        **split_at(kill.at_s, cuts),
        **{f"return: {name}": seconds for name, seconds in returns.items()},
    }


def _latest(marks: Sequence[Mark], until_s: float) -> list[tuple[str, float]]:
    found = []
    for name, phase in RESTART_PHASES.items():
        moments = [mark.at_s for mark in marks if mark.name == name and mark.at_s <= until_s]
        found += [(phase, max(moments))] if moments else []
    return found

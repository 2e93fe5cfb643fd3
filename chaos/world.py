"""A live job and what it stands on: where its processes, files and links are."""

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chaos.clock import Clock
from chaos.cluster import Cluster
from chaos.live import LiveJob
from chaos.proc import command_line, is_of_job, open_files, parent_of, pids
from elasticmoe.client import JobClient
from elasticmoe.errors import ClusterError

ASK_TRIES: Final = 120
ASK_WAIT_S: Final = 0.5
"""A controller that was killed is back within seconds."""
_AGENT_LOG: Final = re.compile(r"/agent-(.+)\.log$")


@dataclass(slots=True)
class World:
    """Everything that can be struck."""

    job_dir: Path
    live: LiveJob
    cluster: Cluster | None = None
    disk: Path | None = None
    """Mount point of the small disk that holds the checkpoints."""
    clock: Clock | None = None
    damaged: set[Path] = field(default_factory=set)
    """Checkpoints that were corrupted on purpose."""

    @classmethod
    def attach(cls, job_dir: Path) -> "World":
        """The world of a job that somebody else has started."""
        return cls(job_dir, LiveJob(job_dir))

    def owns(self, pid: int) -> bool:
        """Whether a process belongs to this job."""
        return is_of_job(pid, self.job_dir)

    def controller_pid(self) -> int | None:
        """None while there is none, or it has not said where it is."""
        try:
            pid = int(json.loads((self.job_dir / "service.json").read_text())["pids"]["controller"])
        except (FileNotFoundError, ValueError):
            return None
        return pid if self.owns(pid) else None

    def agents(self) -> dict[str, int]:
        """Pid of each node's agent, found by the log that it writes."""
        found = {}
        logs = f"{(self.job_dir / 'logs').resolve()}/"
        for pid in pids():
            if "ray::" not in command_line(pid):
                continue
            for _, target in open_files(pid):
                name = _AGENT_LOG.search(target)
                if target.startswith(logs) and name:
                    found[name[1]] = pid
        return found

    def run_pids(self) -> list[int]:
        """Every process that writes a log of this job; their ends end all others."""
        return [pid for pid in pids() if pid != os.getpid() and self.owns(pid)]

    def warm_parent_of(self, worker: int) -> int | None:
        """The process that a worker was forked from."""
        pid = parent_of(worker)
        return pid if "elasticmoe.cluster.warm_parent" in command_line(pid) else None

    def label_of(self, node: str) -> str:
        """The cluster's name of a node that the job knows by another: its failure domain."""
        return self.live.domains.get(node, node)

    def checkpoints(self) -> list[Path]:
        """Directories of the sealed checkpoints that are there and were not damaged, by step."""
        found = [Path(uri.removeprefix("file://")) for _, uri in sorted(self.live.sealed.items())]
        return [
            path for path in found if (path / "manifest.json").exists() and path not in self.damaged
        ]

    def ask_to_stop(self) -> None:
        """Have the job write a checkpoint and end, through restarts of its controller.

        Raises:
            ClusterError: it could not be asked.
        """
        for last in (*([False] * ASK_TRIES), True):
            if self.live.is_over:
                return
            try:
                JobClient.of_directory(self.job_dir).stop()
                return
            except ClusterError:
                if last:
                    raise
                time.sleep(ASK_WAIT_S)

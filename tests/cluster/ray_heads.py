"""Ray heads as people start them, and what tests do to them."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from processes import PATIENCE_S

from chaos.proc import argument_of, command_line, kill
from elasticmoe.cluster.forking import same_modules


@dataclass
class Head:
    """A Ray head with room for workers, and the environment of whoever speaks to it."""

    address: str
    environment: dict[str, str]
    _words: list[bytes] = field(default_factory=list)
    _directory: str = ""

    @property
    def gcs(self) -> int:
        """Pid of the GCS."""
        port = self.address.rpartition(":")[2]
        for entry in Path("/proc").iterdir():
            line = command_line(int(entry.name)) if entry.name.isdecimal() else ""
            if "gcs_server" in line and argument_of(int(entry.name), "gcs_server_port") == port:
                return int(entry.name)
        raise AssertionError("no GCS runs")

    def kill_gcs(self) -> None:
        """SIGKILL; how it was started is kept for `restart_gcs`."""
        pid = self.gcs
        self._words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        self._directory = os.readlink(f"/proc/{pid}/cwd")
        assert "ended" in kill(pid, "the GCS")

    def restart_gcs(self) -> None:
        """Start it again, as whatever looks after a head node would."""
        subprocess.Popen(
            self._words,
            env=self.environment,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_head(directory: Path, more: dict[str, str]) -> Iterator[Head]:
    """`ray start --head`, and all of it ended again: every process bears the test's mark."""
    short = f"/tmp/em-{secrets.token_hex(4)}"  # sockets have short names
    environment = {
        **os.environ,
        **same_modules(),
        **more,
        "RAY_TMPDIR": short,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port = free_port()
    subprocess.run(
        [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}",
            "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false",
            "--object-store-memory=80000000", "--disable-usage-stats",
        ],
        env=environment,
        stdout=(directory / "ray.log").open("wb"),
        stderr=subprocess.STDOUT,
        check=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    try:
        yield Head(f"127.0.0.1:{port}", environment)
    finally:
        shutil.rmtree(short, ignore_errors=True)

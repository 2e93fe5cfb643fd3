"""A Ray cluster whose nodes live in network namespaces of one machine, to be taken apart."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from chaos.errors import ChaosError, NotFiredError
from chaos.network import Network
from chaos.proc import Process, argument_of, command_line, pids
from elasticmoe.cluster.run import DOMAIN_LABEL
from elasticmoe.spec.job import JobSpec

UP_TIMEOUT_S: Final = 120.0
SUBMIT_TIMEOUT_S: Final = 120.0
LOOK_S: Final = 0.5
OBJECT_STORE_BYTES: Final = 80 * 1024 * 1024
_MARK: Final = "CHAOS_CLUSTER"


class Cluster:
    """A head without room for workers, and nodes that can be lost and come back."""

    def __init__(
        self,
        nodes: Sequence[str],
        workers: int,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        *,
        durable_head: bool | str = False,
    ) -> None:
        """Start it, and wait until all nodes are up.

        Args:
            nodes: their names, which are also their failure domains.
            workers: room on each.
            directory: for logs, and for what the head keeps.
            environment: of all its processes, beside this one's.
            durable_head: the head keeps its state: true, on disk; `redis`, there.

        Raises:
            ChaosError: not permitted here, or Ray does not start.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._workers, self._log = workers, (directory / "ray.log").open("ab")
        self.network = Network(nodes)
        self._environment = {
            **os.environ,
            **(environment or {}),
            _MARK: self.network.tag,
            "RAY_TMPDIR": f"/tmp/{self.network.tag}",  # short, for sockets; and nobody else's
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_worker_niceness": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        if durable_head is True:
            self._environment["RAY_gcs_storage"] = "rocksdb"
            self._environment["RAY_gcs_storage_path"] = str(directory / "gcs")
        self._port = _free_port(self.network.head)
        self.address = f"{self.network.head}:{self._port}"
        """Of the head."""
        self._away: set[str] = set()
        self._starting: dict[str, subprocess.Popen[bytes]] = {}
        self._closed = threading.Event()
        try:
            if durable_head == "redis":
                self._environment["RAY_REDIS_ADDRESS"] = self._start_redis(directory)
            self._start_all(nodes)
        except ChaosError:
            self.close()
            raise
        self._keeper = threading.Thread(target=self._keep_up, name="cluster", daemon=True)
        self._keeper.start()

    def submit(self, job: JobSpec) -> dict[str, Any]:
        """Submit a job from a process of its own, which ends; returns what it was told.

        Raises:
            ChaosError: it was refused.
        """
        try:
            done = subprocess.run(
                [sys.executable, "-m", "chaos.submit", self.address],
                input=job.model_dump_json(),
                capture_output=True,
                text=True,
                env=self._environment,
                timeout=SUBMIT_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise ChaosError(f"the job was not accepted within {SUBMIT_TIMEOUT_S:g} s") from None
        if done.returncode != 0:
            raise ChaosError(f"the job was not accepted: {done.stderr.strip()[-2000:]}")
        handle: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return handle

    def raylets(self) -> dict[str, int]:
        """Pid of each node's raylet, by the node's name; the head's is left out."""
        return self._named("raylet", self.network.address)

    def drain(self, node: str, seconds: float) -> str:
        """Have Ray drain a node, as a preemption notice does; returns the evidence.

        Raises:
            NotFiredError: Ray refuses.
        """
        done = subprocess.run(
            [
                sys.executable, "-m", "chaos.drain", self.address,
                self.network.address[node], str(seconds),
            ],
            capture_output=True,
            text=True,
            env=self._environment,
        )  # fmt: skip
        if done.returncode != 0:
            raise NotFiredError(f"node {node} is not drained: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()

    def gcs_pid(self) -> int | None:
        """The head's GCS; none while it is away."""
        for pid in pids():
            line = command_line(pid)
            if "gcs_server" in line and argument_of(pid, "gcs_server_port") == str(self._port):
                return pid
        return None

    def remember_gcs(self, pid: int) -> Callable[[], str]:
        """Take note of how the GCS was started; calling what is returned starts it so again."""
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        plain = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        environment = dict(pair.split(b"=", 1) for pair in plain if b"=" in pair)
        directory = os.readlink(f"/proc/{pid}/cwd")

        def again() -> str:
            process = subprocess.Popen(
                words,
                env=environment,
                cwd=directory,
                stdout=self._log,
                stderr=self._log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            return f"started again as pid {process.pid}"

        return again

    def keep_away(self, node: str) -> None:
        """A node that is lost from now on is not replaced."""
        self._away.add(node)

    def bring_back(self, node: str) -> None:
        """Replace a node once it is gone."""
        self._away.discard(node)

    def close(self) -> None:
        """End everything that was started, and nothing else."""
        self._closed.set()
        deadline_s = time.monotonic() + 30
        while (marked := self._marked()) and time.monotonic() < deadline_s:
            for pid in marked:
                process = Process.open(pid)
                if process is not None:
                    process.send(signal.SIGKILL)
                    process.close()
            time.sleep(0.1)
        for starter in self._starting.values():
            starter.wait()
        self.network.close()
        self._log.close()
        shutil.rmtree(self._environment["RAY_TMPDIR"], ignore_errors=True)

    def _start_redis(self, directory: Path) -> str:
        if shutil.which("redis-server") is None:
            raise ChaosError("redis-server is not installed; on Debian: apt-get install it")
        host, port = self.network.head, _free_port(self.network.head)
        subprocess.Popen(
            [
                "redis-server", "--bind", host, "--port", str(port), "--protected-mode", "no",
                "--dir", str(directory),
            ],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline_s = time.monotonic() + UP_TIMEOUT_S
        while time.monotonic() < deadline_s:
            with socket.socket() as probe:
                if probe.connect_ex((host, port)) == 0:
                    return f"{host}:{port}"
            time.sleep(0.05)
        raise ChaosError(f"redis-server did not start; see {self._log.name}")

    def _start_all(self, nodes: Sequence[str]) -> None:
        head = [
            "--head", f"--port={self._port}", f"--node-ip-address={self.network.head}",
            "--num-cpus=0", "--include-dashboard=false",
        ]  # fmt: skip
        try:
            done = self._ray_start(None, head).wait(UP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            done = None
        if done != 0:
            raise ChaosError(f"the Ray head did not start; see {self._log.name}")
        for node in nodes:
            self._start_node(node)
        deadline_s = time.monotonic() + UP_TIMEOUT_S
        while self._starting:
            for node, starter in list(self._starting.items()):
                if starter.poll() == 0:
                    del self._starting[node]
                elif starter.returncode is not None:  # Ray gives a node 30 s to register
                    self._start_node(node)
            if time.monotonic() > deadline_s:
                missing = sorted(self._starting)
                raise ChaosError(f"nodes {missing} did not start; see {self._log.name}")
            time.sleep(0.1)

    def _start_node(self, node: str) -> None:
        options = [
            f"--address={self.address}", f"--node-ip-address={self.network.address[node]}",
            f"--num-cpus={self._workers}", f"--labels={DOMAIN_LABEL}={node}",
        ]  # fmt: skip
        self._starting[node] = self._ray_start(node, options)

    def _ray_start(self, node: str | None, options: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *self.network.within(node), sys.executable, "-m", "ray.scripts.scripts", "start",
                f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats", *options,
            ],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def _keep_up(self) -> None:
        """Machines come back: start a node again once its raylet is gone."""
        while not self._closed.wait(LOOK_S):
            alive = self.raylets()
            for node in self.network.address:
                starter = self._starting.get(node)
                if starter is not None and starter.poll() is not None:
                    del self._starting[node]
                elif starter is None and node not in alive and node not in self._away:
                    self._start_node(node)

    def _named(self, program: str, addresses: Mapping[str, str]) -> dict[str, int]:
        by_address = {address: node for node, address in addresses.items()}
        found = {}
        for pid in pids():
            if not command_line(pid).partition(" ")[0].endswith(f"/{program}"):
                continue
            node = by_address.get(argument_of(pid, "node_ip_address") or "")
            if node is not None:
                found[node] = pid
        return found

    def _marked(self) -> list[int]:
        wanted = f"{_MARK}={self.network.tag}".encode()
        found = []
        for pid in pids():
            try:
                if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
            except OSError:
                continue
        return found


def _free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port

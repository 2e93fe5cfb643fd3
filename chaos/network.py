"""Network namespaces on one bridge: nodes of their own, whose links can be broken. Needs root.

head (the machine itself) 10.77.S.1 ── bridge ─┬─ node 1: 10.77.S.2
                                               └─ node 2: 10.77.S.3
"""

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from chaos.errors import ChaosError, NotFiredError

NOBODY: Final = "02:00:00:00:00:99"
"""A hardware address that no interface has: frames for it vanish without an error."""
RELAY_TIMEOUT_S: Final = 10.0
_CONFIGURATION: Final = Path("/etc/netns")
"""What lies here beside a namespace's name stands for files of /etc within it."""


class Network:
    """A bridge, and a namespace per node."""

    def __init__(self, nodes: Sequence[str]) -> None:
        """Make bridge and namespaces.

        Raises:
            ChaosError: not permitted here.
        """
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise ChaosError("network namespaces need root and iproute2 (`ip`)")
        self.tag = f"ch{os.getpid()}"
        subnet = f"10.77.{os.getpid() % 254 + 1}"
        self.head = f"{subnet}.1"
        self.address = {node: f"{subnet}.{2 + index}" for index, node in enumerate(nodes)}
        self._bridge = f"{self.tag}b"
        self._relays: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._make()
        except ChaosError:
            self.close()
            raise

    def namespace(self, node: str) -> str:
        """Name of a node's namespace."""
        return f"{self.tag}-{node}"

    def within(self, node: str | None) -> list[str]:
        """What to put in front of a command so that it runs on a node; none: on the head."""
        return [] if node is None else ["ip", "netns", "exec", self.namespace(node)]

    def pids(self, node: str) -> list[int]:
        """Every process that runs on a node."""
        return [int(pid) for pid in _run(["ip", "netns", "pids", self.namespace(node)]).split()]

    def drop(self, node: str, directions: Sequence[str]) -> tuple[str, Callable[[], str]]:
        """Let packets of a node vanish.

        Args:
            node: whose link is broken, to everybody else.
            directions: `in`, `out` or both.

        Returns:
            The evidence, and what mends the link again.
        """
        others: dict[str | None, str] = {None: self.head}
        others.update({name: at for name, at in self.address.items() if name != node})
        broken: list[tuple[str | None, str]] = []
        if "out" in directions:
            broken += [(node, address) for address in others.values()]
        if "in" in directions:
            broken += [(other, self.address[node]) for other in others]
        for place, address in broken:
            device = self._bridge if place is None else "eth0"
            self._ip(
                place, "neigh", "replace", address, "lladdr", NOBODY, "dev", device, "nud",
                "permanent",
            )  # fmt: skip
        shown = self._ip(broken[0][0], "neigh", "show", broken[0][1])
        if NOBODY not in shown:
            raise NotFiredError(f"the link of {node} is whole: {shown!r}")

        def mend() -> str:
            for place, address in broken:
                device = self._bridge if place is None else "eth0"
                self._ip(place, "neigh", "del", address, "dev", device)
            return f"{len(broken)} false neighbours removed"

        return f"packets {' and '.join(directions)} of {node} go to {NOBODY}", mend

    def delay(self, node: str, seconds: float) -> tuple[str, Callable[[], str]]:
        """Keep back every packet that a node sends.

        Returns:
            The evidence, and what makes the link quick again.
        """
        command = [
            *self.within(node), sys.executable, "-m", "chaos.relay",
            self.address[node], f"{seconds:g}",
        ]  # fmt: skip
        relay = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        assert relay.stdout is not None
        said = _line_within(relay.stdout, RELAY_TIMEOUT_S)
        if said != b"relaying\n":
            relay.kill()
            raise NotFiredError(f"the relay of {node} did not start: {said!r}")
        self._relays[node] = relay
        route = self._ip(node, "route", "get", self.head)
        if "chaos0" not in route:
            raise NotFiredError(f"packets of {node} do not take the slow way: {route!r}")

        def undo() -> str:
            relay.terminate()
            relay.wait()
            self._relays.pop(node, None)
            return f"packets of {node} take the quick way: {self._ip(node, 'route')!r:.80}"

        return f"every packet of {node} waits {seconds:g} s: {route.splitlines()[0]}", undo

    def close(self) -> None:
        """Take everything down."""
        for relay in self._relays.values():
            relay.kill()
            relay.wait()
        for node in self.address:
            shutil.rmtree(_CONFIGURATION / self.namespace(node), ignore_errors=True)
            subprocess.run(["ip", "netns", "del", self.namespace(node)], stderr=subprocess.DEVNULL)
        # A namespace goes when its last process is reaped, and its link with it: not now, maybe.
        links = [f"{self.tag}v{index}" for index in range(len(self.address))]
        for link in (*links, self._bridge):
            subprocess.run(["ip", "link", "del", link], stderr=subprocess.DEVNULL)

    def _make(self) -> None:
        self._ip(None, "link", "add", self._bridge, "type", "bridge")
        self._ip(None, "addr", "add", f"{self.head}/24", "dev", self._bridge)
        self._ip(None, "link", "set", self._bridge, "up")
        for index, (node, address) in enumerate(self.address.items()):
            outside, inside = f"{self.tag}v{index}", f"{self.tag}w{index}"
            _run(["ip", "netns", "add", self.namespace(node)])
            self._name_everybody(node)
            self._ip(None, "link", "add", outside, "type", "veth", "peer", "name", inside)
            self._ip(None, "link", "set", outside, "master", self._bridge, "up")
            self._ip(None, "link", "set", inside, "netns", self.namespace(node), "name", "eth0")
            self._ip(node, "addr", "add", f"{address}/24", "dev", "eth0")
            self._ip(node, "link", "set", "eth0", "up")
            self._ip(node, "link", "set", "lo", "up")
            self._ip(node, "route", "add", "default", "via", self.head)

    def _name_everybody(self, node: str) -> None:
        """No name server is in reach. Torch looks up everybody who connects, by a form of address
        that `hosts` does not serve, and would wait ten seconds: here it is refused at once."""
        place = _CONFIGURATION / self.namespace(node)
        place.mkdir(parents=True)
        names = {"127.0.0.1": "localhost", self.head: "head"}
        names.update({address: name for name, address in self.address.items()})
        names[self.address[node]] += f" {socket.gethostname()}"
        lines = [f"{address} {name}\n" for address, name in names.items()]
        (place / "hosts").write_text("".join(lines))
        (place / "resolv.conf").write_text("nameserver 127.0.0.1\n")

    def _ip(self, node: str | None, *arguments: str) -> str:
        where = [] if node is None else ["-n", self.namespace(node)]
        return _run(["ip", *where, *arguments])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ChaosError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _line_within(pipe: IO[bytes], seconds: float) -> bytes:
    deadline_s = time.monotonic() + seconds
    ready, _, _ = select.select([pipe], [], [], max(deadline_s - time.monotonic(), 0))
    return pipe.readline() if ready else b""

"""A slow way out of a network namespace, where the kernel has no netem.

`python -m chaos.relay ADDRESS SECONDS`, inside the namespace: all packets to the machine's own
network go into a TUN device instead, wait here, and leave through eth0. They arrive whole and in
order; only what the namespace sends is late.
"""

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from typing import Final

DEVICE: Final = "chaos0"
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_SO_BINDTODEVICE: Final = 25
_MAX_WAITING: Final = 100_000


def main(address: str, seconds: float) -> None:
    """Relay until killed; the device and its routes end with this process."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    out.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, b"eth0\0")
    subnet = address.rpartition(".")[0]
    _ip("link", "set", DEVICE, "up", "mtu", "1500")
    for half in (f"{subnet}.0/25", f"{subnet}.128/25"):  # closer than the /24 of eth0
        _ip("route", "add", half, "dev", DEVICE, "src", address)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.stdout.write("relaying\n")
    sys.stdout.flush()
    _relay(tun, out, seconds)


def _relay(tun: int, out: socket.socket, seconds: float) -> None:
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        until_s = waiting[0][0] - time.monotonic() if waiting else None
        ready, _, _ = select.select([tun], [], [], None if until_s is None else max(until_s, 0))
        if ready:
            packet = os.read(tun, 1 << 16)
            if packet[0] >> 4 == 4 and len(waiting) < _MAX_WAITING:
                waiting.append((time.monotonic() + seconds, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, packet = waiting.popleft()
            target = socket.inet_ntoa(packet[16:20])
            try:
                out.sendto(packet, (target, 0))
            except OSError:  # the link is down as well: the packet is lost, as it would be
                continue


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

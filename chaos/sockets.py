"""Connections between processes: which there are, and how one is dropped while both ends live."""

import ctypes
import os
import socket
import struct
from pathlib import Path
from typing import Final

from chaos.errors import NotFiredError
from chaos.proc import open_files

ESTABLISHED: Final = "01"
"""As `/proc/net/tcp` writes it."""
A_GREETING: Final = 1024
"""Bytes that a connection may carry though nobody uses it."""
_CARRIED: Final = struct.Struct("120x2Q")
"""Of Linux's `tcp_info`: bytes that were acknowledged, and that were received."""
_PIDFD_GETFD: Final = 438
"""Its number is the same on every architecture."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

End = tuple[str, str, str]
"""One end of a TCP connection: protocol, own address, the other's, in the kernel's notation."""


def connected(pid: int) -> dict[End, int]:
    """A process's established TCP connections, and its descriptor of each; none: it is gone."""
    by_inode = {}
    for protocol in ("tcp", "tcp6"):
        try:
            table = Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in table:
            words = line.split()
            if words[3] == ESTABLISHED:
                by_inode[words[9]] = (protocol, words[1], words[2])
    found = {}
    for fd, target in open_files(pid):
        kind, _, inode = target.partition(":")
        if kind == "socket" and inode.strip("[]") in by_inode:
            found[by_inode[inode.strip("[]")]] = fd
    return found


def connections_between(pid: int, other: int) -> dict[End, int]:
    """Connections that lead from one process to another: its ends and its descriptors of them."""
    theirs = connected(other)
    return {
        (protocol, own, remote): fd
        for (protocol, own, remote), fd in connected(pid).items()
        if (protocol, remote, own) in theirs
    }


def used_connections(pid: int, other: int) -> list[int]:
    """Descriptors of a process's connections to another one that carry data; needs root.

    Groups connect all their members when they are formed. Where nothing is ever sent, nobody
    notices, or has to, that a connection ends.
    """
    found = []
    for fd in sorted(connections_between(pid, other).values()):
        with socket.socket(fileno=_borrow(pid, fd)) as connection:
            told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _CARRIED.size)
        if sum(_CARRIED.unpack(told)) > A_GREETING:
            found.append(fd)
    return found


def drop(pid: int, fd: int) -> str:
    """Shut a connection down under a living process, as a network that fails does; needs root.

    Args:
        fd: the process's own descriptor of it, as `connected` tells.

    Returns:
        The evidence.

    Raises:
        NotFiredError: it is gone already, or still whole afterwards.
    """
    end = next((end for end, number in connected(pid).items() if number == fd), None)
    if end is None:
        raise NotFiredError(f"descriptor {fd} of process {pid} is no established connection")
    with socket.socket(fileno=_borrow(pid, fd)) as connection:
        connection.shutdown(socket.SHUT_RDWR)
    if end in connected(pid):
        raise NotFiredError(f"connection {end} of process {pid} is as it was")
    return f"connection {end[1]} - {end[2]} of pid {pid} is no longer established"


def _borrow(pid: int, fd: int) -> int:
    """Another process's descriptor as one of our own."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise NotFiredError(f"process {pid} is gone") from None
    try:
        ours: int = _LIBC.syscall(_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)
    if ours < 0:
        why = os.strerror(ctypes.get_errno())
        raise NotFiredError(f"descriptor {fd} of process {pid} is not to be had: {why}")
    return ours

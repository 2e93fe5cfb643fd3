"""Forming a generation asks no name server: beside one that never answers."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NAME_SERVER = "127.88.88.88"
SCRIPT = """
import os, socket, sys
from torch.distributed import TCPStore
from elasticmoe.cluster.children import prepare_for_job

if sys.argv[1] == "prepared":
    prepare_for_job({"entry": "json:loads"})
assert len(os.listdir("/proc/self/task")) == 1, "a fork from here is not safe"
if os.fork() == 0:
    store = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    TCPStore("127.0.0.1", store.port, None, is_master=False)
    os._exit(0)
assert os.wait()[1] == 0
os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"
try:
    socket.getaddrinfo("bucket.example", 443)
except socket.gaierror:
    pass
"""


@pytest.fixture
def name_server() -> Iterator[socket.socket]:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a name server of our own needs root and unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((NAME_SERVER, 53))
        server.settimeout(0)
        yield server


def questions(server: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(server.recv(4096))
        except BlockingIOError:
            return found


def connect_to_a_store(how: str, folder: Path) -> None:
    configuration = folder / "resolv.conf"
    configuration.write_text(f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:1\n")
    mount = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", str(configuration)]
    command += [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no mounts of our own here: {done.stderr}")
    assert done.returncode == 0, done.stderr


def test_the_name_server_is_not_asked_who_the_members_are(
    name_server: socket.socket, tmp_path: Path
) -> None:
    connect_to_a_store("prepared", tmp_path)

    asked = questions(name_server)
    assert not [packet for packet in asked if b"in-addr" in packet]
    assert [packet for packet in asked if b"bucket" in packet]  # other lookups work


def test_torch_asks_otherwise(name_server: socket.socket, tmp_path: Path) -> None:
    connect_to_a_store("unprepared", tmp_path)

    assert [packet for packet in questions(name_server) if b"in-addr" in packet]

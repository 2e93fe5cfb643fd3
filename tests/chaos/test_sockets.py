"""A connection that is dropped under two living processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from chaos.errors import NotFiredError
from chaos.sockets import A_GREETING, connected, connections_between, drop, used_connections

SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
print("connected", flush=True)
print(len(connection.recv(1)), flush=True)
input()
"""
CLIENT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("connected", flush=True)
print(len(connection.recv(1)), flush=True)
input()
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def pair() -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    server = start(SERVER)
    client = start(CLIENT, says(server))
    assert (says(server), says(client)) == ("connected", "connected")
    yield server, client
    for process in (server, client):
        process.kill()
        process.communicate()


def test_a_dropped_connection_ends_for_both_and_nobody_dies(
    pair: tuple[subprocess.Popen[str], subprocess.Popen[str]],
) -> None:
    server, client = pair
    (fd,) = connections_between(client.pid, server.pid).values()

    evidence = drop(client.pid, fd)

    assert "no longer established" in evidence
    assert (says(client), says(server)) == ("0", "0")  # both hear that nothing more will come
    assert client.poll() is None
    assert server.poll() is None
    assert connections_between(client.pid, server.pid) == {}


def test_what_is_no_connection_cannot_be_dropped(
    pair: tuple[subprocess.Popen[str], subprocess.Popen[str]],
) -> None:
    server, client = pair
    with pytest.raises(NotFiredError, match="no established connection"):
        drop(client.pid, 1)  # its standard output
    assert len(connected(server.pid)) == 1


def test_only_connections_that_carry_data_are_in_use() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
    ):
        us = os.getpid()
        ends = {near.fileno(), far.fileno()}
        assert ends <= set(connections_between(us, us).values())
        near.sendall(b"a greeting")
        assert not ends & set(used_connections(us, us))

        near.sendall(bytes(2 * A_GREETING))
        far.recv(4 * A_GREETING, socket.MSG_WAITALL | socket.MSG_DONTWAIT)

        assert ends <= set(used_connections(us, us))

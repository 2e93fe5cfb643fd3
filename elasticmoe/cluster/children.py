"""What the warm parent forks: a worker, or the host of a generation's rendezvous store; and what
it does itself, so that no child has to."""

import importlib
import json
import os
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from elasticmoe.runtime.names import look_up_no_names
from elasticmoe.spec.job import JobSpec


def run_worker_child(sock: socket.socket, arguments: dict[str, Any]) -> None:
    """Be a worker: run the training entry until the job or the agent ends.

    Args:
        sock: connection to the agent.
        arguments: `entry` (`module:function`), `job` (JSON text), `worker`, `log_dir`, `pulse`
            (file of the heartbeat page; empty: nobody watches).
    """
    _run_entry(sock, JobSpec.model_validate_json(arguments["job"]), arguments)


def stand_by(sock: socket.socket, arguments: dict[str, Any]) -> None:
    """Be a worker as soon as the agent needs one: forked, and with all done that can be before.

    Args:
        sock: connection to the agent, which is sent `READY` when no more can be done; its first
            line holds `arguments` (those of a worker that are missing here), `log` (file of its
            output) and `environment`.
        arguments: `entry` and `job`.
    """
    from elasticmoe.cluster.warm_parent import READY, write_output_to

    job = JobSpec.model_validate_json(arguments["job"])
    module = _module_of(arguments)
    if hasattr(module, "get_ready"):
        module.get_ready(job)
    sock.sendall(READY)
    line = _read_line(sock)
    if not line:
        return  # the agent is gone
    order = json.loads(line)
    write_output_to(order["log"])
    os.environ.update(order["environment"])
    Path("/proc/self/comm").write_text(f"worker-{order['arguments']['worker']}")
    _run_entry(sock, job, {**arguments, **order["arguments"]})


def prepare_for_job(arguments: dict[str, Any]) -> None:
    """In the warm parent: have ready what every worker of the job needs, if its entry says how.

    Args:
        arguments: `entry` and `job`, as for `run_worker_child`.
    """
    look_up_no_names()
    module = _module_of(arguments)
    if hasattr(module, "prepare"):
        module.prepare(JobSpec.model_validate_json(arguments["job"]))


def _read_line(sock: socket.socket) -> bytes:
    """One line, and nothing of what follows it; empty at the end of the stream."""
    line = b""
    while not line.endswith(b"\n"):
        there = sock.recv(1 << 16, socket.MSG_PEEK)
        if not there:
            return b""
        line += sock.recv(there.find(b"\n") + 1 or len(there))
    return line


def _run_entry(sock: socket.socket, job: JobSpec, arguments: dict[str, Any]) -> None:
    entry = getattr(_module_of(arguments), arguments["entry"].partition(":")[2])
    entry(sock, job, arguments["worker"], arguments["log_dir"], arguments["pulse"])


def _module_of(arguments: dict[str, Any]) -> ModuleType:
    return importlib.import_module(arguments["entry"].partition(":")[0])


def serve_store(sock: socket.socket, arguments: dict[str, Any]) -> None:
    """Keep a `TCPStore` until the agent closes its end; then everybody who waits on it is freed.

    Args:
        sock: connection to the agent; the store's port is sent over it as one line.
        arguments: `host`, the address to listen on, so that nothing else is exposed.
    """
    listener = socket.create_server((arguments["host"], 0), backlog=4096)
    port = listener.getsockname()[1]
    store = TCPStore(
        arguments["host"],
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    sock.sendall(b"%d\n" % store.port)
    sock.recv(1)

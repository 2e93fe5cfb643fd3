"""What the warm parent forks: a worker, or the host of a generation's rendezvous store; and what
it does itself, so that no child has to."""

import importlib
import socket
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from elasticmoe.spec.job import JobSpec


def run_worker_child(sock: socket.socket, arguments: dict[str, Any]) -> None:
    """Be a worker: run the training entry until the job or the agent ends.

    Args:
        sock: connection to the agent.
        arguments: `entry` (`module:function`), `job` (JSON text), `worker`, `log_dir`, `pulse`
            (file of the heartbeat page; empty: nobody watches).
    """
    module, _, name = arguments["entry"].partition(":")
    entry = getattr(importlib.import_module(module), name)
    job = JobSpec.model_validate_json(arguments["job"])
    entry(sock, job, arguments["worker"], arguments["log_dir"], arguments["pulse"])


def prepare_for_job(arguments: dict[str, Any]) -> None:
    """In the warm parent: have ready what every worker of the job needs, if its entry says how.

    Args:
        arguments: `entry` and `job`, as for `run_worker_child`.
    """
    module = importlib.import_module(arguments["entry"].partition(":")[0])
    if hasattr(module, "prepare"):
        module.prepare(JobSpec.model_validate_json(arguments["job"]))


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

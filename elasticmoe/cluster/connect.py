"""Reach Ray, or say in one sentence why not."""

import os
import socket
from typing import Final

import ray
from ray.exceptions import AuthenticationError, RayError, RayTaskError

from elasticmoe.cluster.run import NAMESPACE
from elasticmoe.errors import ClusterError, ElasticMoEError

CONNECT_TIMEOUT_S: Final = 3.0
OBJECT_STORE_BYTES: Final = 80 * 1024 * 1024
"""About the least that Ray allows; nothing of ours goes through it."""


def start_local_ray() -> None:
    """Start a Ray for one job on this machine, reachable from nowhere else.

    Two CPUs, because Ray starts as many processes in advance: the controller and the agent.

    Raises:
        ClusterError: Ray does not start.
    """
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (so it is spelled)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What actors do, told to Ray's dashboard every second, which is not there.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    os.environ.pop("RAY_ADDRESS", None)
    try:
        ray.init(
            address="local",  # never another Ray that happens to run here
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
            namespace=NAMESPACE,
            _node_ip_address="127.0.0.1",
        )
    except (RayError, RuntimeError, OSError, ValueError) as error:
        raise ClusterError(f"Ray did not start on this machine: {error}") from error


def connect_to_ray(address: str) -> None:
    """Connect this process to a running Ray cluster; a connection that exists is kept.

    Args:
        address: `HOST:PORT` of the cluster's head, or `auto` for the one on this machine.

    Raises:
        ClusterError: nobody listens there, or it is of another version, or refuses the token.
    """
    if ray.is_initialized():
        return
    if address != "auto":
        _probe(address)
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False)
    except AuthenticationError as error:
        raise ClusterError(
            f"Ray at {address} refuses the token: set RAY_AUTH_TOKEN, or put the cluster's token "
            f"into ~/.ray/auth_token ({_first_line(error)})."
        ) from error
    except (RayError, RuntimeError, OSError, ValueError) as error:
        if "Version mismatch" in str(error):
            raise ClusterError(
                f"Ray at {address} is of another version; install Ray and Python as there: "
                + " ".join(str(error).split())
            ) from error
        raise ClusterError(
            f"no Ray lets us in at {address}: {_first_line(error)} If Ray listens there, its token "
            "differs: set RAY_AUTH_TOKEN, or put the token into ~/.ray/auth_token."
        ) from error


def reason_of(error: BaseException) -> str:
    """What to tell about an error that may have travelled through Ray with a traceback."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ElasticMoEError):
        return str(cause)
    return f"{type(cause).__name__}: {_first_line(cause)}"


def unwrapped(error: RayError) -> ElasticMoEError:
    """The error of ours that Ray carries, or one that says what Ray said."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, ElasticMoEError) else ClusterError(reason_of(error))


def _probe(address: str) -> None:
    """Ray itself takes two minutes to notice that nobody listens, and then ends the process."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise ClusterError(
            f"{address!r} is no Ray address: give HOST:PORT of the cluster's head (6379 is the "
            "usual port), or auto. Ray Client (ray://) is not supported."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"nothing answers at {address} ({error}): is this the address and port of a running "
            "Ray head?"
        ) from error


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

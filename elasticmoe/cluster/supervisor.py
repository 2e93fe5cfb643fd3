"""The driver of a local run: starts Ray, outlives the terminal, leaves nothing behind.

`python -m elasticmoe.cluster.supervisor FD` reads a `Run` as JSON from standard input and writes
one line of JSON to the pipe FD: `{"service": ...}` once the job runs, or `{"error": ...}`.
"""

import json
import os
import signal
import sys
import time
from types import FrameType
from typing import Any, Final

from elasticmoe.cluster.forking import spawn_warm_parent
from elasticmoe.cluster.run import RayNode, Run, local_seat

RETRY_S: Final = 0.1
MAX_RETRIES: Final = 100


def main(pipe: int, run_text: str) -> None:
    """Run one job from start to end."""
    began_s = time.monotonic()
    run = Run.from_text(run_text)
    os.makedirs(run.log_dir, exist_ok=True)
    # Importing torch takes as long as starting Ray: do both at once.
    preload = (run.entry.partition(":")[0],)
    warm_parent, _ = spawn_warm_parent(preload, str(run.log_dir / "warm-parent.log"))

    import ray
    from ray.exceptions import RayError

    from elasticmoe.cluster.connect import start_local_ray, unwrapped
    from elasticmoe.errors import ElasticMoEError
    from elasticmoe.telemetry.log import get_log, start_logging

    start_logging(sys.stderr)
    log = get_log("elasticmoe.cluster.supervisor")  # not __main__
    try:
        try:
            start_local_ray()
            log.info("ray_started", seconds=time.monotonic() - began_s)
            controller = _start(run, warm_parent)
            service = ray.get(controller.begin.remote())
        except RayError as error:
            raise unwrapped(error) from error
        log.info("began", seconds=time.monotonic() - began_s)
        _tell(pipe, {"service": service})
        _stop_on_sigterm(controller)
        log.info("ended", outcome=_wait(controller)["outcome"])
    except ElasticMoEError as error:
        log.exception("failed")
        _tell(pipe, {"error": {"code": error.code, "message": str(error)}})
    finally:
        ray.shutdown()


def _start(run: Run, warm_parent: str) -> Any:
    """Start agent and controller side by side; the controller finds the agent by its name."""
    import ray

    from elasticmoe.cluster.agent_actor import place_agent
    from elasticmoe.cluster.controller_actor import start_controller

    (node,) = (RayNode.from_ray(plain) for plain in ray.nodes())
    controller = start_controller(run)
    place_agent(run, local_seat(run, node), warm_parent)
    return controller


def _wait(controller: Any) -> dict[str, Any]:
    """Wait for the end of the job, through restarts of its controller."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    from elasticmoe.cluster.connect import reason_of, unwrapped
    from elasticmoe.errors import ClusterError

    for _ in range(MAX_RETRIES):
        try:
            outcome: dict[str, Any] = ray.get(controller.wait.remote())
            return outcome
        except RayTaskError as error:
            raise unwrapped(error) from error
        except RayActorError as error:
            reason = reason_of(error)
            time.sleep(RETRY_S)
    raise ClusterError(f"the controller is gone for good: {reason}")


def _stop_on_sigterm(controller: Any) -> None:
    def ask(number: int, frame: FrameType | None) -> None:
        controller.ask.remote("stop", "SIGTERM")

    signal.signal(signal.SIGTERM, ask)


def _tell(pipe: int, plain: dict[str, Any]) -> None:
    try:
        os.write(pipe, json.dumps(plain).encode() + b"\n")
    except BrokenPipeError:
        return  # whoever started the run has left; it goes on


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.stdin.read())

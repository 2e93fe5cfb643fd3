"""Our worker, with a way to make it loop: a SIGUSR2, and its training thread never goes on.

Python runs the handler in the main thread, the one that trains, between two of its instructions.
The other threads go on: the heart beats, commands are read, and nothing comes of it.
"""

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, NoReturn

from elasticmoe.runtime.worker import prepare as prepare  # for the process that forks workers
from elasticmoe.runtime.worker import run_worker as run_real_worker
from elasticmoe.spec.job import JobSpec


def run_worker(
    sock: socket.socket, job: JobSpec, worker: int, log_dir: str, pulse: str = ""
) -> None:
    """See `elasticmoe.runtime.worker.run_worker`; `loops-PID` beside the log tells since when."""

    def loop(*_: Any) -> NoReturn:
        at_s = time.time()
        partial = Path(log_dir) / f"loops-{os.getpid()}.partial"
        partial.write_text(repr(at_s))
        partial.rename(partial.with_suffix(""))
        while True:
            pass

    signal.signal(signal.SIGUSR2, loop)
    run_real_worker(sock, job, worker, log_dir, pulse)

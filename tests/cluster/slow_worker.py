"""The fake training process, for which it takes a while to get ready."""

import os

from fake_worker import run_worker as run_worker

from elasticmoe.spec.job import JobSpec

GATE = "ELASTICMOE_TEST_GATE"
"""Environment: a pipe whose end is waited for."""


def get_ready(job: JobSpec) -> None:
    """Be done when somebody has opened the pipe."""
    with open(os.environ[GATE]) as gate:
        gate.read()

"""A Ray cluster that does not fit: one sentence, and the remedy."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import Processes
from ray_heads import Head, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]
CONNECT = """
import sys
{before}
from elasticmoe.cluster.connect import connect_to_ray
from elasticmoe.errors import ClusterError
try:
    connect_to_ray(sys.argv[1])
except ClusterError as error:
    print(f"refused: {{error}}")
"""


def connect(head: Head, *, before: str = "", **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", CONNECT.format(before=before), head.address],
        env={**head.environment, "RAY_NUM_REDIS_GET_RETRIES": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.stdout


def test_another_version_and_a_wrong_token_are_refused_with_the_remedy(
    tmp_path: Path, processes: Processes
) -> None:
    with ray_head(tmp_path, {}) as head:
        versions = connect(head, before="import ray; ray.__version__ = '1.2.3'")
        wrong = connect(head, RAY_AUTH_TOKEN=64 * "0")
        right = connect(head)
        processes.kill_all()

    assert "is of another version; install Ray and Python as there" in versions
    assert "1.2.3" in versions
    assert "its token differs: set RAY_AUTH_TOKEN, or put the token into ~/.ray/auth_token" in wrong
    assert [text.count("\n") for text in (versions, wrong)] == [1, 1]
    assert right == ""

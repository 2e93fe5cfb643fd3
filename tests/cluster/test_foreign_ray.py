"""A Ray cluster that does not fit: one sentence, and the remedy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Processes
from ray.cluster_utils import Cluster

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


def connect(address: str, before: str) -> str:
    path = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", CONNECT.format(before=before), address],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.stdout


def test_another_version_is_refused_with_the_remedy(
    processes: Processes,
) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        older = "import ray; ray.__version__ = '1.2.3'"
        versions = connect(cluster.address, before=older)
    finally:
        cluster.shutdown()

    assert "is of another version" in versions
    assert "1.2.3" in versions

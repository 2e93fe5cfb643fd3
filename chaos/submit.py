"""`python -m chaos.submit ADDRESS` submits the job on standard input, says where it runs, and ends.

A process of its own, because a Ray driver ends with the head that it is connected to.
"""

import json
import sys
from dataclasses import asdict

from elasticmoe.cluster.jobs import submit
from elasticmoe.errors import ElasticMoEError
from elasticmoe.spec.job import JobSpec


def main(address: str, text: str) -> int:
    """Submit a job; returns the exit status."""
    try:
        handle = submit(JobSpec.model_validate_json(text), address)
    except ElasticMoEError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(handle), default=str) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.stdin.read()))

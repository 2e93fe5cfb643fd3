"""`python -m chaos.drain ADDRESS NODE_IP SECONDS`: Ray drains a node, as upon a preemption notice.

A process of its own, like `chaos.submit`. What cloud providers' notices lead to is this call, made
by Ray's autoscaler; its command line, `ray drain-node`, makes the same one.
"""

import sys
import time

from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]


def main(address: str, node_ip: str, seconds: float) -> int:
    """Ask for the drain; returns the exit status."""
    client = GcsClient(address=address)
    found = [
        node_id.hex()
        for node_id, info in client.get_all_node_info().items()
        if info.node_manager_address == node_ip and info.state == 0
    ]
    if not found:
        sys.stderr.write(f"no living node has the address {node_ip}\n")
        return 1
    until_ms = int((time.time() + seconds) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = client.drain_node(found[0], reason, "a drill", until_ms)
    sys.stdout.write(f"Ray drains {found[0][:12]} within {seconds:g} s\n")
    if not accepted:
        sys.stderr.write(f"{why}\n")
    return 0 if accepted else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))

"""How fast this machine multiplies matrices: the yardstick of MFU."""

import os
from collections import Counter
from collections.abc import Iterable
from time import perf_counter

import torch

_SIZE = 768
_TRIES = 3


def measure_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Best rate of a dense square matrix product on this worker, FLOP/s.

    Takes some 40 ms on a CPU core. A measured peak makes the share comparable between machines
    whose nominal peak nobody knows.
    """
    size = _SIZE if device.type == "cpu" else 8 * _SIZE
    left = torch.ones(size, size, dtype=dtype, device=device)
    best_s = float("inf")
    for _ in range(_TRIES):
        began = perf_counter()
        product = left @ left
        product[0, 0].item()  # waits for a GPU
        best_s = min(best_s, perf_counter() - began)
    return 2 * size**3 / best_s


def count_processors(nodes: Iterable[str], threads: int, device: torch.device) -> float:
    """Workers that can really compute at once, if every node is like this one.

    Args:
        nodes: the node of each member.
        threads: CPU threads per worker.
        device: of the workers.
    """
    workers_on_node = Counter(nodes)
    if device.type != "cpu":
        return float(workers_on_node.total())
    room = (os.cpu_count() or 1) / threads
    return sum(min(float(workers), room) for workers in workers_on_node.values())

"""How fast this machine multiplies matrices: the yardstick of MFU."""

import os
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


def count_processors(members: int, threads: int, device: torch.device) -> float:
    """Workers that can really compute at once, if all share this machine."""
    if device.type != "cpu":
        return float(members)
    return min(float(members), (os.cpu_count() or 1) / threads)

"""Ground rules of every test: few threads, and marked tests skipped where they cannot run."""

import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded; workers inherit it
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A shell starts `make test &` with Ctrl-C ignored, which whatever is started here would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
